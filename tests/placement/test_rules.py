"""What a routing policy comes to for one request, and what cannot be kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.rules import (
    DEFAULT_ROUTE,
    MAX_LISTED,
    MAX_RULES,
    Cause,
    Route,
    RoutingPolicy,
    Rule,
    WorkerSelector,
    checked,
    route_for,
)
from placement.types import Strategy, Weights
from runtime.errors import InvalidArgument
from runtime.ids import ModelName, Region, TenantId, WorkerId
from tests.placement.fleets import HERE, worker

ACME, LLAMA = TenantId("acme"), ModelName("llama-70b")
OLD, GPU = WorkerSelector(labels=frozenset({"old"})), WorkerSelector(tiers=frozenset({"A", "B"}))


def route(*rules: Rule, tenant: str = ACME, model: str = LLAMA, region: str = HERE, base: Route = DEFAULT_ROUTE) -> Route:
    return route_for(RoutingPolicy(1, rules), TenantId(tenant), ModelName(model), Region(region), base)


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        (Rule(), True),
        (Rule(tenants=("acme",)), True),
        (Rule(tenants=("ac?e", "other")), True),
        (Rule(tenants=("other",)), False),
        (Rule(models=("llama-*",)), True),
        (Rule(models=("LLAMA-*",)), False),
        (Rule(models=("llama-[0-9]*",)), False),
        (Rule(models=("llama-*",), tenants=("other",)), False),
        (Rule(regions=("here",), models=("*b",)), True),
        (Rule(regions=("there",)), False),
    ],
)
def test_whom_a_rule_is_for(rule: Rule, matches: bool) -> None:
    assert (route(replace(rule, strategy=Strategy.COST)).strategy is Strategy.COST) is matches


def test_nobody_says_anything() -> None:
    base = Route(strategy=Strategy.LATENCY, share=7)
    assert route(Rule(tenants=("other",)), base=base) is base
    assert route(base=base) is base


def test_later_rules_replace_and_selectors_add_up() -> None:
    found = route(
        Rule(
            "first",
            strategy=Strategy.COST,
            weights={"session": 1.0, "gpu": 2.0},
            shadow=Strategy.LATENCY,
            deny=(OLD,),
            cross_region=True,
            priority_class=0,
            share=5,
            flags={"a": True, "b": True},
            fallbacks=("x", "y"),
            fallback_on=frozenset({Cause.OVERLOAD}),
            hedge_quantile=0.95,
            sticky_versions=True,
            auto_models=("small-*",),
        ),
        Rule(weights={"gpu": 3.0}, deny=(GPU,), prefer=(GPU,), cross_region=False, flags={"b": False, "c": True}),
        Rule("last", unshadowed=True, allow=(OLD,), fallbacks=("z",), hedge_quantile=0.0),
    )
    assert found == Route(
        strategy=Strategy.COST,
        weights=Weights(session=1.0, gpu=3.0),
        shadow=None,
        deny=(OLD, GPU),
        allow=(OLD,),
        prefer=(GPU,),
        cross_region=False,
        priority_class=0,
        share=5,
        flags=frozenset({"a", "c"}),
        fallbacks=("z",),
        fallback_on=frozenset({Cause.OVERLOAD}),
        hedge_quantile=0.0,
        sticky_versions=True,
        auto_models=("small-*",),
        rules=("first", "rule 2", "last"),
    )
    assert hash(found) == hash(replace(found))


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        (WorkerSelector(), True),
        (WorkerSelector(worker_ids=frozenset({WorkerId("a"), WorkerId("b")})), True),
        (WorkerSelector(worker_ids=frozenset({WorkerId("b")})), False),
        (WorkerSelector(tiers=frozenset({"A", "C"})), True),
        (WorkerSelector(tiers=frozenset({"C"})), False),
        (WorkerSelector(labels=frozenset({"spot"})), True),
        (WorkerSelector(labels=frozenset({"spot", "old"})), False),
        (WorkerSelector(regions=frozenset({Region("there")}), labels=frozenset({"spot"})), False),
    ],
)
def test_whom_a_selector_means(selector: WorkerSelector, matches: bool) -> None:
    one = replace(worker("a"), tiers=frozenset({"A"}), labels=frozenset({"spot", "new"}))
    assert selector.matches(one) is matches


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ((Rule(),) * (MAX_RULES + 1), "257 rules are too many"),
        ((Rule("a"), Rule("b", priority_class=3)), r"rule 2 \('b'\): priority class 3 is none"),
        ((Rule(priority_class=-1),), "rule 1: priority class -1"),
        ((Rule(share=-1),), "a share of -1"),
        ((Rule(weights={"speed": 1.0}),), "'speed' is no weight; these are: cost, gpu"),
        ((Rule(weights={"gpu": float("nan")}),), "weight gpu is nan"),
        ((Rule(weights={"gpu": float("inf")}),), "weight gpu is inf"),
        ((Rule(weights={"gpu": -0.5}),), "weight gpu is -0.5"),
        ((Rule(fallbacks=tuple("abcdefghi")),), "9 fallbacks are too many; at most 8"),
        ((Rule(fallbacks=("none", "n")),), "'none' among fallbacks"),
        ((Rule(fallbacks=("m@",)),), "fallback 'm@' names no model; it is written 'model'"),
        ((Rule(fallbacks=("@2",)),), "fallback '@2' names no model"),
        ((Rule(fallbacks=("m@1@2",)),), "fallback 'm@1@2' names no model"),
        ((Rule(fallbacks=("llama-*",)),), r"fallback 'llama-\*' names no model"),
        ((Rule(fallbacks=("m", "m@2", "m")),), "fallback 'm' is listed twice"),
        ((Rule(fallbacks=("",)),), "one of its fallbacks is empty"),
        ((Rule(hedge_quantile=0.4),), "a hedge_quantile of 0.4 is none; it lies between 0.5 and 0.999, and 0 means never"),
        ((Rule(hedge_quantile=float("nan")),), "a hedge_quantile of nan"),
        ((Rule(auto_models=("",)),), "one of its auto_models is empty"),
        ((Rule(weights={"gpu": 100.5}),), "weight gpu is 100.5"),
        ((Rule(models=("m",) * (MAX_LISTED + 1)),), "65 models are too many"),
        ((Rule(models=("",)),), "one of its models is empty"),
        ((Rule(tenants=("t" * 129,)),), "longer than 128"),
        ((Rule("n" * 129),), "a name of 129 characters"),
        ((Rule(deny=(OLD,) * 65),), "65 deny selectors are too many"),
        ((Rule(prefer=(WorkerSelector(labels=frozenset(map(str, range(65)))),)),), "65 labels of a prefer selector"),
        ((Rule(flags=dict.fromkeys(map(str, range(65)), True)),), "65 flags are too many"),
        ((Rule(deny=(OLD,) * 64),) * 17, "1088 selectors of workers are too many"),
    ],
)
def test_what_cannot_be_kept_is_said(rules: tuple[Rule, ...], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        checked(RoutingPolicy(0, rules))


rules = st.builds(
    Rule,
    name=st.sampled_from(["", "one", "two"]),
    tenants=st.sampled_from([(), ("acme",), ("other",)]),
    strategy=st.sampled_from([None, *Strategy]),
    weights=st.dictionaries(st.sampled_from(["session", "gpu"]), st.floats(0, 100), max_size=2),
    deny=st.sampled_from([(), (OLD,), (OLD, GPU)]),
    priority_class=st.sampled_from([None, 0, 1, 2]),
    flags=st.dictionaries(st.sampled_from("ab"), st.booleans(), max_size=2),
)


@given(st.lists(rules, max_size=6))
def test_a_policy_in_two_parts_is_the_same_policy(drawn: list[Rule]) -> None:
    """What the first rules come to is the base of the others."""
    assert checked(RoutingPolicy(0, tuple(drawn)))
    named = [replace(rule, name=f"r{number}") for number, rule in enumerate(drawn)]
    for cut in range(len(named) + 1):
        assert route(*named[cut:], base=route(*named[:cut])) == route(*named)


def test_a_rule_may_take_fallbacks_away() -> None:
    assert route(Rule(fallbacks=("x",)), Rule()).fallbacks == ("x",)
    assert route(Rule(fallbacks=("x",)), Rule(fallbacks=())).fallbacks == ()


def test_without_a_rule_there_are_no_fallbacks_and_every_cause_would_do() -> None:
    assert (DEFAULT_ROUTE.fallbacks, DEFAULT_ROUTE.fallback_on) == ((), frozenset(Cause))
    assert not Rule(strategy=Strategy.COST, fallback_on=frozenset(Cause)).detours
