"""The workers that can answer for one model version in one region, laid out for choosing among thousands in microseconds.

Owns the layout: seats sorted by worker id, so that the first of equals is the one with the lowest id, and numpy columns beside
them; those that only some routes look at are laid out when the first does. Never holds what changes with every request: that is
`placement.routing.state`, indexed by a seat's slot.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from placement.types import CandidateKey, Worker
from runtime.ids import Region, WorkerId

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Seat:
    """A worker's place in the view: where its columns are, and what seldom changes while it sits there."""

    worker_id: WorkerId
    slot: int
    tenure: int
    capacity: int
    share: float
    """Of the worker's capacity that one request takes."""
    hash64: int
    region: Region
    tiers: frozenset[str]
    labels: frozenset[str]
    gpu_memory_bytes: int
    cost: float


@dataclass(frozen=True, slots=True)
class Regions:
    """Where candidates are: the regions by name, and for each candidate the number of its own among them."""

    names: tuple[Region, ...]
    numbers: Integers


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Sorted by worker id. The arrays follow that order."""

    key: CandidateKey
    seats: tuple[Seat, ...]
    ids: tuple[WorkerId, ...]
    slots: Integers
    capacities: Floats
    shares: Floats
    hashes: Hashes
    _columns: dict[str, Floats] = field(default_factory=dict, repr=False)
    _regions: list[Regions] = field(default_factory=list, repr=False)

    def index_of(self, worker_id: WorkerId) -> int:
        """Where this worker is, or -1."""
        index = bisect_left(self.ids, worker_id)
        return index if index < len(self.ids) and self.ids[index] == worker_id else -1

    def with_changes(self, seated: Mapping[WorkerId, Seat], left: Iterable[WorkerId]) -> Candidates:
        """These, with some seats added or replaced and some gone."""
        seats = {seat.worker_id: seat for seat in self.seats}
        for worker_id in left:
            seats.pop(worker_id, None)
        seats.update(seated)
        return candidates_of(self.key, seats.values())

    def tenures(self) -> Floats:
        return self._column("tenures", lambda: [seat.tenure for seat in self.seats])

    def costs(self) -> Floats:
        return self._column("costs", lambda: [seat.cost for seat in self.seats])

    def cost_shares(self) -> Floats:
        """Each one's cost beside the dearest's."""
        return self._column("cost_shares", lambda: _beside_largest([seat.cost for seat in self.seats]))

    def gpu_shares(self) -> Floats:
        """Each one's largest GPU beside the largest of all."""
        return self._column("gpu_shares", lambda: _beside_largest([float(seat.gpu_memory_bytes) for seat in self.seats]))

    def regions(self) -> Regions:
        if not self._regions:
            names = tuple(sorted({seat.region for seat in self.seats}))
            number_of = {region: number for number, region in enumerate(names)}
            self._regions.append(Regions(names, np.array([number_of[seat.region] for seat in self.seats], dtype=np.int64)))
        return self._regions[0]

    def by_region(self, values: Sequence[float]) -> Floats:
        """For each the value of its region; `values` as `regions().names`."""
        return np.array(values, dtype=np.float64).take(self.regions().numbers)

    def _column(self, name: str, values: Callable[[], list[float] | list[int]]) -> Floats:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = np.array(values(), dtype=np.float64)
        return column


def _beside_largest(values: list[float]) -> list[float]:
    largest = max(values, default=0.0)
    return [value / largest if largest > 0 else 0.0 for value in values]


def candidates_of(key: CandidateKey, seats: Iterable[Seat]) -> Candidates:
    """Lay these seats out."""
    ordered = tuple(sorted(seats, key=attrgetter("worker_id")))
    return Candidates(
        key,
        ordered,
        tuple([seat.worker_id for seat in ordered]),
        np.array([seat.slot for seat in ordered], dtype=np.int64),
        np.array([seat.capacity for seat in ordered], dtype=np.float64),
        np.array([seat.share for seat in ordered], dtype=np.float64),
        np.array([seat.hash64 for seat in ordered], dtype=np.uint64),
    )


def seat_of(worker: Worker, slot: int, tenure: int) -> Seat:
    capacity = worker.max_in_flight
    return Seat(
        worker.worker_id,
        slot,
        tenure,
        capacity,
        1.0 / max(capacity, 1),
        hash64(worker.worker_id),
        worker.region,
        worker.tiers,
        worker.labels,
        worker.gpu_memory_bytes,
        worker.cost,
    )


def seated_alike(one: Worker, other: Worker) -> bool:
    """Whether a seat made for one fits the other."""
    return (
        one.max_in_flight == other.max_in_flight
        and one.region == other.region
        and one.tiers == other.tiers
        and one.labels == other.labels
        and one.gpu_memory_bytes == other.gpu_memory_bytes
        and one.cost == other.cost
    )


def hash64(text: str) -> int:
    """64 well-mixed bits of a name, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
