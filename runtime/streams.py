"""How many calls share one stream: frames gather into messages, large payloads travel in parts between small ones.

Owns the order in which frames leave, when a message is written, and the bounds of what is put together again. Knows no
generated message: a frame is handed over encoded, as one entry of the message's repeated field, and a message is frames put
end to end (concatenated encodings merge; source: protobuf encoding guide, "Last One Wins"). Never opens a stream.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from runtime.errors import Code, PenstockError

PART_BYTES = 256 * 1024
"""What is larger than this travels in parts of this size."""

MESSAGE_BYTES = 512 * 1024
"""A message takes no further frame from here on: what a small frame waits behind, at most, and one part more."""


class PayloadTooLarge(PenstockError, code=Code.INVALID_ARGUMENT, reason="PAYLOAD_TOO_LARGE"):
    """The payload is larger than this hop takes, or than it was said to be."""


class _Lane:
    """A call whose frames leave one to a message, because they come from something large."""

    __slots__ = ("call_id", "sources")

    def __init__(self, call_id: int, parts: Iterator[bytes]) -> None:
        self.call_id = call_id
        self.sources: deque[Iterator[bytes]] = deque((parts,))

    def next(self) -> bytes | None:
        while self.sources:
            part = next(self.sources[0], None)
            if part is not None:
                return part
            self.sources.popleft()
        return None


class Outbox:
    """Frames that wait to be written. Frames of one call keep their order; large calls take turns, part by part.

    Each message holds small frames up to `message_bytes`, then parts of large calls: at least one if there is any, so that
    neither kind starves the other. Parts are made when their turn comes, so a large payload is not held twice.
    """

    __slots__ = ("_lanes", "_message_bytes", "_queue", "_turns")

    def __init__(self, message_bytes: int = MESSAGE_BYTES) -> None:
        self._message_bytes = message_bytes
        self._queue: deque[bytes | _Lane] = deque()
        self._lanes: dict[int, _Lane] = {}
        self._turns: deque[_Lane] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue or self._turns)

    @property
    def small(self) -> int:
        """Small frames that wait."""
        return len(self._queue)

    @property
    def large(self) -> bool:
        """Whether parts of large calls wait."""
        return bool(self._lanes)

    def push(self, call_id: int, frame: bytes) -> None:
        lane = self._lanes.get(call_id)
        if lane is None:
            self._queue.append(frame)
        else:
            lane.sources.append(iter((frame,)))

    def push_parts(self, call_id: int, parts: Iterator[bytes]) -> None:
        """Frames that take turns with those of other large calls. The iterator must not depend on being read soon."""
        lane = self._lanes.get(call_id)
        if lane is not None:
            lane.sources.append(parts)
            return
        self._lanes[call_id] = lane = _Lane(call_id, parts)
        # Takes turns only once what was pushed before it has left: a call's frames keep their order.
        self._queue.append(lane)

    def drop(self, call_id: int) -> None:
        """Forget what a large call has not sent yet. Frames that were small are few and still leave."""
        lane = self._lanes.pop(call_id, None)
        if lane is not None:
            lane.sources.clear()

    def take(self) -> bytes:
        """The next message; empty if nothing waits."""
        frames: list[bytes] = []
        room = self._message_bytes
        while self._queue and room > 0:
            first = self._queue.popleft()
            if isinstance(first, _Lane):
                self._turns.append(first)
                continue
            frames.append(first)
            room -= len(first)
        room = max(room, 1)
        while self._turns and room > 0:
            lane = self._turns.popleft()
            part = lane.next()
            if part is None:
                if self._lanes.get(lane.call_id) is lane:
                    del self._lanes[lane.call_id]
                continue
            frames.append(part)
            room -= len(part)
            self._turns.append(lane)
        return b"".join(frames)


def parts_of(payload: bytes, part_bytes: int = PART_BYTES) -> Iterator[tuple[memoryview, bool]]:
    """Cut a payload; the flag marks the last part. An empty payload is one empty part."""
    view = memoryview(payload)
    for start in range(0, max(len(view), 1), part_bytes):
        yield view[start : start + part_bytes], start + part_bytes >= len(view)


class Reassembly:
    """A payload that arrives in parts, never more of it than was allowed."""

    __slots__ = ("_parts", "_what", "limit_bytes", "size_bytes")

    def __init__(self, limit_bytes: int, what: str) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._what = what
        self._parts: list[bytes] = []

    def add(self, part: bytes) -> None:
        """Raises PayloadTooLarge before keeping what is too much."""
        if self.size_bytes + len(part) > self.limit_bytes:
            raise PayloadTooLarge(
                f"{self._what} goes beyond {self.limit_bytes} bytes: {self.size_bytes + len(part)} have come; send less at once"
            )
        self.size_bytes += len(part)
        self._parts.append(part)

    def whole(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


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


class WhileUnanswered:
    """Gather while the peer still works on what it was sent: write once all of that is answered, or a bound has passed.

    The answers are the clock, as acknowledgements are in Nagle's algorithm (RFC 896). With at most `free_in_flight` calls
    open nothing ever waits. And a frame waits only where others may be expected to join it: the mean gap between frames
    must be shorter than the bound, so that many slow calls in flight do not hold up the odd fast one. Measured in
    docs/decisions/0005-gather-rule.md.
    """

    __slots__ = ("_bound_s", "_free_in_flight", "_gap_s", "_last_s")

    def __init__(self, bound_s: float, free_in_flight: int) -> None:
        self._bound_s = bound_s
        self._free_in_flight = free_in_flight
        self._last_s = 0.0
        self._gap_s = _GAP_CEILING * bound_s

    def came(self, now_s: float) -> None:
        gap_s = min(now_s - self._last_s, _GAP_CEILING * self._bound_s)
        self._last_s = now_s
        self._gap_s += (gap_s - self._gap_s) * _GAP_WEIGHT

    def hold_s(self, now_s: float, since_s: float, waiting: int, in_flight: int) -> float:
        if in_flight <= self._free_in_flight or waiting >= in_flight or self._gap_s > self._bound_s:
            return 0.0
        return since_s + self._bound_s - now_s

    def wrote(self) -> None:
        return

    def answered(self) -> None:
        return


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
