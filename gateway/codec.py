"""Messages of scheduler and registry to nouns. With servicers and clients, the only place that sees them. Decides nothing."""

from __future__ import annotations

from penstock.registry.v1 import accounts_pb2, models_pb2
from penstock.scheduler.v1 import scheduler_pb2
from penstock.worker.v1 import presence_pb2, worker_pb2

from gateway.admission import KeyFacts
from gateway.types import FleetNews, PublishedVersion
from placement.assign import Placement
from placement.types import Copy, CopyState, Worker
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


def news_of(message: scheduler_pb2.WatchFleetResponse, region: Region) -> FleetNews:
    """What concerns this region: workers come filtered, wishes come for all."""
    placements = None
    if message.HasField("placements"):
        placements = tuple(placement_of(each) for each in message.placements.placements if each.region == region)
    return FleetNews(
        message.snapshot,
        tuple(worker_of(each) for each in message.workers),
        tuple(WorkerId(each) for each in message.removed_worker_ids),
        message.stale,
        placements,
    )


def worker_of(message: presence_pb2.Presence) -> Worker:
    return Worker(
        WorkerId(message.worker_id),
        Region(message.region),
        message.address,
        frozenset(message.tiers),
        tuple(_copy(model) for model in message.models),
        message.max_in_flight,
        message.sequence,
    )


def placement_of(message: scheduler_pb2.Placement) -> Placement:
    return Placement(
        ModelName(message.model),
        ModelVersion(message.version),
        Digest(message.digest),
        Region(message.region),
        message.copies,
        message.generation,
    )


def place_request(placement: Placement) -> scheduler_pb2.PlaceModelRequest:
    return scheduler_pb2.PlaceModelRequest(
        placement=scheduler_pb2.Placement(
            model=placement.model,
            version=placement.version,
            digest=placement.digest,
            region=placement.region,
            copies=placement.copies,
        )
    )


def key_facts_of(message: accounts_pb2.ApiKey) -> KeyFacts:
    scopes = frozenset(message.scopes) or _SCOPES.get(message.role, frozenset())
    return KeyFacts(
        KeyId(message.key_id),
        TenantId(message.tenant),
        _LOAD in scopes,
        _INFER in scopes,
        frozenset(message.allowed_models),
        message.rate_limit.requests_per_s,
        message.rate_limit.burst,
        message.expires_at_ms / 1000,
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
    )
