"""What is wished for, and what workers are told: the nouns of `placement.copies.assign` and `placement.copies.scale`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from placement.copies.demand import DemandKey
from placement.types import Copy, CopyState, Worker, newest
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId


@dataclass(frozen=True, slots=True)
class Placement:
    """A wish: this many copies of a model version in this region."""

    model: ModelName
    version: ModelVersion
    digest: Digest
    region: Region
    copies: int
    """At least so many; 0 with `max_copies`: none until somebody asks; else none any more."""
    generation: int
    """Grows with every wish for this model version and region: who failed to load it tries again."""
    max_copies: int = 0
    """More than `copies`: as many as are asked for, up to this."""
    tier: str = ""
    """A worker must be of it; empty: of any."""
    labels: frozenset[str] = frozenset()
    """A worker must have all of them."""
    memory_bytes: int = 0
    """What a copy is thought to take until one is loaded and says; 0 = unknown."""
    idle_s: int = 0
    """Copies above the least are given up after so long without a request; 0 = by the scheduler's own rule."""

    @property
    def key(self) -> DemandKey:
        return self.region, self.model, self.version

    @property
    def is_wanted(self) -> bool:
        """Whether there are to be copies, now or when somebody asks."""
        return self.copies > 0 or self.max_copies > 0

    def suits(self, worker: Worker) -> bool:
        """Whether the worker is of the tier and has the labels."""
        return (not self.tier or self.tier in worker.tiers) and self.labels <= worker.labels


@dataclass(frozen=True, slots=True)
class AssignedModel:
    """What one worker should hold."""

    model: ModelName
    version: ModelVersion
    digest: Digest
    generation: int


Assignments = Mapping[WorkerId, Collection[AssignedModel]]
Callers = Mapping[ModelName, frozenset[str]]
"""Tenants that may call each model, its owner among them. One that is not in here is given to any worker: it looks itself."""


@dataclass(frozen=True, slots=True)
class Bars:
    """What is not to be tried for now."""

    relieved: frozenset[tuple[WorkerId, Digest]] = frozenset()
    """These workers are not to hold these."""
    exhausted: frozenset[tuple[Region, Digest]] = frozenset()
    """These are given to no further worker of the region."""


NO_BARS = Bars()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What demand makes of the wishes, by key. What is not in here: as many as wished for, never asked for."""

    copies: Mapping[DemandKey, int] = field(default_factory=dict)
    used_s: Mapping[DemandKey, float] = field(default_factory=dict)
    """When each was last asked for, on any one clock."""


AS_WISHED = Wanted()


def was_evicted(copy: Copy) -> bool:
    """Whether its worker let go of it for want of memory: the only copies that stay UNAVAILABLE, with their reason."""
    return copy.state is CopyState.UNAVAILABLE and bool(copy.reason)


def newest_wished(placements: Iterable[Placement]) -> dict[tuple[Region, ModelName], ModelVersion]:
    """What counts for requests that named no version while no copy was there to tell which they meant."""
    versions: dict[tuple[Region, ModelName], list[ModelVersion]] = {}
    for wish in placements:
        if wish.is_wanted:
            versions.setdefault((wish.region, wish.model), []).append(wish.version)
    return {of: newest(numbers) for of, numbers in versions.items()}
