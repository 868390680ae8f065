"""Takes a request to a worker: asks the policy, sends it over the worker's link, and elsewhere where that failed in time.

In time is before the first byte of an answer, within the caller's deadline, within three attempts and the retry budget. After
that a generation goes on at another worker that has the same version (`gateway.migration`); nothing else does. What a failure
says of its worker is told to the state, which passes it over; a worker that is full is not. Where there is no place at once,
`gateway.places` finds one. Owns reservations from grant to release. Never parses a payload, never decides who may call.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from gateway.capacity import Capacity
from gateway.exchange import Exchange
from gateway.fleet import Fleet
from gateway.journeys import MAX_MIGRATIONS, Journey, may_migrate, may_retry, outcome_of
from gateway.ledger import Ledger, Tally
from gateway.links.roster import Link
from gateway.links.text_codec import TEXT_CODECS
from gateway.links.types import CallContext, Method
from gateway.metrics import GatewayMetrics
from gateway.migration import Generation
from gateway.places import Places, WaitSettings
from gateway.routes import Routes
from gateway.shadow import Shadow
from gateway.tracing import note_event
from gateway.versions import gone
from placement.routing.policy import choose
from placement.routing.retry_budget import RetryBudget
from placement.rules import Route
from placement.types import ANY_REGION, Decision, Granted, Outcome, Request, Strategy
from runtime.errors import PenstockError, VersionWithdrawn

_TEXT_TASKS = ("chat", "completion")
_DRAWS = Strategy.TWO_CHOICES
"""The strategy that needs random bits."""


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """What holds where the routing policy says nothing else."""

    strategy: Strategy = Strategy.AFFINITY
    cold_wait_s: float = 10.0
    cross_region: bool = False


class Router:
    """Belongs to one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        metrics: GatewayMetrics,
        settings: RoutingSettings | None = None,
        budget: RetryBudget | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        """Without `capacity`, who finds every copy full is refused, and who finds none ready waits here."""
        self._fleet, self._metrics = fleet, metrics
        settings = settings or RoutingSettings()
        self._budget = budget or RetryBudget()
        self._routes = Routes(fleet, Route(strategy=settings.strategy, cross_region=settings.cross_region))
        self.ledger = Ledger()
        self._places = Places(fleet, metrics, self.ledger, WaitSettings(settings.cold_wait_s), capacity)
        self._draw = random.Random().getrandbits  # noqa: S311 (shares requests out)
        self._shadow = Shadow(metrics)
        self._now_s = asyncio.get_running_loop().time

    async def infer(self, request: Request, payload: bytes, call: CallContext, exchange: Exchange | None = None) -> bytes:
        """inference.ModelInferRequest → ModelInferResponse. Raises what the worker answered, or why none was asked.

        `exchange` is told each worker that is asked.
        """
        fleet, now_s = self._fleet, self._now_s()
        self._budget.note_request(now_s)
        route = self._routes.of(call.tenant, request.model, request.region or fleet.home)
        if route.strategy is _DRAWS or not request.region:
            request = self._prepared(request, route)
        granted, journey = self._at_once(request, route, now_s), None
        while True:
            if granted is None:
                journey = journey or Journey(request, route, call)
                granted, call = await self._places.find(journey), journey.sent
                now_s = self._now_s()
            if exchange is not None:
                exchange.granted(granted.worker_id, request.model, granted.version)
            link, tally = fleet.links[granted.worker_id], self._tally(request, granted)
            fleet.state.reserve(granted)
            tally.begin(now_s, 1 if journey is None else self._begun(journey, exchange))
            outcome, answered = Outcome.UNKNOWN, False
            try:
                answer = await link.call(request.model, granted.version, payload, call)
                outcome, answered = Outcome.ANSWERED, True
                return answer
            except PenstockError as error:
                outcome = outcome_of(error)
                journey = self._elsewhere(journey or Journey(request, route, call, counted=True), granted, error)
            finally:
                ended_s = self._now_s()
                tally.end(ended_s)
                latency_ms = (ended_s - now_s) * 1000 if answered else None
                fleet.state.release(granted, outcome, now_s=ended_s, latency_ms=latency_ms)
                self._hear(granted, link, ended_s)
            granted = None

    async def stream(
        self,
        method: Method,
        request: Request,
        payload: bytes,
        call: CallContext,
        exchange: Exchange | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """The answers, one by one; close it when leaving early. Raises like `infer`.

        After the first answer only a generation is sent elsewhere: its answers go on where they ended.
        """
        fleet, now_s = self._fleet, self._now_s()
        self._budget.note_request(now_s)
        route = self._routes.of(call.tenant, request.model, request.region or fleet.home)
        request = self._prepared(request, route)
        granted, journey = self._at_once(request, route, now_s), Journey(request, route, call)
        given: Generation | None = None
        while True:
            if granted is None:
                granted = await self._found(journey)
                now_s = self._now_s()
            if exchange is not None:
                exchange.granted(granted.worker_id, request.model, granted.version)
            link, tally = fleet.links[granted.worker_id], self._tally(request, granted)
            fleet.state.reserve(granted)
            tally.begin(now_s, self._begun(journey, exchange))
            outcome: Outcome = Outcome.UNKNOWN
            latency_ms: float | None = None
            try:
                async with aclosing(link.stream(method, request.model, granted.version, payload, journey.sent)) as answers:
                    async for answer in answers:
                        if latency_ms is None:
                            outcome, latency_ms = Outcome.ANSWERED, (self._now_s() - now_s) * 1000
                            given = given or self._generation(method, granted, journey, payload)
                        if given is not None:
                            given.feed(answer)
                        yield answer
                outcome = Outcome.ANSWERED
                return
            except PenstockError as error:
                outcome = outcome_of(error)
                if latency_ms is None:
                    journey = self._elsewhere(journey, granted, error)
                elif (resumed := self._resumed(journey, granted, error, given)) is not None:
                    payload = resumed
                else:
                    return
            finally:
                ended_s = self._now_s()
                tally.end(ended_s)
                fleet.state.release(granted, outcome, now_s=ended_s, latency_ms=latency_ms)
                self._hear(granted, link, ended_s)
            granted = None

    async def warm(self, request: Request, call: CallContext) -> None:
        """Return once a copy is ready, for those who have something to ask of it before they send a request. Sends nothing.

        A model that is loaded on demand is demanded by it. Raises like `infer` where no copy becomes ready.
        """
        route = self._routes.of(call.tenant, request.model, request.region or self._fleet.home)
        await self._places.warm(Journey(self._prepared(request, route), route, call))

    def _prepared(self, request: Request, route: Route) -> Request:
        """The request as it is routed: from its region, with what its strategy needs."""
        if not request.region and self._fleet.home:
            request = replace(request, region=self._fleet.home)
        if route.strategy is _DRAWS:
            request = replace(request, draw=self._draw(64))
        return request

    def _at_once(self, request: Request, route: Route, now_s: float) -> Granted | None:
        """A worker at once, or None where the way to one is longer."""
        fleet = self._fleet
        decision: Decision = choose(fleet.view, fleet.state, request, now_s=now_s, route=route)
        if route.shadow is not None:
            self._shadow.compare(fleet, replace(request, draw=self._draw(64)), route, decision, now_s)
        if isinstance(decision, Granted):
            link = fleet.links.get(decision.worker_id)
            if link is not None and link.ready:
                return decision
        return None

    def _tally(self, request: Request, granted: Granted) -> Tally:
        """Where this is counted: in its own region, but where nobody wants copies there in that of its worker."""
        region, seat = request.region, self._fleet.view.seats.get(granted.worker_id)
        if seat is not None and region not in (ANY_REGION, seat.region):
            region = region if self._fleet.placed(request.model, granted.version, region) else seat.region
        return self.ledger.tallies[region, request.model, granted.version]

    async def _found(self, journey: Journey) -> Granted:
        try:
            return await self._places.find(journey)
        except PenstockError:
            if journey.migrating and journey.failure is not None:
                self._metrics.migrated(journey.failure.reason, granted=False)
            raise

    def _generation(self, method: Method, granted: Granted, journey: Journey, payload: bytes) -> Generation | None:
        """What remembers the answers that begin now; None: they are no text."""
        codec = TEXT_CODECS.get(method)
        if codec is None or (method is not Method.GENERATE and not self._is_text(journey.request.model, granted.version)):
            return None
        return Generation(payload, codec)

    def _is_text(self, model: str, version: str) -> bool:
        return any(copy.task in _TEXT_TASKS for _, copy in self._fleet.copies(model, version)[:1])

    def _resumed(self, journey: Journey, granted: Granted, error: PenstockError, given: Generation | None) -> bytes | None:
        """The request that goes on after what was given; None: nothing is left to give. Raises the error where nobody can."""
        if given is None or not may_migrate(error):
            raise error
        payload = given.resumed()
        if payload is None and given.has_ended:
            return None
        if payload is None or journey.migrations >= MAX_MIGRATIONS or not self._may_go_on(journey, error):
            self._metrics.migrated(error.reason, granted=False)
            raise error
        journey.migrate(granted.worker_id, granted.version, error)
        return payload

    def _may_go_on(self, journey: Journey, error: PenstockError) -> bool:
        """Within the retry budget, or at no cost to it."""
        return journey.is_free(error) or self._budget.take(self._now_s())

    def _begun(self, journey: Journey, exchange: Exchange | None) -> int:
        """A worker is asked once more; 1 where this request is not in what is reported of its model yet."""
        if journey.failure is not None:
            self._note_another(journey, journey.failure, exchange)
        if journey.counted:
            return 0
        journey.counted = True
        return 1

    def _note_another(self, journey: Journey, failure: PenstockError, exchange: Exchange | None) -> None:
        if journey.migrating:
            journey.migrating = False
            self._metrics.migrated(failure.reason, granted=True)
            if exchange is not None:
                exchange.migrations += 1
        else:
            self._metrics.retried(failure.reason, granted=True)
        note_event("sent_elsewhere", reason=failure.reason, migrations=journey.migrations, failed=len(journey.failed_on))

    def _elsewhere(self, journey: Journey, granted: Granted, error: PenstockError) -> Journey:
        """The journey on to another worker. Raises the error where there must not be one."""
        if isinstance(error, VersionWithdrawn):  # its worker heard of it first
            raise gone(journey.request.model, granted.version) from error
        if not may_retry(error):
            raise error
        journey.fail(granted.worker_id, error)
        if journey.spent or not self._may_go_on(journey, error):
            self._metrics.retried(error.reason, granted=False)
            if not self._places.may_queue(journey):
                raise error
            journey.queues_only = True
        return journey

    def _hear(self, granted: Granted, link: Link, now_s: float) -> None:
        load = link.load
        self._fleet.state.hear(
            self._fleet.view,
            granted.worker_id,
            in_flight=load.in_flight,
            queued_rows=load.queued_rows,
            now_s=now_s,
            draining=load.draining,
        )
