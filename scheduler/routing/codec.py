"""Routing policies and explanations: messages to nouns and back.

With the servicer, the only place of this room that sees a generated message. Decides what is malformed, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError
from penstock.scheduler.v1 import scheduler_pb2 as pb

from placement.routing.explain import Considered
from placement.rules import NOBODY_INSTEAD, WEIGHT_NAMES, Cause, RoutingPolicy, Rule, WorkerSelector, checked
from placement.types import Decision, Granted, Strategy
from runtime.errors import InvalidArgument
from runtime.ids import ModelName, ModelVersion, Region, TenantId, WorkerId
from scheduler.routing.types import Answer, Question

UNSHADOWED = "none"
MAX_EXCLUDED = 10_000
MAX_TEXT = 65_536
MAX_NAME = 256


def policy_of(message: pb.RoutingPolicy) -> RoutingPolicy:
    """Raises InvalidArgument, which names the rule, where a policy cannot be followed."""
    rules: list[Rule] = []
    for number, each in enumerate(message.rules, 1):
        try:
            rules.append(_rule(each))
        except InvalidArgument as error:
            raise InvalidArgument(f"rule {number}{f' ({each.name!r})' if each.name else ''}: {error.message}") from error
    return checked(RoutingPolicy(message.generation, tuple(rules)))


def policy_message(policy: RoutingPolicy) -> pb.RoutingPolicy:
    return pb.RoutingPolicy(generation=policy.generation, rules=[_rule_message(rule) for rule in policy.rules])


def policy_bytes(policy: RoutingPolicy) -> bytes:
    return policy_message(policy).SerializeToString(deterministic=True)


def policy_from(raw: bytes) -> RoutingPolicy:
    """Raises InvalidArgument where the bytes are no policy that can be followed."""
    try:
        return policy_of(pb.RoutingPolicy.FromString(raw))
    except DecodeError as error:
        raise InvalidArgument("the value is no penstock.scheduler.v1.RoutingPolicy") from error


def question_of(message: pb.ExplainRequest) -> Question:
    """Raises InvalidArgument where nothing could be explained."""
    if not message.model:
        raise InvalidArgument("no model is named; say which model the request would be for")
    names = (("model", message.model), ("version", message.version), ("region", message.region), ("tenant", message.tenant))
    for what, name in names:
        if len(name) > MAX_NAME:
            raise InvalidArgument(f"the {what} has {len(name)} characters; up to {MAX_NAME} are taken")
    if len(message.exclude_worker_ids) > MAX_EXCLUDED:
        raise InvalidArgument(f"{len(message.exclude_worker_ids)} workers are excluded; at most {MAX_EXCLUDED} can be")
    for what, text in (("session key", message.session_key), ("prompt", message.prompt)):
        if len(text) > MAX_TEXT:
            raise InvalidArgument(f"the {what} has {len(text)} characters; at most {MAX_TEXT} are looked at")
    return Question(
        ModelName(message.model),
        ModelVersion(message.version),
        Region(message.region),
        TenantId(message.tenant),
        message.session_key,
        message.prompt,
        frozenset(WorkerId(each) for each in message.exclude_worker_ids),
        _strategy(message.strategy),
    )


def answer_message(answer: Answer) -> pb.ExplainResponse:
    decision = answer.decision
    granted = decision if isinstance(decision, Granted) else None
    return pb.ExplainResponse(
        worker_id=granted.worker_id if granted is not None else "",
        version=granted.version if granted is not None else "",
        why=granted.why.value if granted is not None else "",
        refusal="" if isinstance(decision, Granted) else f"{decision.reason.value}: {decision.detail}",
        strategy=answer.strategy.value,
        rules=answer.rules,
        candidates=[_candidate(each) for each in answer.considered],
        shadow_strategy=answer.shadow_strategy.value if answer.shadow_strategy is not None else "",
        shadow_worker_id=_worker(answer.shadow),
    )


def _rule(message: pb.RoutingRule) -> Rule:
    weights = {name: getattr(message.weights, name) for name in sorted(WEIGHT_NAMES) if message.weights.HasField(name)}  # type: ignore[arg-type]
    return Rule(
        name=message.name,
        tenants=tuple(message.tenants),
        models=tuple(message.models),
        regions=tuple(message.regions),
        strategy=_strategy(message.strategy),
        weights=weights,
        shadow=None if message.shadow_strategy == UNSHADOWED else _strategy(message.shadow_strategy),
        unshadowed=message.shadow_strategy == UNSHADOWED,
        deny=_selectors(message.deny),
        allow=_selectors(message.allow),
        prefer=_selectors(message.prefer),
        cross_region=message.cross_region if message.HasField("cross_region") else None,
        priority_class=message.priority_class if message.HasField("priority_class") else None,
        share=message.share,
        flags=dict(message.flags),
        fallbacks=() if list(message.fallbacks) == [NOBODY_INSTEAD] else tuple(message.fallbacks) or None,
        fallback_on=frozenset(_cause(each) for each in message.fallback_on),
        hedge_quantile=message.hedge_quantile if message.HasField("hedge_quantile") else None,
        sticky_versions=message.sticky_versions if message.HasField("sticky_versions") else None,
        auto_models=tuple(message.auto_models),
    )


def _rule_message(rule: Rule) -> pb.RoutingRule:
    shadow = UNSHADOWED if rule.unshadowed else rule.shadow.value if rule.shadow is not None else ""
    return pb.RoutingRule(
        name=rule.name,
        tenants=rule.tenants,
        models=rule.models,
        regions=rule.regions,
        strategy=rule.strategy.value if rule.strategy is not None else "",
        weights=pb.Weights(**rule.weights) if rule.weights else None,
        shadow_strategy=shadow,
        deny=_selector_messages(rule.deny),
        allow=_selector_messages(rule.allow),
        prefer=_selector_messages(rule.prefer),
        cross_region=rule.cross_region,
        priority_class=rule.priority_class,
        share=rule.share,
        flags=rule.flags,
        fallbacks=[NOBODY_INSTEAD] if rule.fallbacks == () else rule.fallbacks,
        fallback_on=sorted(each.value for each in rule.fallback_on),
        hedge_quantile=rule.hedge_quantile,
        sticky_versions=rule.sticky_versions,
        auto_models=rule.auto_models,
    )


def _strategy(name: str) -> Strategy | None:
    """Raises InvalidArgument. Empty: None."""
    if not name:
        return None
    try:
        return Strategy(name)
    except ValueError as error:
        known = ", ".join(each.value for each in Strategy)
        raise InvalidArgument(f"{name[:100]!r} is no strategy; these are: {known}") from error


def _cause(name: str) -> Cause:
    """Raises InvalidArgument."""
    try:
        return Cause(name)
    except ValueError as error:
        known = ", ".join(each.value for each in Cause)
        raise InvalidArgument(f"{name[:100]!r} is nothing to fall back on; these are: {known}") from error


def _selectors(messages: Iterable[pb.WorkerSelector]) -> tuple[WorkerSelector, ...]:
    return tuple(
        WorkerSelector(
            frozenset(WorkerId(who) for who in each.worker_ids),
            frozenset(Region(region) for region in each.regions),
            frozenset(each.tiers),
            frozenset(each.labels),
        )
        for each in messages
    )


def _selector_messages(selectors: Iterable[WorkerSelector]) -> list[pb.WorkerSelector]:
    return [
        pb.WorkerSelector(
            worker_ids=sorted(each.worker_ids),
            regions=sorted(each.regions),
            tiers=sorted(each.tiers),
            labels=sorted(each.labels),
        )
        for each in selectors
    ]


def _candidate(considered: Considered) -> pb.Candidate:
    excluded_by = considered.excluded_by
    return pb.Candidate(
        worker_id=considered.worker_id,
        region=considered.region,
        excluded_by=f"{excluded_by.value}: {considered.verdict}" if excluded_by is not None else "",
        score=considered.score,
        parts=[pb.ScorePart(name=part.name, weight=part.weight, value=part.value) for part in considered.parts],
        verdict=considered.verdict,
    )


def _worker(decision: Decision | None) -> str:
    return decision.worker_id if isinstance(decision, Granted) else ""
