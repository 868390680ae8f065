"""FleetService.Reserve, ReleaseReservation and Drain on the wire."""

from __future__ import annotations

import re
from typing import Any

import grpc.aio
from penstock.scheduler.v1 import scheduler_pb2
from penstock.worker.v1 import presence_pb2

from placement.types import ANY_REGION
from runtime.errors import InvalidArgument, Unimplemented
from runtime.ids import ModelName, ModelVersion, Region, TenantId, WorkerId
from scheduler.reservations.desk import Desk
from scheduler.reservations.types import DEFAULT_TTL_S, MAX_TTL_S, Asked

TOKEN_SHA256_BYTES = 32
MAX_NAME = 256
MAX_SESSION_KEY = 65_536
_REGION = re.compile(r"[a-z0-9-]{1,32}")
DEFAULT_GRACE_S = 30.0
MAX_GRACE_S = 86_400.0

Context = grpc.aio.ServicerContext[Any, Any]


class ReservationServicer:
    """Its part of FleetService. `region`: the scheduler's own, where a request names none."""

    def __init__(self, desk: Desk | None = None, region: Region = ANY_REGION) -> None:
        self._desk, self._region = desk, region

    async def Reserve(self, request: scheduler_pb2.ReserveRequest, context: Context) -> scheduler_pb2.ReserveResponse:
        kept = await self._open().reserve(_asked(request, self._region))
        return scheduler_pb2.ReserveResponse(
            reservation_id=kept.reservation_id,
            worker_id=kept.worker.worker_id,
            model=request.model,
            version=kept.version,
            address=kept.worker.sealed_address,
            presence=presence_pb2.SignedRecord.FromString(kept.record),
            expires_at_ms=int(kept.expires_wall_s * 1000),
        )

    async def ReleaseReservation(
        self, request: scheduler_pb2.ReleaseReservationRequest, context: Context
    ) -> scheduler_pb2.ReleaseReservationResponse:
        await self._open().release(request.reservation_id)
        return scheduler_pb2.ReleaseReservationResponse()

    async def Drain(self, request: scheduler_pb2.DrainRequest, context: Context) -> scheduler_pb2.DrainResponse:
        grace_s = request.grace_ms / 1000 or DEFAULT_GRACE_S
        if grace_s > MAX_GRACE_S:
            raise InvalidArgument(f"a grace of {grace_s:.0f} s; at most {MAX_GRACE_S:.0f} s are given")
        await self._open().drain(WorkerId(request.worker_id), grace_s)
        return scheduler_pb2.DrainResponse()

    def _open(self) -> Desk:
        if self._desk is None:
            raise Unimplemented("this scheduler keeps no places and drains no workers; ask another one")
        return self._desk


def _asked(request: scheduler_pb2.ReserveRequest, region: Region) -> Asked:
    """Raises InvalidArgument."""
    if not request.model:
        raise InvalidArgument("the request names no model; a place is kept for one model")
    if request.region and not _REGION.fullmatch(request.region):
        raise InvalidArgument(f"{request.region[:64]!r} is no region; lower-case letters, digits and '-' are, up to 32 of them")
    for what, name in (("model", request.model), ("tenant", request.tenant)):
        if len(name) > MAX_NAME or not name.isprintable():
            raise InvalidArgument(f"{what} {name[:80]!r} is no name; up to {MAX_NAME} printable characters are")
    if len(request.session_key) > MAX_SESSION_KEY:
        raise InvalidArgument(f"session_key has {len(request.session_key)} characters; up to {MAX_SESSION_KEY} are taken")
    if request.version and not (request.version.isdecimal() and len(request.version) <= MAX_NAME):
        raise InvalidArgument(f"version {request.version[:40]!r} is no number; the gateway resolves aliases")
    if len(request.token_sha256) != TOKEN_SHA256_BYTES:
        raise InvalidArgument(
            f"token_sha256 has {len(request.token_sha256)} bytes; the sha256 of the secret is expected, {TOKEN_SHA256_BYTES}"
        )
    ttl_s = request.ttl_ms / 1000 or DEFAULT_TTL_S
    if ttl_s > MAX_TTL_S:
        raise InvalidArgument(f"a place kept for {ttl_s:.0f} s; at most {MAX_TTL_S:.0f} s are")
    return Asked(
        ModelName(request.model),
        ModelVersion(request.version),
        Region(request.region) or region,
        TenantId(request.tenant),
        ttl_s,
        request.token_sha256,
        request.session_key,
    )
