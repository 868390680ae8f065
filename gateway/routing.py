"""Takes a request to a worker: asks the policy, sends it over the worker's link, and elsewhere where that failed in time.

In time is before the first byte of an answer, within the caller's deadline, within three attempts and the retry budget. A way
that failed inhibits its worker; a worker that is full does not. Where no copy is ready but one is wanted, waits for the view to
change. Owns reservations from grant to release. Never parses a payload, never decides who may call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from time import perf_counter

from gateway.fleet import Fleet, Link
from gateway.links.types import CallContext, LinkLost, Method
from gateway.metrics import GatewayMetrics
from gateway.retries import RetryBudget
from gateway.versions import gone
from placement.policy import choose
from placement.types import CopyState, Granted, Outcome, Refusal, Refused, Request, Strategy
from runtime.errors import Code, DeadlineExceeded, PenstockError, UpstreamBusy, UpstreamUnavailable, VersionWithdrawn
from runtime.ids import ModelVersion, WorkerId

MAX_ATTEMPTS = 3
_FAILED_WAIT_S = 1.0
"""How long a request waits where every copy has failed: as long as it takes to place one elsewhere."""

_SHED_RETRY_S = 0.25


class ModelUnknown(PenstockError, code=Code.NOT_FOUND, reason="MODEL_UNSERVED"):
    """No worker holds this model and nobody wants one to. The sentence is Triton's: clients match on it."""


class ModelCold(PenstockError, code=Code.UNAVAILABLE, reason="MODEL_NOT_READY"):
    """Copies are wanted or being loaded, but none became ready in time."""


class FleetFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="FLEET_FULL"):
    """Every copy holds as many requests as it takes."""


class WorkersUnreachable(PenstockError, code=Code.UNAVAILABLE, reason="WORKERS_UNREACHABLE"):
    """Copies are ready, but no way leads to them now."""


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    strategy: Strategy = Strategy.AFFINITY
    cold_wait_s: float = 10.0


@dataclass(slots=True)
class _Journey:
    """One request's way so far."""

    request: Request
    call: CallContext
    give_up_s: float | None = None
    failure: PenstockError | None = None
    failed_on: set[WorkerId] = field(default_factory=set)
    unconnected: set[WorkerId] = field(default_factory=set)


class Router:
    """Belongs to one event loop."""

    def __init__(
        self, fleet: Fleet, metrics: GatewayMetrics, settings: RoutingSettings | None = None, budget: RetryBudget | None = None
    ) -> None:
        self._fleet, self._metrics = fleet, metrics
        self._settings = settings or RoutingSettings()
        self._budget = budget or RetryBudget()
        self._loop = asyncio.get_running_loop()

    async def infer(self, request: Request, payload: bytes, call: CallContext) -> bytes:
        """inference.ModelInferRequest → ModelInferResponse. Raises what the worker answered, or why none was asked."""
        journey: _Journey | None = None
        loop, state = self._loop, self._fleet.state
        self._budget.note_request(loop.time())
        while True:
            granted = self._grant(request if journey is None else journey.request)
            if granted is None:
                journey = journey or _Journey(request, call)
                granted = await self._grant_in_time(journey)
            if journey is not None:
                self._count_retry(journey)
            link, started_s, latency_ms = self._fleet.links[granted.worker_id], perf_counter(), None
            outcome = Outcome.UNKNOWN
            state.reserve(granted)
            try:
                answer = await link.call(request.model, granted.version, payload, call)
                outcome, latency_ms = Outcome.ANSWERED, (perf_counter() - started_s) * 1000
                return answer
            except PenstockError as error:
                outcome = _outcome(error)
                journey = self._elsewhere(journey or _Journey(request, call), granted, error)
            finally:
                self._release(granted, link, outcome, latency_ms)

    async def stream(
        self,
        method: Method,
        request: Request,
        payload: bytes,
        call: CallContext,
        on_granted: Callable[[ModelVersion], None] | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """The answers, one by one; close it when leaving early. Raises like `infer`; after the first answer no retry.

        `on_granted` is told which version is asked, each time a worker is.
        """
        journey, loop, state = _Journey(request, call), self._loop, self._fleet.state
        self._budget.note_request(loop.time())
        while True:
            granted = self._grant(journey.request) or await self._grant_in_time(journey)
            self._count_retry(journey)
            if on_granted is not None:
                on_granted(granted.version)
            link, started_s, latency_ms, outcome = self._fleet.links[granted.worker_id], perf_counter(), None, Outcome.UNKNOWN
            state.reserve(granted)
            try:
                async with aclosing(link.stream(method, request.model, granted.version, payload, call)) as answers:
                    async for answer in answers:
                        if latency_ms is None:
                            outcome, latency_ms = Outcome.ANSWERED, (perf_counter() - started_s) * 1000
                        yield answer
                outcome = Outcome.ANSWERED
                return
            except PenstockError as error:
                outcome = _outcome(error)
                if latency_ms is not None:
                    raise
                journey = self._elsewhere(journey, granted, error)
            finally:
                self._release(granted, link, outcome, latency_ms)

    def _grant(self, request: Request) -> Granted | None:
        """A worker at once, or None where the way to one is longer."""
        fleet = self._fleet
        decision = choose(fleet.view, fleet.state, request, now_s=self._loop.time(), strategy=self._settings.strategy)
        if isinstance(decision, Granted) and fleet.links[decision.worker_id].ready:
            return decision
        return None

    async def _grant_in_time(self, journey: _Journey) -> Granted:
        """A worker that can be reached, however long it may take. Raises why there is none."""
        fleet = self._fleet
        while True:
            changed = fleet.changed
            request = replace(journey.request, exclude=journey.request.exclude | journey.unconnected)
            now_s = self._loop.time()
            decision = choose(fleet.view, fleet.state, request, now_s=now_s, strategy=self._settings.strategy)
            if isinstance(decision, Granted):
                link = fleet.links[decision.worker_id]
                if link.ready:
                    return decision
                self._pass_over(decision, link, now_s)
                journey.unconnected.add(decision.worker_id)
                continue
            await self._wait(journey, decision, changed)

    def _pass_over(self, granted: Granted, link: Link, now_s: float) -> None:
        if link.load.draining:
            self._hear(granted.worker_id, link, now_s)
        elif link.last_failure:
            self._fleet.state.inhibit(granted.worker_id, now_s)

    async def _wait(self, journey: _Journey, refused: Refused, changed: asyncio.Event) -> None:
        """Return when it may be worth choosing again. Raises if waiting cannot help, or when time is up."""
        fleet, now_s = self._fleet, self._loop.time()
        links = [fleet.links[each] for each in journey.unconnected if each in fleet.links]
        connecting = [link for link in links if not link.load.draining]
        error = self._refusal(journey, refused)
        if not connecting and not self._may_come(journey, refused):
            raise journey.failure or error
        if journey.give_up_s is None:
            self._metrics.waited()
            journey.give_up_s = now_s + self._patience_s(journey)
        give_up_s = journey.give_up_s
        deadline_s = journey.call.deadline_s
        until_s = give_up_s if deadline_s is None else min(give_up_s, deadline_s)
        if now_s >= until_s:
            if deadline_s is not None and deadline_s <= now_s:
                raise DeadlineExceeded(f"no time is left: {error.message}")
            raise journey.failure or error
        journey.unconnected.clear()
        await _first(changed, connecting, until_s - now_s)

    def _may_come(self, journey: _Journey, refused: Refused) -> bool:
        if not self._fleet.synced:
            return True
        if refused.reason is Refusal.NOT_READY:
            return True
        if refused.reason in (Refusal.UNKNOWN_MODEL, Refusal.UNKNOWN_VERSION):
            return self._fleet.placed(journey.request.model, journey.request.version)
        return False

    def _patience_s(self, journey: _Journey) -> float:
        copies = self._fleet.copies(journey.request.model, journey.request.version)
        if copies and all(copy.state is CopyState.FAILED for _, copy in copies):
            return min(_FAILED_WAIT_S, self._settings.cold_wait_s)
        return self._settings.cold_wait_s

    def _refusal(self, journey: _Journey, refused: Refused) -> PenstockError:
        request = journey.request
        if not self._fleet.synced:
            return ModelCold("this gateway has not heard from the scheduler yet; try again", retry_after_s=1.0)
        if refused.reason in (Refusal.UNKNOWN_MODEL, Refusal.UNKNOWN_VERSION):
            if self._fleet.placed(request.model, request.version):
                return ModelCold(f"{refused.detail}; it is to be loaded, but no worker has begun", retry_after_s=1.0)
            return unknown_model(request.model, request.version)
        if refused.reason is Refusal.ALL_FULL:
            return FleetFull(refused.detail, retry_after_s=_SHED_RETRY_S)
        if refused.reason is Refusal.ALL_EXCLUDED:
            return WorkersUnreachable(
                f"no way leads to a worker with model {request.model!r} now; try again", retry_after_s=1.0
            )
        return ModelCold(refused.detail, retry_after_s=1.0)

    def _elsewhere(self, journey: _Journey, granted: Granted, error: PenstockError) -> _Journey:
        """The journey on to another worker. Raises the error where there must not be one."""
        if isinstance(error, VersionWithdrawn):  # its worker heard of it first
            raise gone(journey.request.model, granted.version) from error
        if not _may_retry(error):
            raise error
        journey.failed_on.add(granted.worker_id)
        journey.failure = error
        if len(journey.failed_on) >= MAX_ATTEMPTS or not self._budget.take(self._loop.time()):
            self._metrics.retried(error.reason, granted=False)
            raise error
        journey.request = replace(journey.request, exclude=frozenset(journey.failed_on))
        return journey

    def _count_retry(self, journey: _Journey) -> None:
        if journey.failure is not None:
            self._metrics.retried(journey.failure.reason, granted=True)

    def _release(self, granted: Granted, link: Link, outcome: Outcome, latency_ms: float | None) -> None:
        now_s = self._loop.time()
        self._fleet.state.release(granted, outcome, now_s=now_s, latency_ms=latency_ms)
        self._hear(granted.worker_id, link, now_s)

    def _hear(self, worker_id: WorkerId, link: Link, now_s: float) -> None:
        load = link.load
        self._fleet.state.hear(
            self._fleet.view,
            worker_id,
            in_flight=load.in_flight,
            queued_rows=load.queued_rows,
            now_s=now_s,
            draining=load.draining,
        )


def unknown_model(model: str, version: str = "") -> ModelUnknown:
    """In Triton's words (model_repository_manager.cc, GetModel), because clients match on them."""
    if version:
        return ModelUnknown(f"Request for unknown model: '{model[:200]}' version {version[:40]} is not found")
    return ModelUnknown(f"Request for unknown model: '{model[:200]}' is not found")


def _outcome(error: PenstockError) -> Outcome:
    if error.code is Code.UNAVAILABLE and not isinstance(error, UpstreamUnavailable):
        return Outcome.PATH_FAILED
    return Outcome.UNKNOWN if error.code is Code.DEADLINE_EXCEEDED else Outcome.ANSWERED


def _may_retry(error: PenstockError) -> bool:
    """Whether another worker may fare better. NOT_FOUND: the copy was unloaded while the view still showed it."""
    if isinstance(error, LinkLost):
        return not error.started
    if isinstance(error, UpstreamBusy):
        return False
    return error.code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.NOT_FOUND)


async def _first(changed: asyncio.Event, links: list[Link], timeout_s: float) -> None:
    """Return when the view changed, one of the links connected, or the time ran out."""
    waits = [asyncio.create_task(changed.wait()), *(asyncio.create_task(_connected(link, timeout_s)) for link in links)]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _connected(link: Link, timeout_s: float) -> bool:
    return await link.wait_connected(timeout_s)
