"""The nouns of a decision: what the fleet looks like, what is asked of it, what was answered and why.

Values only. Owns no state: `placement.view` indexes workers, `placement.routing.state` keeps what one caller has reserved.
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
    memory_bytes: int = 0
    """What it takes of its worker's memory, or is thought to take; 0 = unknown."""
    capabilities: frozenset[str] = frozenset()
    """What may be asked of it beyond its task, of `runtime.model_traits.CAPABILITIES`."""
    cacheable: bool = False
    """The same request gets the same answer: one given before may be given again."""
    context_tokens: int = 0
    """Prompt and answer together; 0 = unknown."""
    cost_per_million_tokens: float = 0.0
    """Beside those of other models; 0 = unknown."""


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
    labels: frozenset[str] = frozenset()
    memory_budget_bytes: int = 0
    """What models may take of its memory, all together; 0 = it does not say."""
    gpu_memory_bytes: int = 0
    """Of its largest GPU; 0 = it has none."""
    cost: float = 1.0
    """What a request here costs beside one elsewhere."""
    sealed_address: str = ""
    """Where clients with a reservation reach it; empty: nowhere."""
    kserve_address: str = ""
    """Where it speaks KServe itself; empty: nowhere."""

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
    """The highest weighted sum of everything that `Weights` names."""
    ROUND_ROBIN = "round-robin"
    WEIGHTED_ROUND_ROBIN = "weighted-round-robin"
    """In turns, as often as capacity says (nginx's smooth kind)."""
    LEAST_LOADED = "least-loaded"
    TWO_CHOICES = "two-choices"
    """The less loaded of two drawn at random (Mitzenmacher, The power of two choices, 2001)."""
    LATENCY = "latency"
    """The lowest moving average of latency, scaled by how many wait there."""
    COST = "cost"
    """The cheapest with room, the less loaded of equals."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What `affinity` weighs. Every value weighed lies in 0..1."""

    session: float = 0.5
    """The session's worker is left once it is half a worker fuller than the emptiest one."""
    prefix: float = 0.5
    """By how much of the prompt's beginning the worker saw last."""
    occupancy: float = 1.0
    """Against: (ours + others' + rows waiting) / capacity."""
    slowness: float = 0.25
    """Against: the moving average of latency."""
    proximity: float = 0.5
    """Against: the round trip to the worker's region, measured or from the table."""
    gpu: float = 0.0
    """For: the memory of its largest GPU, beside the largest among the candidates."""
    cost: float = 0.0
    """Against: its cost, beside the dearest among the candidates. At least 0.25 where regions are chosen among."""
    preferred: float = 0.5
    """For: a rule prefers it."""


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
    """Workers that failed this very request already. Looked at before any affinity (litellm#32308)."""
    prefix: tuple[int, ...] = ()
    """Hashes of the prompt's beginning, each of one block and all before it; see `placement.routing.prefixes`."""
    sticky: bool = False
    """The session has state at its worker: nobody else will do while that one is there and ready."""
    draw: int = 0
    """64 random bits of the caller, for strategies that need some."""


class Why(enum.Enum):
    """What made the granted worker the one."""

    SCORE = "best score"
    SESSION = "the session's own worker"
    TURN = "next in turn"
    DRAW = "the less loaded of two drawn"
    LATENCY = "lowest latency for how many wait"
    COST = "the cheapest with room"
    ABROAD = "no place in its own region"
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
    """Whose turn moves to this worker (round-robin, weighted or not)."""
    credits: object = field(default=None, compare=False, repr=False)
    """What everybody is owed after this turn (weighted round-robin); see `placement.routing.rotation`."""
    model: ModelName = field(default=ModelName(""))
    prefix: tuple[int, ...] = ()
    """What the worker will have seen of prompts once it has answered."""
    session_key: str = ""
    """The session that has its state there from now on; empty: none has."""


class Refusal(enum.Enum):
    """Why no worker takes it, in the order in which it is found out."""

    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    UNKNOWN_VERSION = "UNKNOWN_VERSION"
    NOT_READY = "NOT_READY"
    NO_REGION = "NO_REGION"
    DENIED = "DENIED"
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
    FAILED = "failed"
    """The worker answered that it could not do what it should have: INTERNAL, UNKNOWN, DATA_LOSS."""
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
