"""The nouns of a decision: what the fleet looks like, what is asked of it, what was answered and why.

Values only. Owns no state: `placement.view` indexes workers, `placement.state` keeps what one caller has reserved.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from runtime.ids import EVERY_TENANT, Digest, ModelName, ModelVersion, Region, TenantId, WorkerId


class CopyState(enum.Enum):
    """Where a copy of a model is in its life, as its worker tells it (penstock.worker.v1.ModelState)."""

    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    UNLOADING = "UNLOADING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of a model version on one worker."""

    model: ModelName
    version: ModelVersion
    digest: Digest
    state: CopyState
    reason: str = ""
    """Why it failed or is unavailable."""
    task: str = "tensor"
    max_batch_size: int = 0
    """Rows that one execution takes; 0 = no batch dimension."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as its presence shows it. Two are equal when everything but the heartbeat's own number is."""

    worker_id: WorkerId
    region: Region
    address: str
    tiers: frozenset[str] = frozenset()
    copies: tuple[Copy, ...] = ()
    max_in_flight: int = 1
    sequence: int = field(default=0, compare=False)
    tenants: frozenset[TenantId] = frozenset()
    """Whose models it may load, by its certificate; empty: everybody's."""

    def may_load(self, callers: frozenset[str]) -> bool:
        """Whether it is for somebody who may call the model: its owner, and those it is shared with."""
        return not self.tenants or EVERY_TENANT in callers or bool(self.tenants & callers)

    def copy_of(self, model: ModelName, version: ModelVersion) -> Copy | None:
        for copy in self.copies:
            if copy.model == model and copy.version == version:
                return copy
        return None


class Strategy(enum.Enum):
    """How to choose among workers that could all take the request."""

    AFFINITY = "affinity"
    ROUND_ROBIN = "round-robin"
    LEAST_LOADED = "least-loaded"


@dataclass(frozen=True, slots=True)
class Weights:
    """What `affinity` weighs. Occupancy and slowness lie in 0..1; the session's own worker scores 1, the others 0."""

    session: float = 0.5
    """The session's worker is left once it is half a worker fuller than the emptiest one."""
    occupancy: float = 1.0
    slowness: float = 0.25


ANY_VERSION = ModelVersion("")
"""The newest that is ready."""

ANY_REGION = Region("")


@dataclass(frozen=True, slots=True)
class Request:
    """What has to be placed."""

    model: ModelName
    version: ModelVersion = ANY_VERSION
    region: Region = ANY_REGION
    session_key: str = ""
    """Requests of one key prefer one worker; empty: none is preferred."""
    exclude: frozenset[WorkerId] = frozenset()
    """Workers that failed this very request already."""


class Why(enum.Enum):
    """What made the granted worker the one."""

    SCORE = "best score"
    SESSION = "the session's own worker"
    TURN = "next in turn"
    PROBE = "first request after its inhibition ended"
    LAST_RESORT = "inhibited or draining, but no other has room"


@dataclass(frozen=True, slots=True)
class CandidateKey:
    """Whose turn is kept apart: one model version in one region (empty: any)."""

    model: ModelName
    version: ModelVersion
    region: Region


@dataclass(frozen=True, slots=True)
class Granted:
    """This worker takes it. Is itself the delta: `RoutingState.reserve` applies it, `RoutingState.release` takes it back."""

    worker_id: WorkerId
    version: ModelVersion
    why: Why
    score: float
    slot: int
    """The worker's row in the state's columns."""
    tenure: int
    """Which stay in the fleet: a worker that left and came back owes nothing."""
    trial: bool = False
    """The worker was inhibited when it was granted: how this request ends decides whether it is trusted again."""
    turn: CandidateKey | None = None
    """Whose cursor moves to this worker (round-robin)."""


class Refusal(enum.Enum):
    """Why no worker takes it, in the order in which it is found out."""

    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    UNKNOWN_VERSION = "UNKNOWN_VERSION"
    NOT_READY = "NOT_READY"
    NO_REGION = "NO_REGION"
    ALL_EXCLUDED = "ALL_EXCLUDED"
    ALL_FULL = "ALL_FULL"


@dataclass(frozen=True, slots=True)
class Refused:
    """No worker takes it: why, for the code, and a sentence for the person."""

    reason: Refusal
    detail: str


Decision = Granted | Refused


class Outcome(enum.Enum):
    """How a granted request ended, as far as the way to the worker is concerned."""

    ANSWERED = "answered"
    """The worker answered, be it with an error of its own."""
    PATH_FAILED = "path failed"
    """The worker could not be reached, or was lost before it answered."""
    UNKNOWN = "unknown"
    """Nobody waited for the answer: cancelled, or out of time."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy one worker is, as one caller knows it."""

    in_flight: int = 0
    """Requests this caller has reserved there."""
    foreign_in_flight: int = 0
    """Requests of others, as the worker last said."""
    queued_rows: int = 0
    latency_ewma_ms: float = 0.0


def newest(versions: Iterable[ModelVersion]) -> ModelVersion:
    """The highest number; versions are positive decimal numbers."""
    return max(versions, key=version_number)


def version_number(version: ModelVersion) -> tuple[int, str]:
    """Orders versions by their number; one that is no number comes before all that are."""
    return (int(version), version) if version.isdecimal() else (-1, version)
