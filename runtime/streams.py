"""How many calls share one stream: frames become messages, large payloads travel in parts between small ones.

Owns the order in which frames leave and the bounds of what is put together again. Knows no generated message: a frame is
handed over encoded, as one entry of the message's repeated field, and a message is frames put end to end (concatenated
encodings merge; source: protobuf encoding guide, "Last One Wins"). When a message is written is `runtime.gathering`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

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
