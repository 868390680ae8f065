"""What of files was found altered, or refused to a node, for the audit trail: so many a minute, that nobody fills it.

Rights that were lacking, and altered rows, are noted for every service alike: `registry/audit/audited.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from registry.access.types import Principal
from registry.audit.trail import AuditTrail
from registry.audit.types import AuditOutcome, note_of
from registry.files.data_keys import DataKeyAltered
from registry.files.errors import FileForbidden, ObjectMissing
from runtime.clock import Clock
from runtime.errors import PenstockError
from runtime.sealed_chunks import ChunkAltered

_ALTERED = (DataKeyAltered, ChunkAltered, ObjectMissing)
_MOST_PER_MINUTE = 60


class Incidents:
    def __init__(self, trail: AuditTrail, clock: Clock) -> None:
        self._trail, self._clock = trail, clock
        self._since_s, self._noted = clock.monotonic_s(), 0

    @asynccontextmanager
    async def noted(self, principal: Principal, action: str, subject: str) -> AsyncIterator[None]:
        """Notes what of that kind is raised inside, and lets it pass."""
        try:
            yield
        except _ALTERED as error:
            await self._note(principal, "tampering", subject, AuditOutcome.FAILED, error)
            raise
        except FileForbidden as error:
            await self._note(principal, action, subject, AuditOutcome.REFUSED, error)
            raise

    async def _note(self, principal: Principal, action: str, subject: str, outcome: AuditOutcome, error: PenstockError) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._since_s >= 60:
            self._since_s, self._noted = now_s, 0
        self._noted += 1
        if self._noted <= _MOST_PER_MINUTE:
            with suppress(PenstockError):  # the caller is to hear what was wrong with the file, not with the trail
                await self._trail.note(note_of(principal, action, subject, outcome=outcome, detail=error.message))
