"""AuditService: the trail read by those who may, and what nodes report."""

from __future__ import annotations

import grpc.aio
from penstock.registry.v1 import audit_pb2, audit_pb2_grpc

from registry.access.door import Context, Door
from registry.access.throttle import Throttle
from registry.access.types import Scope
from registry.audit import codec
from registry.audit.bounded import BoundedTrail
from registry.audit.policy import incident_faults, wish_faults
from registry.audit.sql import AuditSql
from registry.audit.trail import AuditTrail
from registry.audit.types import AuditOutcome, IncidentsTooMany, note_of
from registry.seals import Seals
from runtime.clock import Clock
from runtime.database import Database
from runtime.errors import InvalidArgument
from runtime.ids import TenantId

SERVICE = "penstock.registry.v1.AuditService"
INCIDENTS_AT_ONCE = 20
INCIDENTS_PER_S = 0.1


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    def __init__(
        self, *, door: Door, database: Database, seals: Seals, trail: AuditTrail, bounded: BoundedTrail, clock: Clock
    ) -> None:
        self._door, self._database, self._trail, self._bounded, self._clock = door, database, trail, bounded, clock
        self._sql = AuditSql(seals)
        self._incidents = Throttle(burst=INCIDENTS_AT_ONCE, per_s=INCIDENTS_PER_S)

    def register(self, server: grpc.aio.Server) -> None:
        audit_pb2_grpc.add_AuditServiceServicer_to_server(self, server)

    async def ListEntries(self, request: audit_pb2.ListEntriesRequest, context: Context) -> audit_pb2.ListEntriesResponse:
        principal = await self._door.enter(context)
        principal.require(Scope.AUDIT_READ, TenantId(request.tenant) or None)
        wish = codec.wish_of(request, principal)
        if faults := wish_faults(wish):
            raise InvalidArgument("; ".join(faults))
        async with self._database.reading() as connection:
            entries, altered = await self._sql.entries(connection, wish)
        for error in altered:
            await self._bounded.altered(principal, error)
        return audit_pb2.ListEntriesResponse(entries=[codec.entry_message(entry) for entry in entries])

    async def ReportIncident(
        self, request: audit_pb2.ReportIncidentRequest, context: Context
    ) -> audit_pb2.ReportIncidentResponse:
        principal = await self._door.enter(context)
        principal.require(Scope.INCIDENTS_REPORT)
        incident = codec.incident_of(request)
        if faults := incident_faults(incident):
            raise InvalidArgument("; ".join(faults))
        if wait_s := self._incidents.take(principal.actor_id, self._clock.monotonic_s()):
            raise IncidentsTooMany(f"{principal.actor_id} reported more than is written down; slow down", retry_after_s=wait_s)
        action = f"incident.{incident.reason.lower()}"
        note = note_of(principal, action, incident.subject, outcome=AuditOutcome.FAILED, detail=incident.detail)
        await self._trail.note(note)
        return audit_pb2.ReportIncidentResponse()
