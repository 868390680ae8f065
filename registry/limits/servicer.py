"""LimitService: how much of the mesh somebody may use, asked by whoever the door let in."""

from __future__ import annotations

import grpc.aio
from penstock.registry.v1 import limits_pb2, limits_pb2_grpc

from registry.access.door import Context, Door
from registry.audit.trail import AuditTrail
from registry.limits import codec
from registry.limits.limits import Limits
from registry.limits.rights import setter_of
from registry.limits.sql import LimitSql
from runtime.clock import Clock
from runtime.database import Database
from runtime.ids import TenantId

SERVICE = "penstock.registry.v1.LimitService"


class LimitServicer(limits_pb2_grpc.LimitServiceServicer):
    def __init__(self, *, door: Door, database: Database, sql: LimitSql, trail: AuditTrail, clock: Clock) -> None:
        self._door = door
        self._limits = Limits(database, sql, trail, clock)

    def register(self, server: grpc.aio.Server) -> None:
        limits_pb2_grpc.add_LimitServiceServicer_to_server(self, server)

    async def SetLimit(self, request: limits_pb2.SetLimitRequest, context: Context) -> limits_pb2.SetLimitResponse:
        principal = await self._door.enter(context)
        limit = await self._limits.set(principal, codec.wish_of(request, setter_of(principal)))
        return limits_pb2.SetLimitResponse(limit=codec.limit_message(limit))

    async def ListLimits(self, request: limits_pb2.ListLimitsRequest, context: Context) -> limits_pb2.ListLimitsResponse:
        principal = await self._door.enter(context)
        limits = await self._limits.all(principal, TenantId(request.tenant) if request.tenant else None)
        return limits_pb2.ListLimitsResponse(limits=[codec.limit_message(limit) for limit in limits])

    async def DeleteLimit(self, request: limits_pb2.DeleteLimitRequest, context: Context) -> limits_pb2.DeleteLimitResponse:
        principal = await self._door.enter(context)
        await self._limits.remove(principal, request.limit_id)
        return limits_pb2.DeleteLimitResponse()
