"""The workers that can answer for one model version in one region, laid out for choosing among thousands in microseconds.

Owns the layout: seats sorted by worker id, so that the first of equals is the one with the lowest id, and numpy columns beside
them. Never holds what changes with every request: that is `placement.state`, indexed by a seat's slot.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from placement.types import CandidateKey
from runtime.ids import WorkerId

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Seat:
    """A worker's place in the view: where its columns are and what never changes while it sits there."""

    worker_id: WorkerId
    slot: int
    tenure: int
    capacity: int
    share: float
    """Of the worker's capacity that one request takes."""
    hash64: int


@dataclass(frozen=True, slots=True)
class Candidates:
    """Sorted by worker id. The arrays follow that order."""

    key: CandidateKey
    seats: tuple[Seat, ...]
    ids: tuple[WorkerId, ...]
    slots: Integers
    capacities: Floats
    shares: Floats
    hashes: Hashes

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


def hash64(text: str) -> int:
    """64 well-mixed bits of a name, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
