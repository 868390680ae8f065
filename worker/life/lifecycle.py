"""The life of one copy of a model on this worker, as a table.

Theory of operation. A copy comes into being UNAVAILABLE when it is ordered, and nothing but an event of its life moves it on:

    UNAVAILABLE -- load begun --> LOADING
    LOADING -- loaded --> READY
    LOADING -- load failed --> FAILED
    LOADING -- withdrawn --> UNLOADING
    READY -- retired --> DRAINING
    DRAINING -- drained --> UNLOADING
    UNLOADING -- freed --> UNAVAILABLE
    FAILED -- load begun --> LOADING
    FAILED -- withdrawn --> UNLOADING

Only READY answers new requests; DRAINING answers those it has. FAILED keeps its reason until it is loaded anew or given up. An
event that has no place in a state is a bug and raises. A copy that is UNAVAILABLE again is forgotten, unless it was let go of
to make room: that one stays with its reason, because its order stands and room may come.

While it is LOADING a copy also asks for memory. Room is UNASKED until its files are here, then WANTED, PROMISED (nobody else
gets it, but others may have to leave first) and GIVEN (it may be opened). Who gets it is `memory.py`'s decision.

Owns the states and the collection of copies with who is told of changes. Never loads, never waits: `reconcile.py` does.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from runtime.errors import Code, PenstockError
from runtime.ids import Digest, ModelName, ModelVersion
from worker.traits import NO_TRAITS, Traits
from worker.types import CopyState, Task

MAX_REASON_CHARACTERS = 300

CopyKey = tuple[ModelName, ModelVersion]


class IllegalTransition(PenstockError, code=Code.INTERNAL, reason="ILLEGAL_TRANSITION"):
    """An event came to a copy in whose state it has no place."""


class LifeEvent(enum.Enum):
    """What happens to a copy."""

    LOAD_BEGUN = "load begun"
    LOADED = "loaded"
    LOAD_FAILED = "load failed"
    WITHDRAWN = "withdrawn"
    RETIRED = "retired"
    DRAINED = "drained"
    FREED = "freed"


_S, _E = CopyState, LifeEvent

TRANSITIONS: Mapping[CopyState, Mapping[LifeEvent, CopyState]] = MappingProxyType(
    {
        _S.UNAVAILABLE: {_E.LOAD_BEGUN: _S.LOADING},
        _S.LOADING: {_E.LOADED: _S.READY, _E.LOAD_FAILED: _S.FAILED, _E.WITHDRAWN: _S.UNLOADING},
        _S.READY: {_E.RETIRED: _S.DRAINING},
        _S.DRAINING: {_E.DRAINED: _S.UNLOADING},
        _S.UNLOADING: {_E.FREED: _S.UNAVAILABLE},
        _S.FAILED: {_E.LOAD_BEGUN: _S.LOADING, _E.WITHDRAWN: _S.UNLOADING},
    }
)


class Room(enum.Enum):
    """How far a LOADING copy has come to the memory it needs."""

    UNASKED = "unasked"
    WANTED = "wanted"
    PROMISED = "promised"
    GIVEN = "given"


@dataclass(slots=True, eq=False)
class Copy:
    """One copy: what it is, where it is in its life, and why."""

    model: ModelName
    version: ModelVersion
    digest: Digest
    generation: int
    """Of the order that it was last loaded for."""
    state: CopyState = CopyState.UNAVAILABLE
    reason: str = ""
    task: Task | None = None
    """Known once the manifest was read."""
    max_batch_size: int = 0
    traits: Traits = NO_TRAITS
    """Those of the manifest once it was read, and with its engine's once it is open."""
    signer: bytes = b""
    """Public key of who signed the manifest, known once that was read; empty for a folder that is served as it lies."""
    retry_at_s: float | None = None
    """For a FAILED one whose cause may pass: when it is worth another try, on the monotonic clock."""
    asked: int = 0
    """Which of LoadModel's calls it was last loaded for; 0 = none."""
    failure: PenstockError | None = None
    """What the last load failed with."""
    memory_bytes: int = 0
    """What it takes when it is open, as far as is known before; 0 until its manifest was read."""
    measured_bytes: int = 0
    """By how much the process grew when it was opened; 0 where something else was opened meanwhile."""
    pinned: bool = False
    """Never let go of to make room."""
    room: Room = Room.UNASKED
    may_evict: bool = True
    """Whether others may be let go of for it; once for each time it is ordered or asked for."""
    awaits_room: bool = False
    """UNAVAILABLE or FAILED for want of memory: loaded when it fits beside the others."""

    @property
    def key(self) -> CopyKey:
        return self.model, self.version


class Holdings:
    """The copies of this worker, and who is told when one of them changes."""

    def __init__(self) -> None:
        self._copies: dict[CopyKey, Copy] = {}
        self._watching: list[asyncio.Event] = []

    def watch(self) -> asyncio.Event:
        """An event that is set at every change; who waits for it clears it."""
        event = asyncio.Event()
        self._watching.append(event)
        return event

    @contextmanager
    def watching(self) -> Iterator[asyncio.Event]:
        """As `watch`, for as long as the context lasts."""
        event = self.watch()
        try:
            yield event
        finally:
            self._watching.remove(event)

    def add(self, copy: Copy) -> Copy:
        self._copies[copy.key] = copy
        return copy

    def get(self, key: CopyKey) -> Copy | None:
        return self._copies.get(key)

    def __iter__(self) -> Iterator[Copy]:
        return iter(sorted(self._copies.values(), key=lambda copy: copy.key))

    def __len__(self) -> int:
        return len(self._copies)

    def move(self, copy: Copy, event: LifeEvent, reason: str = "") -> None:
        """The event happened to the copy. Raises IllegalTransition."""
        after = TRANSITIONS[copy.state].get(event)
        if after is None:
            raise IllegalTransition(
                f"model {copy.model!r} version {copy.version} is {copy.state.value}; '{event.value}' has no place there"
            )
        copy.state, copy.reason = after, _shown(reason)
        if after is not CopyState.FAILED:
            copy.retry_at_s = None
        if after is not CopyState.LOADING:
            copy.room = Room.UNASKED
        if after is CopyState.UNAVAILABLE and not copy.awaits_room:
            self.forget(copy)
        self.tell()

    def forget(self, copy: Copy) -> None:
        """Nobody orders it any more, and it takes nothing."""
        if self._copies.get(copy.key) is copy:
            del self._copies[copy.key]
            self.tell()

    def describe(self, copy: Copy, *, task: Task, max_batch_size: int, traits: Traits = NO_TRAITS) -> None:
        """The copy's manifest was read, or its engine has been opened and says more."""
        copy.task, copy.max_batch_size, copy.traits = task, max_batch_size, traits
        self.tell()

    def explain(self, copy: Copy, reason: str) -> None:
        """Why it still is in this state."""
        copy.reason = _shown(reason)
        self.tell()

    def tell(self) -> None:
        """Something about a copy is different."""
        for event in self._watching:
            event.set()


def _shown(reason: str) -> str:
    """What others can be told: bounded, and encodable."""
    return reason[:MAX_REASON_CHARACTERS].encode(errors="replace").decode()
