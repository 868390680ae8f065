"""What a worker tells of itself as messages, and what others told of themselves. Like `execute/frames.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from google.protobuf.message import DecodeError
from penstock.worker.v1 import presence_pb2, worker_pb2

from runtime.errors import InvalidArgument
from runtime.ids import Digest, Region, WorkerId
from worker.hardware import Hardware
from worker.life.lifecycle import Copy
from worker.types import CopyState

_STATES: Mapping[CopyState, worker_pb2.ModelState.ValueType] = MappingProxyType(
    {
        CopyState.UNAVAILABLE: worker_pb2.MODEL_STATE_UNAVAILABLE,
        CopyState.LOADING: worker_pb2.MODEL_STATE_LOADING,
        CopyState.READY: worker_pb2.MODEL_STATE_READY,
        CopyState.DRAINING: worker_pb2.MODEL_STATE_DRAINING,
        CopyState.UNLOADING: worker_pb2.MODEL_STATE_UNLOADING,
        CopyState.FAILED: worker_pb2.MODEL_STATE_FAILED,
    }
)


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What does not change while a worker runs."""

    worker_id: WorkerId
    region: Region
    address: str
    """host:port of WorkerService."""
    tiers: tuple[str, ...]
    hardware: Hardware
    x25519_public_key: bytes
    max_in_flight: int
    software_version: str
    labels: tuple[str, ...] = ()
    memory_budget_bytes: int = 0
    """What its models may take together; 0 = it does not say."""
    sealed_address: str = ""
    """host:port of SealedService; empty: it has none."""
    kserve_address: str = ""
    """host:port of its own KServe port; empty: it has none."""
    cost: float = 1.0
    """What a request here costs beside one elsewhere."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one record from the one before."""

    sequence: int
    wall_time_ms: int


@dataclass(frozen=True, slots=True)
class HeldCopy:
    """What a record of another worker's copy says."""

    worker_id: WorkerId
    digest: Digest
    is_ready: bool


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where another worker answers."""

    worker_id: WorkerId
    address: str


def read_held_copy(payload: bytes) -> HeldCopy:
    """From a ModelPresence. Raises InvalidArgument where the bytes are none."""
    try:
        message = presence_pb2.ModelPresence.FromString(payload)
    except DecodeError as error:
        raise InvalidArgument("the record holds no penstock.worker.v1.ModelPresence") from error
    copy = message.copy
    return HeldCopy(WorkerId(message.worker_id), Digest(copy.digest), copy.state == worker_pb2.MODEL_STATE_READY)


def read_whereabouts(payload: bytes) -> Whereabouts:
    """From a Presence. Raises InvalidArgument where the bytes are none."""
    try:
        message = presence_pb2.Presence.FromString(payload)
    except DecodeError as error:
        raise InvalidArgument("the record holds no penstock.worker.v1.Presence") from error
    return Whereabouts(WorkerId(message.worker_id), message.address)


def copy_message(copy: Copy, *, draining: bool = False) -> worker_pb2.ModelCopy:
    """`draining`: the whole worker takes no more requests, so neither does this copy.

    Its memory is what the budget counts for it, which stays the same while it lives; what was measured wanders and is not told.
    """
    state = CopyState.DRAINING if draining and copy.state is CopyState.READY else copy.state
    return worker_pb2.ModelCopy(
        model=copy.model,
        version=copy.version,
        digest=copy.digest,
        state=_STATES[state],
        reason=copy.reason,
        task=copy.task.value if copy.task else "",
        max_batch_size=copy.max_batch_size,
        memory_bytes=copy.memory_bytes,
        capabilities=sorted(copy.traits.capabilities),
        cacheable=copy.traits.cacheable,
        context_tokens=copy.traits.context_tokens,
        cost_per_million_tokens=copy.traits.cost_per_million_tokens,
    )


def copy_messages(copies: Iterable[Copy], *, draining: bool) -> list[worker_pb2.ModelCopy]:
    return [copy_message(copy, draining=draining) for copy in copies]


def presence_bytes(facts: WorkerFacts, copies: Iterable[worker_pb2.ModelCopy], stamp: Stamp, *, disk_free_bytes: int) -> bytes:
    hardware = facts.hardware
    return presence_pb2.Presence(
        worker_id=facts.worker_id,
        region=facts.region,
        address=facts.address,
        tiers=facts.tiers,
        hardware=presence_pb2.Hardware(
            cpu_model=hardware.cpu_model,
            cpu_cores=hardware.cpu_cores,
            memory_bytes=hardware.memory_bytes,
            disk_free_bytes=disk_free_bytes,
            gpus=[
                presence_pb2.Gpu(name=gpu.name, memory_bytes=gpu.memory_bytes, compute_capability=gpu.compute_capability)
                for gpu in hardware.gpus
            ],
        ),
        models=copies,
        x25519_public_key=facts.x25519_public_key,
        sequence=stamp.sequence,
        wall_time_ms=stamp.wall_time_ms,
        max_in_flight=facts.max_in_flight,
        software_version=facts.software_version,
        labels=facts.labels,
        memory_budget_bytes=facts.memory_budget_bytes,
        sealed_address=facts.sealed_address,
        kserve_address=facts.kserve_address,
        cost=facts.cost,
    ).SerializeToString()


def model_presence_bytes(facts: WorkerFacts, copy: worker_pb2.ModelCopy, stamp: Stamp) -> bytes:
    return presence_pb2.ModelPresence(
        worker_id=facts.worker_id,
        region=facts.region,
        copy=copy,
        sequence=stamp.sequence,
        wall_time_ms=stamp.wall_time_ms,
    ).SerializeToString()
