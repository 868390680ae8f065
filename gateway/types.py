"""The nouns that the gateway's parts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from placement.copies.assign import Placement
from placement.rules import RoutingPolicy
from placement.types import ANY_REGION, Worker
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId


@dataclass(frozen=True, slots=True)
class Leader:
    """A scheduler that leads some regions."""

    address: str
    regions: frozenset[Region] = frozenset()
    """Empty: every region that no other leader names."""
    term: int = 0
    """Grows with every election."""


@dataclass(frozen=True, slots=True)
class FleetNews:
    """What the scheduler says of the fleet: everything (`snapshot`), or what changed."""

    snapshot: bool
    workers: tuple[Worker, ...] = ()
    removed: tuple[WorkerId, ...] = ()
    stale: bool = False
    """The scheduler itself tells from memory."""
    placements: tuple[Placement, ...] | None = None
    """All wishes, of every region, or None where none changed."""
    policy: RoutingPolicy | None = None
    """None: as it was."""
    leaders: tuple[Leader, ...] | None = None
    """All of them, or None where none changed."""


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A model version as the registry lists it."""

    model: ModelName
    version: ModelVersion
    digest: Digest
    task: str
    published_at_s: int


@dataclass(frozen=True, slots=True)
class CapacityAsk:
    """A request that found no place, as the scheduler's queue takes it."""

    model: ModelName
    version: ModelVersion
    """Empty: any."""
    region: Region
    tenant: str
    until_s: float
    """When nobody waits for it any more; on the event loop's clock."""
    priority: int = 0
    exclude: frozenset[WorkerId] = frozenset()
    session_key: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """A place that is kept for one request."""

    worker_id: WorkerId
    version: ModelVersion
    hold_id: str


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """What was asked of one model version."""

    requests: int = 0
    refused: int = 0
    """Of these, found every copy full."""
    missed: int = 0
    """Of these, found no copy ready."""
    busy_s: float = 0.0
    """The time that requests spent at workers, added up."""

    def __add__(self, other: ModelCounts) -> ModelCounts:
        return ModelCounts(
            self.requests + other.requests,
            self.refused + other.refused,
            self.missed + other.missed,
            self.busy_s + other.busy_s,
        )


@dataclass(frozen=True, slots=True)
class WorkerSight:
    """One worker as this gateway finds it."""

    worker_id: WorkerId
    in_flight: int
    """This gateway's requests there."""
    told_in_flight: int
    """Everybody's, as the worker last said; rows that wait as well."""
    queued_rows: int
    latency_ms: float
    avoided: bool
    rtt_ms: float
    """0: not measured."""


@dataclass(frozen=True, slots=True)
class DemandReport:
    """What was asked of this gateway in one interval."""

    interval_s: float
    models: Mapping[tuple[Region, ModelName, ModelVersion], ModelCounts] = field(default_factory=dict)
    """By the region that requests were from; where it is empty, `region`."""
    workers: tuple[WorkerSight, ...] = ()
    region: Region = ANY_REGION
    """The gateway's own."""
