"""Who may sign a tenant's models: keys that a root endorsed, until they are revoked. Roots themselves are nowhere here.

Owns that nothing comes back that was taken away: a revoked key is not endorsed again, nor is a newer endorsement replaced by an
older one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import structlog

from registry.access.types import Principal, Scope
from registry.audit.types import note_of
from registry.models.policy import endorsement_faults, is_signer_id, renewal_fault
from registry.models.sql import ModelTables
from registry.models.types import Signer, SignerRefused, SignerUnknown
from runtime.clock import Clock
from runtime.errors import InvalidArgument, NotFound
from runtime.ids import NodeId, TenantId

_log = structlog.get_logger("penstock.registry")


@dataclass(frozen=True, slots=True)
class EndorsedKey:
    """What an endorsement says, whose signature was verified."""

    signer: Signer
    models: tuple[str, ...]
    ed25519_public_key: bytes


class Signing:
    """Keeps the signers."""

    def __init__(self, tables: ModelTables, clock: Clock) -> None:
        self._tables, self._clock = tables, clock

    async def endorse(self, principal: Principal, endorsed: EndorsedKey) -> Signer:
        """Raises InvalidArgument, NotFound (no such tenant), SignerRefused, ScopeRequired."""
        wanted = endorsed.signer
        principal.require(Scope.SIGNERS_WRITE, wanted.tenant)
        if faults := endorsement_faults(wanted, list(endorsed.models), endorsed.ed25519_public_key, self._now_ms()):
            raise InvalidArgument("; ".join(faults))
        async with self._tables.writing() as rows:
            if not await rows.has_tenant(wanted.tenant):
                raise NotFound(f"there is no tenant {wanted.tenant}; create it first")
            known = await rows.signer(wanted.signer_id, wanted.tenant)
            if known is not None and known.endorsement == wanted.endorsement and not known.revoked_at_ms:
                return known
            if known is not None and (fault := renewal_fault(known, wanted)):
                raise SignerRefused(fault)
            await rows.put_signer(wanted)
            told = f"for {', '.join(endorsed.models)} by {wanted.endorsed_by}"
            await rows.note(note_of(principal, "signer.endorse", wanted.signer_id, tenant=wanted.tenant, detail=told))
        _log.info("signer_endorsed", signer_id=wanted.signer_id, tenant=wanted.tenant, endorsed_by=wanted.endorsed_by)
        return wanted

    async def revoke(self, principal: Principal, signer_id: NodeId, tenant: TenantId) -> Signer:
        """Every model of the tenant is told. Doing it again changes nothing.

        Raises InvalidArgument, SignerUnknown, ScopeRequired, OtherTenant.
        """
        principal.require(Scope.SIGNERS_WRITE, tenant)
        if not is_signer_id(signer_id):
            raise InvalidArgument(f"signer {signer_id[:40]!r}: 20 lower-case hex digits are expected, as signers are listed")
        async with self._tables.writing() as rows:
            known = await rows.signer(signer_id, tenant, hold=True)
            if known is None:
                raise SignerUnknown(f"tenant {tenant} has no signer {signer_id}; list the signers to see whom it has")
            if known.revoked_at_ms:
                return known
            revoked = replace(known, revoked_at_ms=self._now_ms())
            await rows.put_signer(revoked)
            await rows.changed_all(tenant)
            await rows.note(note_of(principal, "signer.revoke", signer_id, tenant=tenant))
        _log.info("signer_revoked", signer_id=signer_id, tenant=tenant)
        return revoked

    async def signers(self, principal: Principal, tenant: TenantId | None) -> list[Signer]:
        """Of one tenant, or of all that the caller belongs to."""
        principal.require(Scope.MODELS_READ, tenant)
        async with self._tables.reading() as rows:
            return await rows.signers(tenant or principal.tenant)

    async def endorsed(self, signer_id: NodeId, tenant: TenantId) -> Signer | None:
        async with self._tables.reading() as rows:
            return await rows.signer(signer_id, tenant)

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)
