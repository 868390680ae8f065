"""Messages to nouns and back: presence, wishes, assignments, and what watchers of the fleet are told.

With the servicer, the only place where the scheduler sees a generated message. Decides what is malformed, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from google.protobuf.message import DecodeError
from penstock.scheduler.v1 import scheduler_pb2
from penstock.worker.v1 import presence_pb2, worker_pb2

from placement.copies.assign import AssignedModel, Placement
from placement.rules import RoutingPolicy
from placement.types import Copy, CopyState, Worker
from runtime.errors import InvalidArgument
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId
from scheduler.leading.codec import leader_list
from scheduler.leading.types import Leader
from scheduler.routing.codec import policy_message

MAX_REGION_CHARACTERS = 32
_NO_CAPABILITIES: frozenset[str] = frozenset()

_STATES: dict[int, CopyState] = {
    worker_pb2.MODEL_STATE_UNAVAILABLE: CopyState.UNAVAILABLE,
    worker_pb2.MODEL_STATE_LOADING: CopyState.LOADING,
    worker_pb2.MODEL_STATE_READY: CopyState.READY,
    worker_pb2.MODEL_STATE_DRAINING: CopyState.DRAINING,
    worker_pb2.MODEL_STATE_UNLOADING: CopyState.UNLOADING,
    worker_pb2.MODEL_STATE_FAILED: CopyState.FAILED,
}


@dataclass(frozen=True, slots=True)
class PresenceFacts:
    """What a presence says, and how fresh it is."""

    worker: Worker
    wall_time_s: float
    shown: bytes = field(repr=False)


def presence_facts(payload: bytes) -> PresenceFacts:
    """Raises InvalidArgument where the bytes are no presence."""
    try:
        message = presence_pb2.Presence.FromString(payload)
    except DecodeError as error:
        raise InvalidArgument("the record holds no penstock.worker.v1.Presence") from error
    worker, wall_time_s = worker_of(message), message.wall_time_ms / 1000
    message.sequence, message.wall_time_ms = 0, 0
    message.hardware.disk_free_bytes = 0  # differs with every heartbeat and places nothing
    return PresenceFacts(worker, wall_time_s, message.SerializeToString(deterministic=True))


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


def region_of(name: str) -> Region:
    """Empty: all. Raises InvalidArgument on what names none."""
    if len(name) > MAX_REGION_CHARACTERS:
        raise InvalidArgument(f"{name[:64]!r}… is no region: it has {len(name)} characters, of {MAX_REGION_CHARACTERS} at most")
    return Region(name)


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


def placement_message(placement: Placement) -> scheduler_pb2.Placement:
    return scheduler_pb2.Placement(
        model=placement.model,
        version=placement.version,
        digest=placement.digest,
        region=placement.region,
        copies=placement.copies,
        generation=placement.generation,
        max_copies=placement.max_copies,
        tier=placement.tier,
        labels=sorted(placement.labels),
        memory_bytes=placement.memory_bytes,
        idle_s=placement.idle_s,
    )


def placement_bytes(placement: Placement) -> bytes:
    return placement_message(placement).SerializeToString()


def placement_from(raw: bytes) -> Placement:
    """Raises InvalidArgument where the bytes are no wish."""
    try:
        return placement_of(scheduler_pb2.Placement.FromString(raw))
    except DecodeError as error:
        raise InvalidArgument("the value is no penstock.scheduler.v1.Placement") from error


def assignment_bytes(models: Iterable[AssignedModel]) -> bytes:
    message = scheduler_pb2.Assignment(
        models=[
            scheduler_pb2.AssignedModel(model=each.model, version=each.version, digest=each.digest, generation=each.generation)
            for each in models
        ]
    )
    return message.SerializeToString()


def assignment_from(raw: bytes) -> tuple[AssignedModel, ...]:
    """Raises InvalidArgument where the bytes are no assignment."""
    try:
        message = scheduler_pb2.Assignment.FromString(raw)
    except DecodeError as error:
        raise InvalidArgument("the value is no penstock.scheduler.v1.Assignment") from error
    return tuple(
        AssignedModel(ModelName(each.model), ModelVersion(each.version), Digest(each.digest), each.generation)
        for each in message.models
    )


def watch_message(
    *,
    snapshot: bool,
    payloads: Iterable[bytes],
    removed: Iterable[WorkerId],
    stale: bool,
    placements: Iterable[Placement] | None,
    leaders: Iterable[Leader] | None = None,
    policy: RoutingPolicy | None = None,
) -> scheduler_pb2.WatchFleetResponse:
    """`placements`, `leaders` and `policy`: all of it, or None where nothing changed."""
    listed = None
    if placements is not None:
        listed = scheduler_pb2.PlacementList(placements=[placement_message(each) for each in placements])
    return scheduler_pb2.WatchFleetResponse(
        snapshot=snapshot,
        workers=presence_messages(payloads),
        removed_worker_ids=list(removed),
        stale=stale,
        placements=listed,
        leaders=leader_list(leaders) if leaders is not None else None,
        routing_policy=policy_message(policy) if policy is not None else None,
    )


def presence_messages(payloads: Iterable[bytes]) -> list[presence_pb2.Presence]:
    return [presence_pb2.Presence.FromString(payload) for payload in payloads]


def _copy(model: worker_pb2.ModelCopy) -> Copy:
    return Copy(
        ModelName(model.model),
        ModelVersion(model.version),
        Digest(model.digest),
        _STATES.get(model.state, CopyState.UNAVAILABLE),
        model.reason,
        model.task,
        model.max_batch_size,
        model.memory_bytes,
        _capabilities(tuple(model.capabilities)) if model.capabilities else _NO_CAPABILITIES,
        model.cacheable,
        model.context_tokens,
        model.cost_per_million_tokens,
    )


@lru_cache(maxsize=1024)
def _capabilities(names: tuple[str, ...]) -> frozenset[str]:
    """One set for all copies that say the same: a fleet has many."""
    return frozenset(names)
