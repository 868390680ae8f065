"""What open copies take of this machine's memory, and who has to leave so that another fits.

Decides purely: copies and their use go in, promises, evictions and refusals come out. What a copy takes is what its manifest
says (`memory_bytes`), else an estimate: its files times a factor of the engine, and a base for sessions, threads and buffers.
The factors are rough: ONNX Runtime was seen to grow a process by 1.0 of the file for products of matrices and by 3.7 for
convolutions, which it keeps in several layouts. Memory of a GPU is not counted. Nothing measured decides: by what a process
grows depends on what was freed before, and a copy whose size changed from load to load would come and go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from worker.engine import ModelRefused
from worker.life.lifecycle import Copy, CopyKey, Room
from worker.types import CopyState, ModelSpec

MIB = 1024 * 1024
BASE_BYTES = 16 * MIB
FACTORS: Mapping[str, float] = MappingProxyType(
    {
        "onnx": 2.5,
        "llm": 2.0,  # products of matrices, and the cache of keys and values
        "torch": 2.0,
        "litert": 1.2,  # weights stay mapped from the file
        "tensorrt": 1.2,  # the plan's own copy; the device's memory is the device's
        "python": 2.0,  # a process of its own
        "upstream": 0.0,  # runs elsewhere
    }
)
_UNKNOWN_ENGINE = 2.0


@dataclass(frozen=True, slots=True)
class Usage:
    """How an open copy is used."""

    busy: bool
    """A request is in flight or waits."""
    last_used_s: float
    """On any one clock that all copies share."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What open copies may take together, and how they are used. A copy without usage counts as unused since ever."""

    limit_bytes: int
    usage: Mapping[CopyKey, Usage] = field(default_factory=dict)
    spare: frozenset[CopyKey] = frozenset()
    """READY copies that nobody orders any more: the first to leave, and for anybody, because they never come back."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """A READY copy is let go of, to make room for another."""

    copy: Copy
    makes_room_for: Copy


@dataclass(frozen=True, slots=True)
class Refusal:
    """There is no room, whoever may be let go of."""

    copy: Copy
    why: str


@dataclass(slots=True)
class Rooms:
    """One round's decisions. What they promise is reserved already: `free_bytes` is what nobody has been promised."""

    free_bytes: int
    promises: list[Copy] = field(default_factory=list)
    evictions: list[Eviction] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    grants: list[Copy] = field(default_factory=list)

    def reserve(self, need_bytes: int) -> bool:
        """Promise that much if it is free."""
        if need_bytes > self.free_bytes:
            return False
        self.free_bytes -= need_bytes
        return True


def share_out(staying: Sequence[Copy], leaving: Iterable[Copy], memory: Memory) -> Rooms:
    """Who may be opened, and who has to leave for it. `leaving`: copies that take memory still and are on their way out."""
    committed = [copy for copy in staying if _is_committed(copy)]
    rooms = Rooms(memory.limit_bytes - _bytes(committed))
    for copy in staying:
        if copy.state is CopyState.LOADING and copy.room is Room.WANTED:
            _decide(copy, staying, memory, rooms)
    opened_bytes = _bytes(copy for copy in staying if copy.state is CopyState.READY or _is_given(copy)) + _bytes(leaving)
    waiting = [copy for copy in staying if copy.state is CopyState.LOADING and copy.room is Room.PROMISED]
    for copy in (*waiting, *rooms.promises):
        if opened_bytes + copy.memory_bytes <= memory.limit_bytes:
            opened_bytes += copy.memory_bytes
            rooms.grants.append(copy)
    return rooms


def evictable(copy: Copy, staying: Iterable[Copy], memory: Memory, *, free_bytes: int) -> list[Copy] | None:
    """The copies to let go of so that this one fits: those used longest ago, and none that need not go. None: it cannot be."""
    idle = [other for other in staying if _may_leave(other, memory) and (copy.may_evict or other.key in memory.spare)]
    idle.sort(key=lambda other: (other.key not in memory.spare, _usage(other, memory).last_used_s, other.key))
    chosen: list[Copy] = []
    missing_bytes = copy.memory_bytes - free_bytes
    for other in idle:
        if _bytes(chosen) >= missing_bytes:
            break
        chosen.append(other)
    if _bytes(chosen) < missing_bytes:
        return None
    for other in reversed(chosen[:]):  # a later, larger one may have made an earlier one needless
        if _bytes(chosen) - other.memory_bytes >= missing_bytes:
            chosen.remove(other)
    return chosen


def taken_bytes(spec: ModelSpec, files_bytes: int) -> int:
    """What an open copy of this model takes."""
    return spec.memory_bytes or BASE_BYTES + int(FACTORS.get(spec.engine, _UNKNOWN_ENGINE) * files_bytes)


def is_pinned(spec: ModelSpec) -> bool:
    """Whether parameter `pinned` keeps open copies here. Raises ModelRefused."""
    text = spec.parameters.get("pinned", "false")
    if text not in ("true", "false"):
        raise ModelRefused(f"parameter 'pinned' of model {spec.model!r} is {text!r}; true or false is expected")
    return text == "true"


def shown_bytes(count: int) -> str:
    """For a person: in MiB, or in bytes where that says more."""
    return f"{count / MIB:,.0f} MiB" if count >= 10 * MIB else f"{count} bytes"


def _decide(copy: Copy, staying: Sequence[Copy], memory: Memory, rooms: Rooms) -> None:
    gone = {eviction.copy.key for eviction in rooms.evictions}
    others = [other for other in staying if other.key not in gone]
    if rooms.reserve(copy.memory_bytes):
        rooms.promises.append(copy)
        return
    victims = evictable(copy, others, memory, free_bytes=rooms.free_bytes)
    if victims is None:
        rooms.refusals.append(Refusal(copy, _refusal(copy, rooms, memory)))
        return
    rooms.evictions.extend(Eviction(victim, copy) for victim in victims)
    rooms.free_bytes += _bytes(victims) - copy.memory_bytes
    rooms.promises.append(copy)


def _refusal(copy: Copy, rooms: Rooms, memory: Memory) -> str:
    held_bytes = memory.limit_bytes - rooms.free_bytes
    if copy.memory_bytes > memory.limit_bytes:
        whom = "so it never fits here"
    elif copy.may_evict:
        whom = "too much of it by copies that are in use or pinned"
    else:
        whom = "and copies are let go of for it once only"
    return (
        f"model {copy.model!r} version {copy.version} needs {shown_bytes(copy.memory_bytes)} of memory;"
        f" {shown_bytes(held_bytes)} of the {shown_bytes(memory.limit_bytes)} allowed are held, {whom};"
        " unload some, or allow more with --memory-bytes"
    )


def _may_leave(copy: Copy, memory: Memory) -> bool:
    return copy.state is CopyState.READY and not copy.pinned and not _usage(copy, memory).busy


def _usage(copy: Copy, memory: Memory) -> Usage:
    return memory.usage.get(copy.key, _UNUSED)


def _is_committed(copy: Copy) -> bool:
    return copy.state is CopyState.READY or (copy.state is CopyState.LOADING and copy.room in (Room.PROMISED, Room.GIVEN))


def _is_given(copy: Copy) -> bool:
    return copy.state is CopyState.LOADING and copy.room is Room.GIVEN


def _bytes(copies: Iterable[Copy]) -> int:
    return sum(copy.memory_bytes for copy in copies)


_UNUSED = Usage(busy=False, last_used_s=0.0)
