"""What was given of one generation so far, and the request that goes on after it at another worker.

Pure. Answers are kept as they came and read only when there are many of them, or when the worker is lost: a generation that
ends where it began costs nothing but references to its latest answers. Of older ones the token ids are left. The tokens alone
are enough: an engine that is given them counts them as made, goes on after them, and says nothing of them again, so that text,
stop strings, limits, usage and draws come out as if nothing had happened (worker.engines.llm). An engine that tells no token
ids, as all upstreams do, cannot be gone on with. Never decides whether a failure is worth it: `gateway.journeys` does.
"""

from __future__ import annotations

from array import array

from gateway.links.text_codec import TextCodec
from runtime.errors import DataLoss

KEPT_BYTES = 16 * 1024
"""Answers of this size together are kept unread."""

_ANSWER_BYTES = 64
"""What an answer takes besides its bytes."""

MAX_TOKENS = 1 << 20
"""Longer than any model's context; beyond it nothing is remembered. Four bytes each."""


class Generation:
    """One generation's answers, from its first worker to its last. `payload` is the request as its caller's door made it."""

    __slots__ = ("_answers", "_codec", "_count", "_is_lost", "_kept_bytes", "_payload", "_token_ids", "has_ended")

    def __init__(self, payload: bytes, codec: TextCodec) -> None:
        self._payload, self._codec = payload, codec
        self._answers: list[bytes] = []
        self._kept_bytes = 0
        self._count = 0
        self._token_ids = array("I")
        self._is_lost = False
        self.has_ended = False
        """The last answer said so, as far as `resumed` has looked."""

    @property
    def tokens(self) -> int:
        """That are remembered by their ids."""
        return len(self._token_ids)

    def feed(self, answer: bytes) -> None:
        """It is given to the caller now."""
        self._answers.append(answer)
        self._kept_bytes += len(answer) + _ANSWER_BYTES
        if self._kept_bytes > KEPT_BYTES:
            self._read()

    def resumed(self) -> bytes | None:
        """The request that goes on after all that was given; None: nobody can, or it is over."""
        self._read()
        return None if self._is_lost or self.has_ended else self._codec.resuming(self._payload, self._token_ids)

    def _read(self) -> None:
        """Read what is kept, and forget all of it but the token ids."""
        answers, self._answers, self._kept_bytes = self._answers, [], 0
        if not answers or self._is_lost:
            return
        try:
            told = self._codec.told(answers)
        except DataLoss:  # whoever the answers are for will say so
            self._is_lost = True
            return
        self.has_ended = told.has_ended
        self._count += len(answers)
        self._token_ids.extend(told.token_ids)
        # Every answer but the last has a token at least. Text without tokens is from an engine that knows none.
        if len(self._token_ids) < self._count or len(self._token_ids) > MAX_TOKENS:
            self._is_lost = True
            self._token_ids = array("I")
