"""Messages of scheduler and registry to nouns. With servicers and clients, the only place that sees them. Decides nothing."""

from __future__ import annotations

from functools import lru_cache

from penstock.registry.v1 import accounts_pb2, models_pb2
from penstock.scheduler.v1 import scheduler_pb2
from penstock.worker.v1 import presence_pb2, worker_pb2

from gateway.admission import KeyFacts
from gateway.limits.codec import limit_of
from gateway.limits.types import Limit
from gateway.types import CapacityAsk, DemandReport, FleetNews, Held, Leader, PublishedVersion
from placement.copies.assign import Placement
from placement.rules import NOBODY_INSTEAD, Cause, RoutingPolicy, Rule, WorkerSelector
from placement.types import Copy, CopyState, Strategy, Worker
from runtime.errors import InvalidArgument
from runtime.ids import Digest, KeyId, ModelName, ModelVersion, Region, TenantId, WorkerId

_STATES: dict[int, CopyState] = {
    worker_pb2.MODEL_STATE_UNAVAILABLE: CopyState.UNAVAILABLE,
    worker_pb2.MODEL_STATE_LOADING: CopyState.LOADING,
    worker_pb2.MODEL_STATE_READY: CopyState.READY,
    worker_pb2.MODEL_STATE_DRAINING: CopyState.DRAINING,
    worker_pb2.MODEL_STATE_UNLOADING: CopyState.UNLOADING,
    worker_pb2.MODEL_STATE_FAILED: CopyState.FAILED,
}


_INFER, _LOAD = "infer", "models:load"
_SCOPES: dict[str, frozenset[str]] = {
    "owner": frozenset({_INFER, _LOAD}),
    "publisher": frozenset({_INFER, _LOAD}),
    "caller": frozenset({_INFER}),
}
"""What a role may do here, where a key names no scopes. One that names some has those of its role, or fewer."""

_UNSHADOWED = "none"
_NO_CAPABILITIES: frozenset[str] = frozenset()


def news_of(message: scheduler_pb2.WatchFleetResponse) -> FleetNews:
    """Without its policy: one that is malformed must not take the fleet along. See `policy_of`."""
    placements, leaders = None, None
    if message.HasField("placements"):
        placements = tuple(placement_of(each) for each in message.placements.placements)
    if message.HasField("leaders"):
        leaders = tuple(_leader(each) for each in message.leaders.leaders)
    return FleetNews(
        message.snapshot,
        tuple(worker_of(each) for each in message.workers),
        tuple(WorkerId(each) for each in message.removed_worker_ids),
        message.stale,
        placements,
        leaders=leaders,
    )


def policy_of(message: scheduler_pb2.RoutingPolicy) -> RoutingPolicy:
    """Raises InvalidArgument where a rule names what this gateway does not know."""
    return RoutingPolicy(message.generation, tuple(_rule(each) for each in message.rules))


def worker_of(message: presence_pb2.Presence) -> Worker:
    return Worker(
        WorkerId(message.worker_id),
        Region(message.region),
        message.address,
        frozenset(message.tiers),
        tuple(_copy(model) for model in message.models),
        message.max_in_flight,
        message.sequence,
        labels=frozenset(message.labels),
        memory_budget_bytes=message.memory_budget_bytes,
        gpu_memory_bytes=max((gpu.memory_bytes for gpu in message.hardware.gpus), default=0),
        cost=message.cost or 1.0,
        sealed_address=message.sealed_address,
        kserve_address=message.kserve_address,
    )


def placement_of(message: scheduler_pb2.Placement) -> Placement:
    return Placement(
        ModelName(message.model),
        ModelVersion(message.version),
        Digest(message.digest),
        Region(message.region),
        message.copies,
        message.generation,
        message.max_copies,
        message.tier,
        frozenset(message.labels),
        message.memory_bytes,
        message.idle_s,
    )


def place_request(placement: Placement) -> scheduler_pb2.PlaceModelRequest:
    return scheduler_pb2.PlaceModelRequest(
        placement=scheduler_pb2.Placement(
            model=placement.model,
            version=placement.version,
            digest=placement.digest,
            region=placement.region,
            copies=placement.copies,
            max_copies=placement.max_copies,
            tier=placement.tier,
            labels=sorted(placement.labels),
            memory_bytes=placement.memory_bytes,
            idle_s=placement.idle_s,
        )
    )


def capacity_request(ask: CapacityAsk, now_s: float) -> scheduler_pb2.AwaitCapacityRequest:
    return scheduler_pb2.AwaitCapacityRequest(
        model=ask.model,
        version=ask.version,
        region=ask.region,
        tenant=ask.tenant,
        priority=ask.priority,
        timeout_us=max(1, int((ask.until_s - now_s) * 1_000_000)),
        exclude_worker_ids=sorted(ask.exclude),
        session_key=ask.session_key,
    )


def held_of(message: scheduler_pb2.AwaitCapacityResponse) -> Held:
    return Held(WorkerId(message.worker_id), ModelVersion(message.version), message.hold_id)


def demand_messages(report: DemandReport) -> list[scheduler_pb2.ReportDemandRequest]:
    """One for each region that something was asked from; each says the same of the workers, because the last one counts."""
    regions = sorted({region or report.region for region, _, _ in report.models}) or [report.region]
    return [_demand_message(report, region) for region in regions]


def _demand_message(report: DemandReport, of: Region) -> scheduler_pb2.ReportDemandRequest:
    message = scheduler_pb2.ReportDemandRequest(interval_ms=max(1, int(report.interval_s * 1000)), region=of)
    for (region, model, version), counts in report.models.items():
        if (region or report.region) == of:
            message.models.add(
                model=model,
                version=version,
                requests=counts.requests,
                refused=counts.refused,
                missed=counts.missed,
                busy_s=counts.busy_s,
            )
    for sight in report.workers:
        message.workers.add(
            worker_id=sight.worker_id,
            in_flight=sight.in_flight,
            told_in_flight=sight.told_in_flight,
            queued_rows=sight.queued_rows,
            latency_ms=sight.latency_ms,
            avoided=sight.avoided,
            rtt_ms=sight.rtt_ms,
        )
    return message


def key_facts_of(message: accounts_pb2.ResolveKeyResponse) -> KeyFacts:
    """A key's own rate limit is a limit like any other."""
    key = message.key
    scopes = frozenset(key.scopes) or _SCOPES.get(key.role, frozenset())
    limits = [limit_of(each) for each in message.limits]
    if (rate := key.rate_limit).requests_per_s > 0:
        limits.append(Limit(f"key/{key.key_id}", key_id=key.key_id, requests_per_s=rate.requests_per_s, burst=rate.burst))
    return KeyFacts(
        KeyId(key.key_id),
        TenantId(key.tenant),
        _LOAD in scopes,
        _INFER in scopes,
        frozenset(key.allowed_models),
        key.expires_at_ms / 1000,
        tuple(limits),
    )


def version_of(model: str, message: models_pb2.VersionSummary) -> PublishedVersion:
    return PublishedVersion(
        ModelName(model),
        ModelVersion(message.version),
        Digest(message.digest),
        message.task,
        message.published_at_ms // 1000,
    )


def _copy(message: worker_pb2.ModelCopy) -> Copy:
    return Copy(
        ModelName(message.model),
        ModelVersion(message.version),
        Digest(message.digest),
        _STATES.get(message.state, CopyState.UNAVAILABLE),
        message.reason,
        message.task,
        message.max_batch_size,
        message.memory_bytes,
        _capabilities(tuple(message.capabilities)) if message.capabilities else _NO_CAPABILITIES,
        message.cacheable,
        message.context_tokens,
        message.cost_per_million_tokens,
    )


@lru_cache(maxsize=1024)
def _capabilities(names: tuple[str, ...]) -> frozenset[str]:
    """One set for all copies that say the same: a fleet has many."""
    return frozenset(names)


def _leader(message: scheduler_pb2.Leader) -> Leader:
    return Leader(message.address, frozenset(Region(each) for each in message.regions), message.term)


def _rule(message: scheduler_pb2.RoutingRule) -> Rule:
    shadow = message.shadow_strategy
    return Rule(
        message.name,
        tuple(message.tenants),
        tuple(message.models),
        tuple(message.regions),
        _strategy(message.name, message.strategy),
        {field.name: value for field, value in message.weights.ListFields()},
        None if shadow == _UNSHADOWED else _strategy(message.name, shadow),
        shadow == _UNSHADOWED,
        tuple(_selector(each) for each in message.deny),
        tuple(_selector(each) for each in message.allow),
        tuple(_selector(each) for each in message.prefer),
        message.cross_region if message.HasField("cross_region") else None,
        message.priority_class if message.HasField("priority_class") else None,
        message.share,
        dict(message.flags),
        () if list(message.fallbacks) == [NOBODY_INSTEAD] else tuple(message.fallbacks) or None,
        frozenset(_cause(message.name, each) for each in message.fallback_on),
        message.hedge_quantile if message.HasField("hedge_quantile") else None,
        message.sticky_versions if message.HasField("sticky_versions") else None,
        tuple(message.auto_models),
    )


def _strategy(rule: str, name: str) -> Strategy | None:
    if not name:
        return None
    try:
        return Strategy(name)
    except ValueError:
        known = ", ".join(each.value for each in Strategy)
        raise InvalidArgument(f"rule {rule[:64]!r} names strategy {name[:64]!r}; this gateway knows: {known}") from None


def _cause(rule: str, name: str) -> Cause:
    try:
        return Cause(name)
    except ValueError:
        known = ", ".join(each.value for each in Cause)
        raise InvalidArgument(f"rule {rule[:64]!r} falls back on {name[:64]!r}; this gateway knows: {known}") from None


def _selector(message: scheduler_pb2.WorkerSelector) -> WorkerSelector:
    return WorkerSelector(
        frozenset(WorkerId(each) for each in message.worker_ids),
        frozenset(Region(each) for each in message.regions),
        frozenset(message.tiers),
        frozenset(message.labels),
    )
