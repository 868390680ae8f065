"""What was refused, and what was found altered, written into the trail: so much for each actor, that nobody can fill it.

Owns how much that is. What is left out is counted, and the actor's next entry says how many there were. Never fails the call
that it tells of.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import structlog
from sqlalchemy.exc import SQLAlchemyError

from registry.access.throttle import Throttle
from registry.access.types import ActorKind, Principal
from registry.audit.trail import AuditTrail
from registry.audit.types import AuditNote, AuditOutcome, note_of
from registry.seals import RowAltered
from runtime.clock import Clock
from runtime.database import DatabaseUnavailable
from runtime.errors import PenstockError

BURST = 20
PER_S = 1 / 30
_MAX_ACTORS = 4096
_log = structlog.get_logger("penstock.registry")


class BoundedTrail:
    """In front of the trail, for notes that anybody can cause."""

    def __init__(self, trail: AuditTrail, clock: Clock, *, burst: int = BURST, per_s: float = PER_S) -> None:
        self._trail, self._clock = trail, clock
        self._throttle = Throttle(burst=burst, per_s=per_s, names=_MAX_ACTORS)
        self._left_out: OrderedDict[str, int] = OrderedDict()

    async def refused(self, principal: Principal | None, action: str, subject: str, error: PenstockError) -> None:
        """Somebody might not."""
        await self.note(_note(principal, action, subject, AuditOutcome.REFUSED, error))

    async def hidden(self, principal: Principal, action: str, subject: str, error: PenstockError) -> None:
        """Somebody might not, and was told that there is nothing: for operators to read, and not for the caller's tenant.

        Out of a budget of its own: the other one's would tell how often there was something.
        """
        note = replace(_note(principal, action, subject, AuditOutcome.REFUSED, error), tenant=None)
        await self.note(note, actor=f"hidden from {principal.kind.value} {principal.actor_id}")

    async def altered(self, principal: Principal | None, error: RowAltered) -> None:
        """The database is not as the registry wrote it. One budget for all callers: it is nobody's doing that calls.

        For operators to read: whose row it is cannot be said any more, and its name may be another tenant's than the caller's.
        """
        row = error.message.partition(" is not as ")[0]
        note = replace(_note(principal, "tampering", row, AuditOutcome.FAILED, error), tenant=None)
        await self.note(note, actor="tampering")

    async def note(self, note: AuditNote, *, actor: str = "") -> None:
        """Within the actor's budget; without a name, that of who is in the note."""
        actor = actor or f"{note.actor_kind.value} {note.actor_id}"
        if self._throttle.take(actor, self._clock.monotonic_s()):
            self._leave_out(actor)
            return
        left_out = self._left_out.pop(actor, 0)
        if left_out:
            note = replace(note, detail=f"{left_out} more before this one were not written down; {note.detail}")
        try:
            await self._trail.note(note)
        except (DatabaseUnavailable, SQLAlchemyError) as error:
            _log.warning("audit_note_lost", action=note.action, error=str(error))

    def _leave_out(self, actor: str) -> None:
        self._left_out[actor] = self._left_out.get(actor, 0) + 1
        self._left_out.move_to_end(actor)
        while len(self._left_out) > _MAX_ACTORS:
            self._left_out.popitem(last=False)


def _note(principal: Principal | None, action: str, subject: str, outcome: AuditOutcome, error: PenstockError) -> AuditNote:
    detail = f"{error.reason}: {error.message}"
    if principal is None:
        return AuditNote(ActorKind.NOBODY, "", action, subject, None, outcome, detail)
    return note_of(principal, action, subject, outcome=outcome, detail=detail)
