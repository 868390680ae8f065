"""By which rules a request is routed at this gateway, what others would have done, and what is done about bad workers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import structlog.testing
from penstock.scheduler.v1 import scheduler_pb2

from gateway import codec
from gateway.links.types import CallContext
from gateway.refusals import RouteDenied
from gateway.routes import MAX_ROUTES, Routes
from gateway.upkeep import Upkeep
from placement.routing.breaker import BreakerState
from placement.routing.outliers import OutlierSign
from placement.rules import Cause, Route, RoutingPolicy, Rule, WorkerSelector
from placement.types import Strategy
from runtime.errors import Code, DataLoss, Internal, InvalidArgument, PenstockError
from runtime.ids import ModelName, Region, WorkerId
from tests.gateway.fakes import FakeLink, copy_of, worker_of
from tests.gateway.routed import CALL, M, pair, routed
from tests.support.manual_clock import ManualClock

ONLY_B = RoutingPolicy(1, (Rule("off a", tenants=("t",), deny=(WorkerSelector(frozenset({WorkerId("a")})),)),))
ANYWHERE = Region("")


class Told:
    """A fleet of which nothing but the policy counts."""

    def __init__(self) -> None:
        self.policy, self.home = RoutingPolicy(), Region("here")


def test_without_rules_the_base_holds_and_a_new_policy_replaces_the_one_before() -> None:
    told, base = Told(), Route(strategy=Strategy.LATENCY)
    routes = Routes(told, base)
    assert routes.of("t", ModelName("m"), ANYWHERE) is base
    told.policy = RoutingPolicy(1, (Rule(models=("m*",), strategy=Strategy.COST),))
    first = routes.of("t", ModelName("m1"), ANYWHERE)
    assert first.strategy is Strategy.COST
    assert routes.of("t", ModelName("m1"), ANYWHERE) is first
    assert routes.of("t", ModelName("n"), ANYWHERE).strategy is Strategy.LATENCY
    told.policy = RoutingPolicy(2, (Rule(strategy=Strategy.TWO_CHOICES),))
    assert routes.of("t", ModelName("m1"), ANYWHERE).strategy is Strategy.TWO_CHOICES


def test_names_that_callers_choose_do_not_fill_the_memory() -> None:
    told = Told()
    told.policy = RoutingPolicy(1, (Rule(strategy=Strategy.COST),))
    routes = Routes(told, Route())
    for number in range(MAX_ROUTES + 10):
        routes.of("t", ModelName(f"m{number}"), ANYWHERE)
    assert len(routes._known) == 10


async def test_a_rule_is_for_the_tenant_it_names() -> None:
    async with routed() as mesh:
        mesh.tell(*pair(), policy=ONLY_B)
        for _ in range(6):
            await mesh.router.infer(M, b"x", CallContext(tenant="t"))
        assert (mesh.links["a"].calls, mesh.links["b"].calls) == (0, 6)
        await mesh.router.infer(M, b"x", CallContext(tenant="u"))
        await mesh.router.infer(M, b"x", CallContext(tenant="u"))
        assert mesh.links["a"].calls == 1


async def test_who_may_go_nowhere_is_told_that_a_rule_says_so() -> None:
    async with routed() as mesh:
        mesh.tell(pair()[0], policy=ONLY_B)
        with pytest.raises(RouteDenied, match="penstock fleet explain m"):
            await mesh.router.infer(M, b"x", CallContext(tenant="t"))


async def test_two_choices_draws_for_each_request() -> None:
    workers = [worker_of(each, copy_of("m")) for each in "abcdef"]
    async with routed() as mesh:
        mesh.tell(*workers, policy=RoutingPolicy(1, (Rule(strategy=Strategy.TWO_CHOICES),)))
        for _ in range(60):
            await mesh.router.infer(M, b"x", CALL)
        assert sum(link.calls > 0 for link in mesh.links.values()) > 2


async def test_a_shadow_is_counted_and_sends_nothing() -> None:
    policy = RoutingPolicy(1, (Rule(strategy=Strategy.LEAST_LOADED, shadow=Strategy.ROUND_ROBIN),))
    async with routed() as mesh:
        mesh.tell(*pair(), policy=policy)
        with structlog.testing.capture_logs() as logs:
            for _ in range(6):
                await mesh.router.infer(M, b"x", CALL)
        assert (mesh.links["a"].calls, mesh.links["b"].calls) == (6, 0)  # an idle fleet: the lowest id
        labels = {"strategy": "least-loaded", "shadow": "round-robin"}
        name = "penstock_gateway_shadow_decisions_total"
        assert mesh.counted(name, **labels, agreed="yes") + mesh.counted(name, **labels, agreed="no") == 6
    assert sum(log["event"] == "shadow_differs" for log in logs) <= 1


@pytest.mark.parametrize("error", [Internal("a bug"), DataLoss("rotten weights")])
async def test_a_worker_that_keeps_failing_is_passed_over(error: PenstockError) -> None:
    links = {"a": FakeLink("127.0.0.1:1", [error])}
    async with routed(*pair(), links=links) as mesh:
        failed = 0
        for _ in range(60):
            try:
                await mesh.router.infer(M, b"x", CALL)
            except PenstockError as raised:
                assert raised.code in (Code.INTERNAL, Code.DATA_LOSS)
                failed += 1
        assert failed == links["a"].calls < 10
        assert mesh.fleet.state.health.breakers[WorkerId("a")].state is BreakerState.OPEN
        mesh.metrics.follow_health(lambda: mesh.fleet.state.health)
        assert mesh.counted("penstock_gateway_breakers", state="open") == 1


async def test_what_a_caller_got_wrong_says_nothing_of_the_worker() -> None:
    links = {"a": FakeLink("127.0.0.1:1", [InvalidArgument("shape")])}
    async with routed(*pair(), links=links) as mesh:
        for _ in range(20):
            with pytest.raises(InvalidArgument):
                await mesh.router.infer(replace(M, exclude=frozenset({WorkerId("b")})), b"x", CALL)
        assert not mesh.fleet.state.health.breakers


async def test_outliers_are_put_aside_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with routed(*pair()) as mesh:
        state = mesh.fleet.state
        monkeypatch.setattr(state, "sweep", lambda now_s: {WorkerId("a"): OutlierSign.LATENCY})
        Upkeep(mesh.fleet, mesh.metrics, ManualClock()).look()
        assert mesh.counted("penstock_gateway_ejections_total", sign="latency") == 1


def test_a_policy_comes_as_the_scheduler_wrote_it() -> None:
    message = scheduler_pb2.RoutingPolicy(generation=7)
    rule = message.rules.add(name="r", tenants=["t*"], strategy="cost", shadow_strategy="none", share=3, cross_region=False)
    rule.weights.gpu, rule.priority_class = 0.0, 0
    rule.deny.add(labels=["spot"], regions=["asia"])
    rule.flags["fast"] = True
    rule.fallbacks.extend(["n", "m@2"])
    rule.fallback_on.extend(["overload", "context"])
    rule.hedge_quantile, rule.sticky_versions = 0.95, False
    rule.auto_models.append("small-*")
    policy = codec.policy_of(message)
    assert policy.generation == 7
    (read,) = policy.rules
    assert (read.name, read.tenants, read.strategy, read.shadow, read.unshadowed) == ("r", ("t*",), Strategy.COST, None, True)
    assert (read.weights, read.priority_class, read.share, read.cross_region) == ({"gpu": 0.0}, 0, 3, False)
    assert read.deny == (WorkerSelector(regions=frozenset({Region("asia")}), labels=frozenset({"spot"})),)
    assert read.flags == {"fast": True}
    assert read.fallbacks == ("n", "m@2")
    assert read.fallback_on == frozenset({Cause.OVERLOAD, Cause.CONTEXT})
    assert (read.hedge_quantile, read.sticky_versions, read.auto_models) == (0.95, False, ("small-*",))


def test_what_a_rule_leaves_out_stays_as_it_was_and_none_takes_fallbacks_away() -> None:
    message = scheduler_pb2.RoutingPolicy()
    message.rules.add()
    message.rules.add(fallbacks=["none"])
    silent, none = codec.policy_of(message).rules
    assert (silent.fallbacks, silent.hedge_quantile, silent.sticky_versions) == (None, None, None)
    assert none.fallbacks == ()


def test_what_this_gateway_cannot_fall_back_on_is_named() -> None:
    message = scheduler_pb2.RoutingPolicy(rules=[scheduler_pb2.RoutingRule(name="new", fallback_on=["boredom"])])
    with pytest.raises(InvalidArgument, match=r"rule 'new' falls back on 'boredom'; this gateway knows: failure, overload"):
        codec.policy_of(message)


def test_whether_any_rule_leads_elsewhere_is_known_without_a_look_at_each() -> None:
    told = Told()
    routes = Routes(told, Route())
    assert not routes.has_detours
    told.policy = RoutingPolicy(1, (Rule(strategy=Strategy.COST), Rule(models=("m",), fallbacks=("n",))))
    assert routes.has_detours
    assert routes.at_home("t", "m").fallbacks == ("n",)
    told.policy = RoutingPolicy(2, (Rule(fallbacks=(), hedge_quantile=0.0, regions=("here",), sticky_versions=True),))
    assert not routes.has_detours
    assert routes.at_home("t", "m").sticky_versions
    assert not routes.at_home("t", "m", Region("there")).sticky_versions
    told.policy = RoutingPolicy(3, (Rule(hedge_quantile=0.9),))
    assert routes.has_detours


@pytest.mark.parametrize("field", ["strategy", "shadow_strategy"])
def test_a_strategy_that_this_gateway_does_not_know_is_named(field: str) -> None:
    message = scheduler_pb2.RoutingPolicy(rules=[scheduler_pb2.RoutingRule(name="new", **{field: "clairvoyant"})])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"'new'.*clairvoyant.*two-choices"):
        codec.policy_of(message)
