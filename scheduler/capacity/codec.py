"""AwaitCapacity's messages and the nouns of waiting: what is malformed is told here, nothing else is decided."""

from __future__ import annotations

from penstock.scheduler.v1 import scheduler_pb2

from runtime.errors import InvalidArgument
from runtime.ids import ModelName, ModelVersion, Region, TenantId, WorkerId
from scheduler.capacity.types import Asked, Place

MAX_NAME = 256
MAX_EXCLUDED = 256


def asked_of(message: scheduler_pb2.AwaitCapacityRequest, home: Region) -> Asked:
    """An empty region is the scheduler's own. Raises InvalidArgument."""
    if not message.model:
        raise InvalidArgument("model is empty; name the one that the request is for")
    for what, name in (("model", message.model), ("region", message.region), ("tenant", message.tenant)):
        if len(name) > MAX_NAME:
            raise InvalidArgument(f"{what} has {len(name)} characters; up to {MAX_NAME} are taken")
    if len(message.version) > MAX_NAME or (message.version and not _is_number(message.version)):
        raise InvalidArgument(f"version {message.version[:40]!r} is no positive decimal number; leave it empty for any")
    if len(message.exclude_worker_ids) > MAX_EXCLUDED:
        raise InvalidArgument(f"{len(message.exclude_worker_ids)} workers are excluded; up to {MAX_EXCLUDED} may be")
    if any(len(each) > MAX_NAME for each in message.exclude_worker_ids):
        raise InvalidArgument(f"a worker that is excluded has an id of more than {MAX_NAME} characters; no worker has")
    return Asked(
        ModelName(message.model),
        Region(message.region) or home,
        TenantId(message.tenant),
        ModelVersion(message.version),
        message.priority,
        message.timeout_us / 1_000_000 if message.timeout_us else None,
        frozenset(WorkerId(each) for each in message.exclude_worker_ids),
    )


def _is_number(version: str) -> bool:
    return version.isdecimal() and int(version[:20]) > 0


def place_message(place: Place, now_s: float) -> scheduler_pb2.AwaitCapacityResponse:
    return scheduler_pb2.AwaitCapacityResponse(
        worker_id=place.worker_id,
        version=place.version,
        hold_id=place.hold_id,
        expires_after_ms=max(0, int((place.until_s - now_s) * 1000)),
    )
