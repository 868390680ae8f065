"""Answers that are kept, the longest unused going first: never more bytes of them than were allowed.

Counts what keys and bookkeeping take besides the answers' own bytes. Pure but for what it holds: the time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict

from gateway.cache.types import Answer, CacheSettings, Key

ENTRY_BYTES = 512
"""What an entry takes besides its messages: key, hash, places in a table that grows in steps. Measured: 340 to 410."""

MESSAGE_BYTES = 48
"""What a message takes besides its bytes: 33 of its object, 8 of its place, up to 7 of padding."""


class Shelf:
    """Answers by key."""

    def __init__(self, settings: CacheSettings) -> None:
        self._settings = settings
        self._kept: OrderedDict[Key, tuple[Answer, float]] = OrderedDict()
        """With when each is too old. The one used last stands last."""
        self.size_bytes = 0
        self.evicted = 0
        """Answers that went to make room."""

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key, now_s: float) -> Answer | None:
        """What is kept under it, if that is not too old."""
        found = self._kept.get(key)
        if found is None:
            return None
        answer, until_s = found
        if now_s >= until_s:
            self.drop(key)
            return None
        self._kept.move_to_end(key)
        return answer

    def put(self, key: Key, answer: Answer, now_s: float) -> None:
        """Keep it, unless it is too large; others go to make room."""
        self.drop(key)
        if answer.size_bytes > self._settings.answer_bytes or (size_bytes := taken_bytes(answer)) > self._settings.max_bytes:
            return
        until_s = now_s + self._settings.ttl_s if self._settings.ttl_s else float("inf")
        self._kept[key] = answer, until_s
        self.size_bytes += size_bytes
        while self.size_bytes > self._settings.max_bytes:
            self.drop(next(iter(self._kept)))
            self.evicted += 1

    def drop(self, key: Key) -> None:
        """It is kept no longer, if it was."""
        found = self._kept.pop(key, None)
        if found is not None:
            self.size_bytes -= taken_bytes(found[0])


def taken_bytes(answer: Answer) -> int:
    """Of the shelf's bytes, with its key."""
    return ENTRY_BYTES + answer.size_bytes + MESSAGE_BYTES * len(answer.messages)
