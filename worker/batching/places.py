"""The places that sequences hold: rows of the engine's slots. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush

from worker.batching.queue import DEFAULT_QUEUE_SIZE
from worker.types import QueuePolicy, SequenceStrategy


@dataclass(frozen=True, slots=True)
class SequencePolicy:
    model: str
    strategy: SequenceStrategy
    rows: int
    """Of one execution, at least 1."""
    slots: int = 1
    max_sequences: int = 0
    """That hold a place; 0 = rows times slots, which is also the most for DIRECT."""
    max_waiting: int = DEFAULT_QUEUE_SIZE
    """Sequences that wait for a place."""
    max_requests: int = DEFAULT_QUEUE_SIZE
    max_idle_s: float = 1.0
    delay_s: float = 0.0
    preferred_rows: frozenset[int] = frozenset()
    queue: QueuePolicy = field(default_factory=QueuePolicy)
    id_datatype: str = ""
    """What the model takes an id as; empty = it is not told."""

    @property
    def places(self) -> int:
        every = self.rows * self.slots
        if self.strategy is SequenceStrategy.DIRECT:
            return min(self.max_sequences or every, every)
        return self.max_sequences or every


@dataclass(frozen=True, slots=True)
class Place:
    slot: int
    row: int


class Places:
    """The rows of every slot. The emptiest slot and its lowest row go first."""

    def __init__(self, policy: SequencePolicy) -> None:
        self.free = policy.places
        """Places that may still be taken."""
        self._held: list[set[int]] = [set() for _ in range(policy.slots)]
        self._given_back: list[list[int]] = [[] for _ in range(policy.slots)]
        self._fresh = [0] * policy.slots
        """Rows from here on were never held: a manifest may speak of many more than there will be sequences."""

    def take(self) -> Place | None:
        if not self.free:
            return None
        slot = min(range(len(self._held)), key=lambda slot: len(self._held[slot]))
        if self._given_back[slot]:
            row = heappop(self._given_back[slot])
        else:
            row = self._fresh[slot]
            self._fresh[slot] += 1
        self._held[slot].add(row)
        self.free -= 1
        return Place(slot, row)

    def give_back(self, place: Place) -> None:
        self._held[place.slot].remove(place.row)
        heappush(self._given_back[place.slot], place.row)
        self.free += 1

    def held(self, slot: int) -> int:
        return len(self._held[slot])

    def height(self, slot: int) -> int:
        """Rows up to the highest that is held."""
        return max(self._held[slot], default=-1) + 1
