"""The nouns of a simulation. Times are virtual seconds since its beginning."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.ids import Digest, ModelName, ModelVersion, Region

VERSION = ModelVersion("1")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request, as it reaches a gateway of its region."""

    at_s: float
    region: Region
    model: ModelName
    tenant: str
    session: str
    work_s: float
    """What it takes on a worker of speed 1 that does nothing else."""


@dataclass(frozen=True, slots=True)
class SimModel:
    name: ModelName
    digest: Digest
    memory_bytes: int
    load_s: float
    """Fetching and opening it on a worker of speed 1."""
    work_s: float
    """The mean of its requests' work."""
    share: float
    """Of all requests."""


@dataclass(frozen=True, slots=True)
class Churn:
    """Workers that leave at once, without a word, and others that join, spread evenly over the time."""

    joins: int = 0
    leaves: int = 0


@dataclass(frozen=True, slots=True)
class Partition:
    """A region whose gateways and scheduler hear nothing of the fleet's changes, nor each other, for a while."""

    region: Region
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated. `requests_per_s` is of all regions together, before the day's course moves it about."""

    workers: int = 10_000
    models: int = 500
    seconds: float = 600.0
    requests_per_s: float = 500.0
    tenants: int = 40
    zipf: float = 1.0
    """Exponent of the models' popularity; 1 is the classic one (Zipf)."""
    slots: int = 4
    """Requests that a worker takes at once."""
    deadline_s: float = 60.0
    """After so long a wait without a place a caller gives up."""
    churn: Churn = Churn()
    partitions: tuple[Partition, ...] = ()
    seed: int = 1


@dataclass(slots=True)
class Sample:
    """One stretch of time, for plots."""

    at_s: float
    requests: int = 0
    served: int = 0
    refused: int = 0
    expired: int = 0
    lost: int = 0
    """Their worker left under them and no attempt was left."""
    p50_s: float = 0.0
    p99_s: float = 0.0
    wait_p99_s: float = 0.0
    """Before a worker began, loads included."""
    utilisation: float = 0.0
    """Places taken, of all."""
    imbalance: float = 0.0
    """Standard deviation of occupancy over its mean, among workers that hold something ready."""
    loads: int = 0
    evictions: int = 0
    affinity: float = 0.0
    """Requests of a session that found the worker that had its last one."""
