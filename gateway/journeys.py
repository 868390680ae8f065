"""One request's way through the mesh so far, and what a failure on it means.

Pure. Decides whether another worker may fare better, and what an error says of the worker it came from. Three attempts at most
until an answer comes; a generation that had answers begins another leg then, with attempts of its own, three times at most.
What they cost is `placement.routing.retry_budget`'s to allow, but for what was lost together with its worker: that is no more
than was under way there, happens once, and all of it at one moment, which no budget for steady failures has room for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gateway.links.types import CallContext, LinkFull, LinkLost, WorkerBusy
from placement.rules import Route
from placement.types import Outcome, Request
from runtime.errors import Code, PenstockError, UpstreamBusy, UpstreamUnavailable
from runtime.ids import ModelVersion, WorkerId

MAX_ATTEMPTS = 3
MAX_MIGRATIONS = 3
_GONE = frozenset({"LINK_LOST", "DRAINING", "MODEL_LEAVING"})
"""Reasons by which a call fails because its worker, or the copy there, went away (worker.execute, worker.batching)."""
_FAULTS = (Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS)


@dataclass(slots=True)
class Journey:
    """Begins where a request does not get a place at once, or fails at its first."""

    request: Request
    route: Route
    call: CallContext
    counted: bool = False
    """It is in what this gateway reports of its model."""
    sent: CallContext = field(init=False)
    """The call as it goes to the worker found: with the hold that was given for it, if one was."""
    asked: int = 0
    """How often the scheduler was asked for a place."""
    give_up_s: float | None = None
    failure: PenstockError | None = None
    failed_on: set[WorkerId] = field(default_factory=set)
    busy_on: set[WorkerId] = field(default_factory=set)
    """Those of them that had no place, and may have one later."""
    unconnected: set[WorkerId] = field(default_factory=set)
    migrations: int = 0
    migrating: bool = False
    """Its latest worker was lost after an answer, and none was found to go on yet."""
    was_lost: bool = False
    """It went away with its worker before, which costs the budget nothing the first time."""
    queues_only: bool = False
    """It has tried as many workers as it may: only a place that is kept for it will do."""

    def __post_init__(self) -> None:
        self.sent = self.call

    def fail(self, worker_id: WorkerId, error: PenstockError) -> None:
        """This worker failed it: another is to be found."""
        self.failure = error
        self.failed_on.add(worker_id)
        if isinstance(error, WorkerBusy | LinkFull):
            self.busy_on.add(worker_id)
        self.request = replace(self.request, exclude=frozenset(self.failed_on))
        self.sent = self.call

    def migrate(self, worker_id: WorkerId, version: ModelVersion, error: PenstockError) -> None:
        """This worker was lost in the middle of a generation: another that has the same version is to be found."""
        self.migrations += 1
        self.migrating = True
        self.asked, self.give_up_s, self.queues_only = 0, None, False
        self.busy_on.clear()
        self.unconnected.clear()
        self.failed_on.clear()  # of a leg that is over: those workers may be well again
        self.fail(worker_id, error)
        self.request = replace(self.request, version=version)

    def is_free(self, error: PenstockError) -> bool:
        """Whether this failure costs the retry budget nothing: the request was lost with its worker, for the first time."""
        if self.was_lost or error.reason not in _GONE:
            return False
        self.was_lost = True
        return True

    @property
    def spent(self) -> bool:
        return len(self.failed_on) >= MAX_ATTEMPTS

    @property
    def met_busy(self) -> bool:
        """Every worker that it was sent to last had no place, or the last of them."""
        return isinstance(self.failure, WorkerBusy | LinkFull)


def outcome_of(error: PenstockError) -> Outcome:
    """What it says of the way to the worker, and of the worker."""
    if error.code is Code.UNAVAILABLE and not isinstance(error, UpstreamUnavailable):
        return Outcome.PATH_FAILED
    if error.code in _FAULTS:
        return Outcome.FAILED
    return Outcome.UNKNOWN if error.code is Code.DEADLINE_EXCEEDED else Outcome.ANSWERED


def may_retry(error: PenstockError) -> bool:
    """Whether another worker may fare better. NOT_FOUND: the copy was unloaded while the view still showed it."""
    if isinstance(error, LinkLost):
        return not error.started
    if isinstance(error, UpstreamBusy):
        return False
    return error.code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.NOT_FOUND)


def may_migrate(error: PenstockError) -> bool:
    """Whether a generation that this broke off may go on elsewhere: its worker went, or failed in the middle of it."""
    if isinstance(error, UpstreamUnavailable):
        return False
    return error.code is Code.UNAVAILABLE or error.code in _FAULTS
