"""Asks a second worker where the first takes longer than most of its model's recent requests did; the first good answer counts.

For requests with one answer and no state at a worker, of models for which a rule names the quantile. Owns what is known of how
long models take, and the second attempt from its beginning to its end: the loser is cancelled at once, an attempt that failed
does not win over one that still runs, and there is no second where no other worker has room or the retry budget is spent.
The first attempt runs in its caller's own task: a request that is answered in time costs a timer, not a task.
Source: J. Dean, L. A. Barroso, The tail at scale, CACM 56(2), 2013, hedged requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from gateway.exchange import Exchange
from gateway.fleet import Fleet
from gateway.links.types import CallContext
from gateway.metrics import GatewayMetrics
from gateway.tracing import note_event
from placement.routing.policy import choose
from placement.routing.quantiles import LatencyQuantiles
from placement.routing.retry_budget import RetryBudget
from placement.rules import Route
from placement.types import Granted, Request
from runtime.errors import PenstockError
from runtime.ids import ModelVersion, WorkerId

MIN_DELAY_S = 0.001
"""A second attempt never leaves earlier: below that it would cost more than it could save."""

MAX_MODELS = 512
"""Model versions whose latencies are kept."""


class Router(Protocol):
    """Takes a request to a worker: gateway.routing.Router."""

    async def infer(self, request: Request, payload: bytes, call: CallContext, exchange: Exchange | None = None) -> bytes: ...


class Hedges:
    """Belongs to one event loop. `budget` is the router's own: hedges and retries together are held to it."""

    def __init__(self, router: Router, fleet: Fleet, budget: RetryBudget, metrics: GatewayMetrics) -> None:
        self.router, self._fleet, self._budget, self._metrics = router, fleet, budget, metrics
        self._latencies: dict[tuple[str, str], LatencyQuantiles] = {}

    async def infer(self, request: Request, payload: bytes, call: CallContext, exchange: Exchange, route: Route) -> bytes:
        """Like `Router.infer`; raises what the first attempt raised where both failed."""
        return await _Race(self, request, payload, call, exchange, route).run()

    def delay_s(self, model: str, version: str, quantile: float) -> float | None:
        """How long the first worker is given; None: too little is known of the model."""
        known = self._latencies.get((model, version))
        delay_ms = known.at(quantile) if known is not None else None
        return None if delay_ms is None else max(MIN_DELAY_S, delay_ms / 1000)

    def observe(self, model: str, version: str, took_s: float) -> None:
        """A first attempt took so long, or was given up after so long: without those, a model would seem too fast."""
        known = self._latencies.get((model, version))
        if known is None:
            if len(self._latencies) >= MAX_MODELS:  # models in use are soon back, those that left are not
                self._latencies.clear()
            known = self._latencies[model, version] = LatencyQuantiles()
        known.observe(took_s * 1000)

    def may_ask(self, request: Request, route: Route, now_s: float) -> bool:
        """Whether another worker could take this at once, and the budget has a place for it, which is taken then."""
        fleet = self._fleet
        request = request if request.region else replace(request, region=fleet.home)
        decision = choose(fleet.view, fleet.state, request, now_s=now_s, route=route)
        link = fleet.links.get(decision.worker_id) if isinstance(decision, Granted) else None
        if link is None or not link.ready:
            self._metrics.hedged("no_worker")
            return False
        if not self._budget.take(now_s):
            self._metrics.hedged("no_budget")
            return False
        return True

    def ended(self, *, second_won: bool) -> None:
        self._metrics.hedged("won" if second_won else "lost")


class _Attempt(Exchange):
    """What the router tells of one of the two attempts."""

    __slots__ = ("on_granted",)

    on_granted: Callable[[], None] | None

    def granted(self, worker_id: str, model: str, version: str) -> None:
        Exchange.granted(self, worker_id, model, version)
        if self.on_granted is not None:
            self.on_granted()


class _Race:
    """One request and its two attempts."""

    __slots__ = (
        "_asked_s",
        "_call",
        "_exchange",
        "_first",
        "_hedges",
        "_loop",
        "_payload",
        "_racing",
        "_request",
        "_route",
        "_scope",
        "_second",
        "_second_told",
        "_timer",
    )

    def __init__(
        self, hedges: Hedges, request: Request, payload: bytes, call: CallContext, exchange: Exchange, route: Route
    ) -> None:
        self._hedges, self._route, self._exchange = hedges, route, exchange
        self._request, self._payload, self._call = request, payload, call
        self._loop = asyncio.get_running_loop()
        self._first = _told_of(exchange, self._arm)
        self._second: asyncio.Task[bytes] | None = None
        self._second_told: _Attempt | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._scope = asyncio.timeout(None)
        self._asked_s, self._racing = 0.0, True

    async def run(self) -> bytes:
        winner: _Attempt | None = None
        try:
            answer, winner = await self._answer()
        finally:
            await self._end(winner)
        return answer

    async def _answer(self) -> tuple[bytes, _Attempt]:
        """The first good answer, and whose it is."""
        try:
            async with self._scope:
                answer = await self._hedges.router.infer(self._request, self._payload, self._call, self._first)
                self._observe()
            return answer, self._first
        except TimeoutError:
            if not self._scope.expired() or self._second is None or self._second_told is None:
                raise
            self._observe()
            return self._second.result(), self._second_told
        except PenstockError as error:
            self._racing = False
            if self._second is None or self._second_told is None:
                raise
            return await _other(self._second, error), self._second_told

    async def _end(self, winner: _Attempt | None) -> None:
        """Nothing of the race is left, and the exchange knows who answered."""
        self._racing = False
        self._disarm()
        exchange, second, told = self._exchange, self._second, winner or self._first
        exchange.attempts += self._first.attempts
        if told.worker_id:
            exchange.worker_id, exchange.model, exchange.version = told.worker_id, told.model, told.version
        if second is None or self._second_told is None:
            return
        exchange.attempts += self._second_told.attempts
        if winner is not None:
            self._hedges.ended(second_won=winner is self._second_told)
        if not second.done():
            second.cancel()
            await asyncio.wait((second,))

    def _arm(self) -> None:
        """A worker is asked; the second one is, once this takes too long."""
        self._disarm()
        told = self._first
        self._asked_s = self._loop.time()
        delay_s = self._hedges.delay_s(told.model, told.version, self._route.hedge_quantile)
        if delay_s is not None and self._second is None:
            self._timer = self._loop.call_later(delay_s, self._ask_another)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ask_another(self) -> None:
        self._timer, told = None, self._first
        exclude = self._request.exclude | {WorkerId(told.worker_id)}
        request = replace(self._request, version=ModelVersion(told.version), exclude=exclude)
        if not self._hedges.may_ask(request, self._route, self._loop.time()):
            return
        self._exchange.hedged = True
        note_event("hedge", worker_id=told.worker_id)
        self._second_told = _told_of(self._exchange, None)
        asked = self._hedges.router.infer(request, self._payload, self._call, self._second_told)
        self._second = self._loop.create_task(asked)
        self._second.add_done_callback(self._second_ended)

    def _second_ended(self, second: asyncio.Task[bytes]) -> None:
        """Its answer ends the first attempt, if that still runs. Looking at the error says that somebody has."""
        if not second.cancelled() and second.exception() is None and self._racing:
            self._scope.reschedule(self._loop.time())

    def _observe(self) -> None:
        self._racing = False
        told = self._first
        self._hedges.observe(told.model, told.version, self._loop.time() - self._asked_s)


def _told_of(exchange: Exchange, on_granted: Callable[[], None] | None) -> _Attempt:
    attempt = _Attempt(exchange.method, caller=exchange.caller, asked=exchange.asked)
    attempt.on_granted = on_granted
    return attempt


async def _other(second: asyncio.Task[bytes], error: PenstockError) -> bytes:
    """The second attempt's answer, the first having failed. Raises the first one's error where both did."""
    try:
        return await second
    except PenstockError as others:
        raise error from others
