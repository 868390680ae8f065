"""The nouns of the audit trail."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from registry.access.types import ActorKind, Principal
from runtime.errors import Code, PenstockError
from runtime.ids import TenantId


class AuditOutcome(enum.Enum):
    DONE = "done"
    REFUSED = "refused"
    """Somebody might not."""
    FAILED = "failed"
    """It was not what it should be."""


class IncidentsTooMany(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="INCIDENTS_TOO_MANY"):
    """This node reported more than is written down."""


@dataclass(frozen=True, slots=True)
class AuditNote:
    """What is to be written down; the trail adds number and time."""

    actor_kind: ActorKind
    actor_id: str
    action: str
    subject: str
    tenant: TenantId | None = None
    outcome: AuditOutcome = AuditOutcome.DONE
    detail: str = ""
    request_id: str = ""


def note_of(
    principal: Principal,
    action: str,
    subject: str,
    *,
    tenant: TenantId | None = None,
    outcome: AuditOutcome = AuditOutcome.DONE,
    detail: str = "",
) -> AuditNote:
    """What this caller did."""
    return AuditNote(
        principal.kind, principal.actor_id, action, subject, tenant or principal.tenant, outcome, detail, principal.request_id
    )


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A note as it stands in the trail."""

    entry: int
    at_ms: int
    actor_kind: str
    actor_id: str
    tenant: str
    action: str
    subject: str
    outcome: str
    detail: str
    request_id: str


@dataclass(frozen=True, slots=True)
class EntryWish:
    """Which entries are asked for; empty = any."""

    tenant: TenantId | None = None
    actor_id: str = ""
    action: str = ""
    """Or its start."""
    subject: str = ""
    limit: int = 100
    before: int = 0
    """0 = from the newest."""


@dataclass(frozen=True, slots=True)
class Incident:
    """What a node says it was given."""

    reason: str
    subject: str
    detail: str
