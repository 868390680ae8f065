"""A dispatch with fallbacks and hedges over a fleet in memory: a worker for each model, links that a test plays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gateway.admission import KeyFacts
from gateway.callers import Caller
from gateway.dispatch import Detours, Dispatch
from gateway.exchange import Exchange
from gateway.fallbacks import Fallbacks
from gateway.hedging import Hedges
from gateway.routes import Routes
from gateway.targets import Targets
from placement.routing.retry_budget import RetryBudget
from placement.rules import Route, RoutingPolicy, Rule
from placement.types import Worker
from runtime.ids import KeyId, TenantId
from runtime.notices import NoticeBoard
from tests.gateway.fakes import FakeLink, wish_of
from tests.gateway.routed import Routed, routed

KEY = KeyFacts(KeyId("k"), TenantId("t"))


def exchange_of(key: KeyFacts = KEY) -> Exchange:
    return Exchange("ModelInfer", caller=Caller(key, "r", True, None, "", {}))


@dataclass
class Detoured:
    mesh: Routed
    dispatch: Dispatch
    hedges: Hedges
    exchange: Exchange = field(default_factory=exchange_of)

    @property
    def links(self) -> dict[str, FakeLink]:
        return self.mesh.links

    def tell(self, *workers: Worker, rules: tuple[Rule, ...], wishes: tuple[str, ...] = ()) -> None:
        self.mesh.tell(*workers, wishes=tuple(wish_of(model) for model in wishes), policy=RoutingPolicy(1, rules))

    def fell_back(self, model: str, to: str, why: str) -> float:
        return self.mesh.counted("penstock_gateway_fallbacks_total", model=model, to=to, why=why)

    def hedged(self, outcome: str) -> float:
        return self.mesh.counted("penstock_gateway_hedges_total", outcome=outcome)


@asynccontextmanager
async def detoured(
    *workers: Worker,
    rules: tuple[Rule, ...],
    wishes: tuple[str, ...] = (),
    links: dict[str, FakeLink] | None = None,
    board: NoticeBoard | None = None,
    budget: RetryBudget | None = None,
    cold_wait_s: float = 5.0,
) -> AsyncIterator[Detoured]:
    """With a board, only what it tells of is known."""
    budget = budget or RetryBudget()
    async with routed(links=links, budget=budget, cold_wait_s=cold_wait_s) as mesh:
        routes, fleet = Routes(mesh.fleet, Route()), mesh.fleet
        targets = Targets(board, fleet, enforced=board is not None, routes=routes)
        hedges = Hedges(mesh.router, fleet, budget, mesh.metrics)
        fallbacks = Fallbacks(routes, targets, fleet, mesh.router.ledger, mesh.metrics)
        made = Detoured(mesh, Dispatch(mesh.router, Detours(routes, fallbacks, hedges)), hedges)
        made.tell(*workers, rules=rules, wishes=wishes)
        yield made
