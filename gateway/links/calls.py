"""Open calls of a stream: where the answers of each go, and how each ends exactly once.

Owns a call's reassembly, buffer and credit. Never writes to the stream: `gateway.links.stream` does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from runtime.errors import PenstockError
from runtime.streams import Reassembly


class UnaryCall:
    """One answer, as a future."""

    __slots__ = ("_limit_bytes", "_parts", "answer", "call_id", "model", "timer", "version")

    model: str
    version: str
    """Whose: for whoever asks who else could answer."""

    def __init__(self, call_id: int, loop: asyncio.AbstractEventLoop, limit_bytes: int) -> None:
        self.call_id = call_id
        self.answer: asyncio.Future[bytes] = loop.create_future()
        self.timer: asyncio.TimerHandle | None = None
        self._limit_bytes = limit_bytes
        self._parts: Reassembly | None = None

    @property
    def started(self) -> bool:
        return False

    def take(self, data: bytes, *, more: bool, end: bool) -> None:
        """Raises PayloadTooLarge."""
        if not end or self._parts is not None:
            if self._parts is None:
                self._parts = Reassembly(self._limit_bytes, "an answer")
            self._parts.add(data)
            data = self._parts.whole() if end else b""
        if end and not self.answer.done():
            self.answer.set_result(data)

    def fail(self, error: PenstockError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class StreamingCall:
    """Many answers: those not read yet, bounded by the credit that was given for them."""

    __slots__ = (
        "_buffer",
        "_credit",
        "_ended",
        "_failure",
        "_grant",
        "_limit_bytes",
        "_parts",
        "_read",
        "_waiter",
        "call_id",
        "model",
        "started",
        "timer",
        "version",
    )

    model: str
    version: str

    def __init__(self, call_id: int, limit_bytes: int, credit: int, grant: Callable[[int, int], None]) -> None:
        self.call_id = call_id
        self.timer: asyncio.TimerHandle | None = None
        self.started = False
        self._buffer: deque[bytes] = deque()
        self._parts: Reassembly | None = None
        self._limit_bytes = limit_bytes
        self._credit = credit
        self._grant = grant
        self._read = 0
        self._ended = False
        self._failure: PenstockError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def take(self, data: bytes, *, more: bool, end: bool) -> None:
        """Raises PayloadTooLarge. An `end` without bytes carries no message."""
        if more or self._parts is not None:
            if self._parts is None:
                self._parts = Reassembly(self._limit_bytes, "an answer")
            self._parts.add(data)
            if more and not end:
                return
            data, self._parts = self._parts.whole(), None
        if data or not end:
            self.started = True
            self._buffer.append(data)
        self._ended = self._ended or end
        self._wake()

    def fail(self, error: PenstockError) -> None:
        """What has arrived is still handed out first."""
        if not self._ended:
            self._ended, self._failure = True, error
            self._wake()

    async def next(self) -> bytes | None:
        """The next answer; None after the last. Raises how the call failed."""
        while not self._buffer:
            if self._ended:
                if self._failure is not None:
                    raise self._failure
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._count_read()
        return self._buffer.popleft()

    def _count_read(self) -> None:
        self._read += 1
        if self._read * 2 >= self._credit and not self._ended:
            self._grant(self.call_id, self._read)
            self._read = 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


OpenCall = UnaryCall | StreamingCall
