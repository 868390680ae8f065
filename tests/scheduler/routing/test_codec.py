"""Policies on the wire and in etcd: the same there and back, and malformed ones named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.scheduler.v1 import scheduler_pb2 as pb

from placement.rules import Cause, RoutingPolicy, Rule, WorkerSelector
from placement.types import Strategy
from runtime.errors import InvalidArgument
from runtime.ids import Region, WorkerId
from scheduler.routing.codec import policy_bytes, policy_from, policy_message, policy_of, question_of

names = st.lists(st.sampled_from(["acme", "other-*", "?x"]), max_size=2, unique=True)
selectors = st.builds(
    WorkerSelector,
    worker_ids=st.frozensets(st.sampled_from([WorkerId("a"), WorkerId("b")])),
    regions=st.frozensets(st.sampled_from([Region("asia"), Region("europe")])),
    tiers=st.frozensets(st.sampled_from("ABCD")),
    labels=st.frozensets(st.sampled_from(["spot", "old"])),
)
listed = st.lists(selectors, max_size=2).map(tuple)
rules = st.builds(
    Rule,
    name=st.sampled_from(["", "a rule"]),
    tenants=names.map(tuple),
    models=names.map(tuple),
    regions=names.map(tuple),
    strategy=st.sampled_from([None, *Strategy]),
    weights=st.dictionaries(st.sampled_from(["session", "prefix", "gpu", "preferred"]), st.floats(0, 100), max_size=4),
    shadow=st.sampled_from([None, *Strategy]),
    deny=listed,
    allow=listed,
    prefer=listed,
    cross_region=st.sampled_from([None, True, False]),
    priority_class=st.sampled_from([None, 0, 1, 2]),
    share=st.integers(0, 1_000_000),
    flags=st.dictionaries(st.sampled_from("ab"), st.booleans()),
    fallbacks=st.sampled_from([None, (), ("other",), ("m@2", "other@canary")]),
    fallback_on=st.frozensets(st.sampled_from(list(Cause))),
    hedge_quantile=st.none() | st.just(0.0) | st.floats(0.5, 0.999),
    sticky_versions=st.sampled_from([None, True, False]),
    auto_models=names.map(tuple),
) | st.just(Rule(unshadowed=True))


@given(st.lists(rules, max_size=4), st.integers(0, 2**60))
def test_there_and_back_it_is_the_same(drawn: list[Rule], generation: int) -> None:
    policy = RoutingPolicy(generation, tuple(drawn))
    assert policy_of(policy_message(policy)) == policy
    assert policy_from(policy_bytes(policy)) == policy


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            pb.RoutingRule(name="eu", strategy="fastest"),
            r"rule 1 \('eu'\): 'fastest' is no strategy; these are: affinity, round",
        ),
        (pb.RoutingRule(shadow_strategy="nobody"), "rule 1: 'nobody' is no strategy"),
        (pb.RoutingRule(priority_class=7), "priority class 7"),
        (pb.RoutingRule(weights=pb.Weights(gpu=-1.0)), "weight gpu is -1"),
        (pb.RoutingRule(weights=pb.Weights(gpu=float("nan"))), "weight gpu is nan"),
        (pb.RoutingRule(tenants=["t"] * 65), "65 tenants are too many"),
        (pb.RoutingRule(fallback_on=["boredom"]), "rule 1: 'boredom' is nothing to fall back on; these are: failure, overload"),
        (pb.RoutingRule(fallbacks=["none", "n"]), "'none' among fallbacks means that there are none, and stands alone"),
        (pb.RoutingRule(hedge_quantile=95), "a hedge_quantile of 95 is none; it lies between 0.5 and 0.999"),
    ],
)
def test_a_malformed_rule_is_named(rule: pb.RoutingRule, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        policy_of(pb.RoutingPolicy(rules=[rule]))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_policy_or_said_to_be_none(raw: bytes) -> None:
    try:
        policy = policy_from(raw)
    except InvalidArgument as error:
        assert error.message
    else:
        assert policy_from(policy_bytes(policy)) == policy


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (pb.ExplainRequest(), "no model is named"),
        (pb.ExplainRequest(model="m", strategy="fastest"), "'fastest' is no strategy"),
        (pb.ExplainRequest(model="m", exclude_worker_ids=["w"] * 10_001), "10001 workers are excluded"),
        (pb.ExplainRequest(model="m", prompt="x" * 65_537), "the prompt has 65537 characters"),
    ],
)
def test_a_question_that_cannot_be_answered_is_said(message: pb.ExplainRequest, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        question_of(message)
