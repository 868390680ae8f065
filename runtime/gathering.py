"""When the frames that wait are written to a stream: the rules, and the writer that follows one.

Owns the wait. What is written in which order is `runtime.streams`'. Never opens a stream, and never drops a frame.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from runtime.streams import Outbox


class GatherRule(Protocol):
    """Decides how long frames may gather before they are written."""

    def came(self, now_s: float) -> None:
        """A frame was handed over."""
        ...

    def hold_s(self, now_s: float, since_s: float, waiting: int, in_flight: int) -> float:
        """How long to wait on; <= 0 = write now. `since_s`: when the oldest of the `waiting` frames came."""
        ...

    def wrote(self) -> None:
        """A message left."""
        ...

    def answered(self) -> None:
        """A message came back on the same stream."""
        ...


class AtOnce:
    """Write whenever the stream is free: frames gather only while a write is in progress and within one loop turn."""

    __slots__ = ()

    def came(self, now_s: float) -> None:
        return

    def hold_s(self, now_s: float, since_s: float, waiting: int, in_flight: int) -> float:
        return 0.0

    def wrote(self) -> None:
        return

    def answered(self) -> None:
        return


class FlightPeak:
    """Gather until as many frames wait as calls were lately open together, or a bound has passed.

    While the peer still owes answers some of those calls are elsewhere, so this is Nagle's rule (RFC 896: hold back while
    sent data is unacknowledged) with a memory: callers that were just answered are about to ask again, and on a busy machine
    their requests are worth a moment. With at most `free_in_flight` calls open nothing ever waits. And a frame waits only
    where others may be expected to join it: the mean gap between frames must be shorter than the bound, so that many slow
    calls in flight do not hold up the odd fast one. Measured in docs/decisions/0005-gather-rule.md.
    """

    __slots__ = ("_bound_s", "_free_in_flight", "_gap_s", "_last_s", "_peak")

    def __init__(self, bound_s: float, free_in_flight: int) -> None:
        self._bound_s = bound_s
        self._free_in_flight = free_in_flight
        self._peak = 0.0
        self._last_s = 0.0
        self._gap_s = _GAP_CEILING * bound_s

    def came(self, now_s: float) -> None:
        gap_s = min(now_s - self._last_s, _GAP_CEILING * self._bound_s)
        self._last_s = now_s
        self._gap_s += (gap_s - self._gap_s) * _GAP_WEIGHT

    def hold_s(self, now_s: float, since_s: float, waiting: int, in_flight: int) -> float:
        self._peak = max(self._peak, in_flight)
        if in_flight <= self._free_in_flight or waiting >= self._peak or self._gap_s > self._bound_s:
            return 0.0
        return since_s + self._bound_s - now_s

    def wrote(self) -> None:
        self._peak *= _PEAK_DECAY

    def answered(self) -> None:
        return


_PEAK_DECAY = 0.9
"""Per message: seven messages after a crowd has left, half of it is forgotten."""

_GAP_WEIGHT = 0.1
_GAP_CEILING = 4
"""A pause counts as at most this many bounds, so that traffic that returns is gathered again after some fifteen frames."""


_TIMER_RESOLUTION_S = 0.0005
"""uvloop's timers count whole milliseconds (libuv's uv_timer_start): less than half of one is no wait at all."""


def _nothing() -> bytes:
    return b""


class FrameWriter:
    """Writes an outbox to a stream, one message at a time, as its rule says. `run` is a task of the stream's owner."""

    __slots__ = (
        "_ended",
        "_flushed",
        "_header",
        "_held",
        "_in_flight",
        "_loop",
        "_outbox",
        "_rule",
        "_since_s",
        "_wake",
        "_write",
    )

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[None]],
        rule: GatherRule,
        in_flight: Callable[[], int],
        *,
        header: Callable[[], bytes] = _nothing,
        outbox: Outbox | None = None,
    ) -> None:
        """`header` is asked before each message for bytes to put in front of it."""
        self._write = write
        self._rule = rule
        self._in_flight = in_flight
        self._header = header
        self._outbox = Outbox() if outbox is None else outbox
        self._loop = asyncio.get_running_loop()
        self._since_s = 0.0
        self._wake: asyncio.Future[None] | None = None
        self._ended = False
        self._held = False
        self._flushed: asyncio.Future[None] | None = None

    def push(self, call_id: int, frame: bytes) -> None:
        first = not self._outbox
        self._outbox.push(call_id, frame)
        self._came(first)

    def push_parts(self, call_id: int, parts: Iterator[bytes]) -> None:
        first = not self._outbox
        self._outbox.push_parts(call_id, parts)
        self._came(first)

    def drop(self, call_id: int) -> None:
        self._outbox.drop(call_id)

    def answered(self) -> None:
        """A message came back on the stream."""
        self._rule.answered()
        if self._held and self._hold_s(time.monotonic()) <= _TIMER_RESOLUTION_S:
            self._rouse()

    async def flush(self) -> None:
        """Return when everything pushed so far was written, or cannot be any more."""
        if not self._ended and (self._outbox or self._wake is None):
            self._flushed = self._loop.create_future()
            await self._flushed

    async def run(self) -> None:
        """Write until cancelled or until a write fails."""
        try:
            await self._run()
        finally:
            self._ended = True
            self._settle_flush()

    async def _run(self) -> None:
        outbox, rule = self._outbox, self._rule
        while True:
            if not outbox:
                self._settle_flush()
                await self._pause(None)
                continue
            hold_s = self._hold_s(time.monotonic())
            if hold_s > _TIMER_RESOLUTION_S:
                await self._pause(hold_s)
                continue
            message = self._header() + outbox.take()
            self._since_s = time.monotonic()
            if message:
                rule.wrote()
                await self._write(message)

    def _settle_flush(self) -> None:
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)

    def _came(self, first: bool) -> None:
        now_s = time.monotonic()
        self._rule.came(now_s)
        if first:
            self._since_s = now_s
            self._rouse()
        elif self._held and self._hold_s(now_s) <= _TIMER_RESOLUTION_S:
            self._rouse()

    def _hold_s(self, now_s: float) -> float:
        if self._outbox.large:
            return 0.0  # What is large fills messages by itself.
        return self._rule.hold_s(now_s, self._since_s, self._outbox.small, self._in_flight())

    def _rouse(self) -> None:
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def _pause(self, at_most_s: float | None) -> None:
        self._wake = self._loop.create_future()
        self._held = at_most_s is not None
        timer = None if at_most_s is None else self._loop.call_later(at_most_s, self._rouse)
        try:
            await self._wake
        finally:
            self._wake, self._held = None, False
            if timer is not None:
                timer.cancel()
