"""What `penstock audit` does: the registry's trail as a table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from penstock.registry.v1 import audit_pb2, audit_pb2_grpc
from rich.text import Text

from cli.profile import Profile
from cli.tables import console, table

_PAGE = 1000
_STYLES = {"refused": "yellow", "failed": "red"}


@dataclass(frozen=True, slots=True)
class AuditQuestion:
    """Empty = any."""

    action: str = ""
    subject: str = ""
    actor: str = ""
    tenant: str = ""
    limit: int = 100


async def show_audit(profile: Profile, asked: AuditQuestion) -> None:
    """A row per entry, newest first."""
    async with profile.registry_channel() as registry:
        entries = await _entries(audit_pb2_grpc.AuditServiceStub(registry), asked)
    rows = table("entry", "at (UTC)", "who", "action", "subject", "outcome", "tenant", "detail")
    for entry in entries:
        at = f"{datetime.fromtimestamp(entry.at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
        who = f"{entry.actor_kind} {entry.actor_id}".strip()
        cells = (str(entry.entry), at, who, entry.action, entry.subject, entry.outcome, entry.tenant, entry.detail)
        rows.add_row(*map(Text, cells), style=_STYLES.get(entry.outcome))
    console().print(rows if entries else "there are no such entries")


async def _entries(stub: audit_pb2_grpc.AuditServiceStub, asked: AuditQuestion) -> list[audit_pb2.AuditEntry]:
    found: list[audit_pb2.AuditEntry] = []
    while (missing := asked.limit - len(found)) > 0:
        request = audit_pb2.ListEntriesRequest(
            tenant=asked.tenant,
            actor_id=asked.actor,
            action=asked.action,
            subject=asked.subject,
            limit=min(missing, _PAGE),
            before=found[-1].entry if found else 0,
        )
        page = (await stub.ListEntries(request)).entries
        found += page
        if len(page) < request.limit:
            break
    return found
