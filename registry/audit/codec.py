"""Between the wire's messages and the nouns of the audit trail."""

from __future__ import annotations

from dataclasses import asdict

from penstock.registry.v1 import audit_pb2

from registry.access.types import Principal
from registry.audit.policy import DEFAULT_ENTRIES, MAX_DETAIL_CHARACTERS, whose
from registry.audit.types import AuditEntry, EntryWish, Incident
from runtime.ids import TenantId


def wish_of(request: audit_pb2.ListEntriesRequest, principal: Principal) -> EntryWish:
    wanted = TenantId(request.tenant) if request.tenant else None
    return EntryWish(
        tenant=whose(wanted, principal.tenant),
        actor_id=request.actor_id,
        action=request.action,
        subject=request.subject,
        limit=request.limit or DEFAULT_ENTRIES,
        before=request.before,
    )


def incident_of(request: audit_pb2.ReportIncidentRequest) -> Incident:
    return Incident(request.reason, request.subject, request.detail[:MAX_DETAIL_CHARACTERS])


def entry_message(entry: AuditEntry) -> audit_pb2.AuditEntry:
    return audit_pb2.AuditEntry(**asdict(entry))
