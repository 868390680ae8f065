"""Models and their versions: created, shared, listed, found. How versions come and go is `publishing.py`'s.

Decides what a version is called by: its digest, its number, an alias, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from registry.access.types import Principal
from registry.audit.types import note_of
from registry.models.policy import (
    alias_faults,
    is_sha256,
    is_version,
    model_faults,
    sees,
    sharing_faults,
    shown_to,
    tenant_faults,
)
from registry.models.rights import require_publisher, to_change, to_read
from registry.models.sql import Altered, ModelRows, ModelTables
from registry.models.types import (
    STABLE,
    AliasState,
    AliasView,
    FoundVersion,
    Model,
    ModelEntry,
    ModelUnknown,
    StoredVersion,
    VersionSummary,
    VersionUnknown,
)
from runtime.clock import Clock
from runtime.errors import InvalidArgument, NotFound, VersionWithdrawn
from runtime.identity import Role
from runtime.ids import Digest, ModelName, TenantId
from runtime.manifests import ManifestRefused

_NO_DIGEST = Digest("")
_log = structlog.get_logger("penstock.registry")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version as somebody asks for it: by digest, or by model and number, alias or nothing."""

    model: ModelName
    version: str = ""
    digest: str = ""


class Catalogue:
    """What may be asked about models."""

    def __init__(self, tables: ModelTables, clock: Clock) -> None:
        self._tables, self._clock = tables, clock

    async def create(
        self, principal: Principal, name: ModelName, description: str, wanted_tenant: str, shared_with: frozenset[str]
    ) -> ModelEntry:
        """Raises InvalidArgument, NotFound (no such tenant), ModelExists, ScopeRequired, OtherTenant."""
        tenant = principal.tenant_or(wanted_tenant)
        require_publisher(principal, name, tenant)
        if faults := model_faults(name, description, shared_with) + tenant_faults(tenant):
            raise InvalidArgument("; ".join(faults))
        model = Model(name, tenant, description, shared_with, int(self._clock.wall_s() * 1000))
        async with self._tables.writing() as rows:
            if not await rows.has_tenant(tenant):
                raise NotFound(f"there is no tenant {tenant}; create it first")
            await rows.add_model(model)
            await rows.changed(name)
            await rows.note(note_of(principal, "model.create", name, tenant=tenant))
        _log.info("model_created", model=name, tenant=tenant)
        return await self._entry(name)

    async def share(self, principal: Principal, name: ModelName, shared_with: frozenset[str]) -> ModelEntry:
        """Replace the list. Raises InvalidArgument, ModelUnknown, ScopeRequired, OtherTenant."""
        if faults := sharing_faults(shared_with):
            raise InvalidArgument("; ".join(faults))
        async with self._tables.writing() as rows:
            model = await to_change(rows, principal, name)
            if model.shared_with != shared_with:
                await rows.share(name, shared_with)
                await rows.changed(name)
                told = "with " + (", ".join(sorted(shared_with)) or "nobody")
                await rows.note(note_of(principal, "model.share", name, tenant=model.tenant, detail=told))
        return await self._entry(name)

    async def models(self, principal: Principal, tenant: TenantId | None) -> tuple[list[ModelEntry], Altered]:
        """All that the caller sees; of one owner, if it is named. What was altered is left out, and told beside it."""
        altered: Altered = []
        async with self._tables.reading() as rows:
            visible = [shown_to(principal, model) for model in await rows.models(tenant, altered) if sees(principal, model)]
            return await _entries(rows, visible, altered), altered

    async def find(self, principal: Principal, wanted: Wanted) -> FoundVersion:
        """Raises InvalidArgument, ModelUnknown, VersionUnknown, VersionWithdrawn.

        For workers: OtherTenant where they serve others, ManifestRefused where the signer was revoked.
        """
        async with self._tables.reading() as rows:
            version, model = await (_by_digest if wanted.digest else _by_name)(rows, principal, wanted)
            signer = await rows.signer(version.summary.signer_id, model.tenant)
        if principal.node_role is Role.WORKER:
            _check_live(version.summary)
            if signer is not None and signer.revoked_at_ms:
                raise ManifestRefused(
                    f"signer {signer.signer_id} of {_named(version.summary)} was revoked; publish it again with another key"
                )
        return FoundVersion(version, signer.endorsement if signer else None)

    async def _entry(self, name: ModelName) -> ModelEntry:
        async with self._tables.reading() as rows:
            model = await rows.model(name)
            (entry,) = await _entries(rows, [model] if model else [], [])
        return entry


async def _by_digest(rows: ModelRows, principal: Principal, wanted: Wanted) -> tuple[StoredVersion, Model]:
    if not is_sha256(wanted.digest):
        raise InvalidArgument(f"digest {wanted.digest[:80]!r}: 64 lower-case hex digits are expected")
    found = await rows.version_by_digest(Digest(wanted.digest))
    unknown = VersionUnknown(f"no version has the digest {wanted.digest}; list the models to see what there is")
    if found is None or (wanted.model and found.summary.model != wanted.model):
        raise unknown
    try:
        return found, await to_read(rows, principal, found.summary.model)
    except ModelUnknown:  # whoever has a digest does not learn from it what the model is called
        raise unknown from None


async def _by_name(rows: ModelRows, principal: Principal, wanted: Wanted) -> tuple[StoredVersion, Model]:
    model = await to_read(rows, principal, wanted.model)
    if is_version(wanted.version):
        found = await rows.version(model.model, int(wanted.version))
        if found is None:
            raise VersionUnknown(f"model {model.model} has no version {wanted.version}; list the models to see what there is")
        return found, model
    found = await (_by_alias(rows, model, wanted.version) if wanted.version else _unversioned(rows, model))
    _check_live(found.summary)
    return found, model


async def _by_alias(rows: ModelRows, model: Model, alias: str) -> StoredVersion:
    if faults := alias_faults(alias):
        raise InvalidArgument(
            f"version {alias[:40]!r}: a positive decimal number, an alias, or nothing is expected; " + "; ".join(faults)
        )
    state = await rows.alias(model.model, alias)
    found = await rows.version(model.model, state.number) if state and state.number else None
    if found is None:
        why = "its first version is still being warmed" if state else "list the models to see what there is"
        raise VersionUnknown(f"model {model.model} has no version called {alias}: {why}")
    return found


async def _unversioned(rows: ModelRows, model: Model) -> StoredVersion:
    """What `stable` points at; without it the newest that is not withdrawn."""
    state = await rows.alias(model.model, STABLE)
    found = await rows.version(model.model, state.number) if state and state.number else None
    found = found or await rows.newest_version(model.model)
    if found is not None:
        return found
    if (await rows.summaries([model.model], []))[model.model]:
        raise VersionWithdrawn(f"every version of model {model.model} is withdrawn; publish another")
    raise VersionUnknown(f"model {model.model} has no published version; publish one")


async def _entries(rows: ModelRows, models: list[Model], altered: Altered) -> list[ModelEntry]:
    """Aliases before versions: what an alias points at is among the versions then, whoever publishes meanwhile."""
    names = [model.model for model in models]
    states = await rows.aliases(names, altered)
    versions = await rows.summaries(names, altered)
    return [
        ModelEntry(model, tuple(versions[model.model]), _views(states[model.model], versions[model.model])) for model in models
    ]


def _views(states: dict[str, AliasState], versions: list[VersionSummary]) -> tuple[AliasView, ...]:
    digests = {version.number: version.digest for version in versions}
    return tuple(view_of(state, digests) for state in states.values())


def view_of(state: AliasState, digests: Mapping[int, Digest]) -> AliasView:
    pending = state.pending.number if state.pending else 0
    return AliasView(state, digests.get(state.number, _NO_DIGEST), digests.get(pending, _NO_DIGEST))


def _check_live(version: VersionSummary) -> None:
    if version.withdrawn_at_ms:
        because = f": {version.withdrawn_because}" if version.withdrawn_because else ""
        raise VersionWithdrawn(f"{_named(version)} was withdrawn{because}; use another version")


def _named(version: VersionSummary) -> str:
    return f"model {version.model} version {version.version}"
