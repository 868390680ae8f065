"""How a version comes to be, and how it is taken back.

A version is a manifest that a trusted or endorsed key signed, of files that are all here, under a number not used before. Owns
the order of the checks. Never changes a version but to withdraw it; the same digest published again has the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import structlog

from registry.access.types import Principal
from registry.audit.types import note_of
from registry.models import aliases
from registry.models.history import targets
from registry.models.policy import manifest_faults, may_use_anybodys_files, reason_faults, version_faults, version_subject
from registry.models.rights import require_publisher, to_change
from registry.models.sql import ModelRows, ModelTables
from registry.models.switching import put, scene_of, with_history, withdrawn_among
from registry.models.types import (
    FilesMissing,
    ManifestFacts,
    Model,
    ModelFile,
    SignedBytes,
    Signer,
    SignerChanged,
    StoredVersion,
    VersionExists,
    VersionSummary,
    VersionUnknown,
)
from runtime.clock import Clock
from runtime.errors import InvalidArgument
from runtime.ids import Digest, ModelName, NodeId

_SHOWN = 10
_log = structlog.get_logger("penstock.registry")


@dataclass(frozen=True, slots=True)
class Publication:
    """A manifest whose signature was verified, as it is to be published."""

    facts: ManifestFacts
    digest: Digest
    signer_id: NodeId
    signed: SignedBytes
    endorsed: Signer | None
    """As it was believed in; None: the signer is a root."""


class Publishing:
    """Publishes and withdraws versions, each in one transaction."""

    def __init__(self, tables: ModelTables, clock: Clock) -> None:
        self._tables, self._clock = tables, clock

    async def publish(self, principal: Principal, publication: Publication) -> VersionSummary:
        """Raises InvalidArgument, ModelUnknown, FilesMissing, VersionExists, SignerChanged, ScopeRequired, OtherTenant."""
        facts = publication.facts
        if faults := manifest_faults(facts):
            raise InvalidArgument("the manifest cannot be published: " + _listed(faults))
        require_publisher(principal, facts.model, facts.tenant)
        version = StoredVersion(self._summary(publication), publication.signed)
        async with self._tables.writing() as rows:
            # The signer first: who revokes one holds it before any model, too.
            await _hold_signer(rows, publication)
            model = await to_change(rows, principal, facts.model)
            if known := await _published_before(rows, model, publication):
                return known
            await _check_files(rows, facts, anybodys=may_use_anybodys_files(principal))
            await rows.add_version(version, [file.sha256 for file in facts.files])
            await rows.changed(facts.model)
            subject = version_subject(facts.model, facts.version)
            told = f"digest {publication.digest} signed by {publication.signer_id}"
            await rows.note(note_of(principal, "version.publish", subject, tenant=model.tenant, detail=told))
        _log.info(
            "version_published",
            model=facts.model,
            version=facts.version,
            digest=publication.digest,
            signer_id=publication.signer_id,
        )
        return version.summary

    async def withdraw(self, principal: Principal, name: ModelName, version: str, because: str) -> VersionSummary:
        """Nobody serves it from now on, and no alias points at it. Doing it again changes nothing.

        Raises InvalidArgument, ModelUnknown, VersionUnknown, ScopeRequired, OtherTenant.
        """
        if faults := version_faults(version) + reason_faults(because):
            raise InvalidArgument("; ".join(faults))
        now_ms = self._now_ms()
        async with self._tables.writing() as rows:
            model = await to_change(rows, principal, name)
            found = await rows.version(name, int(version))
            if found is None:
                raise VersionUnknown(f"model {name} has no version {version}; list the models to see what there is")
            if found.summary.withdrawn_at_ms:
                return found.summary
            await rows.withdraw_version(name, found.summary.number, now_ms, because)
            change = await _take_aliases_off(rows, principal, name, found.summary.number, because, now_ms)
            await rows.changed(name)
            told = because + "".join(f"; alias {step.alias}: {step.kind.value}" for step in change.moves)
            subject = version_subject(name, version)
            await rows.note(note_of(principal, "version.withdraw", subject, tenant=model.tenant, detail=told))
        _log.info("version_withdrawn", model=name, version=version, because=because, aliases=len(change.states))
        return replace(found.summary, withdrawn_at_ms=now_ms, withdrawn_because=because)

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)

    def _summary(self, publication: Publication) -> VersionSummary:
        facts = publication.facts
        return VersionSummary(
            model=facts.model,
            number=int(facts.version) if not version_faults(facts.version) else 0,
            digest=publication.digest,
            engine=facts.engine,
            task=facts.task,
            size_bytes=facts.size_bytes,
            published_at_ms=self._now_ms(),
            signer_id=publication.signer_id,
        )


async def _hold_signer(rows: ModelRows, publication: Publication) -> None:
    """What made the signer believed must still be so when the version is there. A root that somebody revoked signs no more."""
    known = await rows.signer(publication.signer_id, publication.facts.tenant, hold=True)
    believed = publication.endorsed
    if (known is not None and known.revoked_at_ms) or (believed is not None and known != believed):
        raise SignerChanged(f"signer {publication.signer_id} was revoked or endorsed anew at this moment; publish again")


async def _published_before(rows: ModelRows, model: Model, publication: Publication) -> VersionSummary | None:
    facts = publication.facts
    if model.tenant != facts.tenant:
        raise InvalidArgument(
            f"the manifest says that model {facts.model} is tenant {facts.tenant}'s, and it is {model.tenant}'s; "
            "sign a manifest with the owner's name"
        )
    known = await rows.version(facts.model, int(facts.version))
    if known is None:
        return None
    if known.summary.digest != publication.digest:
        raise VersionExists(
            f"model {facts.model} has a version {facts.version} with digest {known.summary.digest}; "
            f"versions never change: publish {publication.digest} under another number"
        )
    return known.summary


async def _check_files(rows: ModelRows, facts: ManifestFacts, *, anybodys: bool) -> None:
    sizes = await rows.file_sizes([file.sha256 for file in facts.files], None if anybodys else facts.tenant)
    missing = [_named(file) for file in facts.files if file.sha256 not in sizes]
    wrong = [
        f"{file.path!r} has {sizes[file.sha256]} bytes, not {file.size_bytes}"
        for file in facts.files
        if sizes.get(file.sha256, file.size_bytes) != file.size_bytes
    ]
    if wrong:
        raise InvalidArgument("the manifest's sizes are not those of its files: " + _listed(wrong))
    if missing:
        raise FilesMissing(f"upload these files first, for tenant {facts.tenant}: " + _listed(missing))


async def _take_aliases_off(
    rows: ModelRows, principal: Principal, name: ModelName, number: int, because: str, now_ms: int
) -> aliases.Change:
    scene = await scene_of(rows, principal, name, now_ms)
    about = [alias for alias, state in scene.aliases.items() if state.number == number]
    scene = await with_history(rows, name, scene, about)
    before = {target for alias in about for target in targets(scene.moves[alias])}
    scene = replace(scene, withdrawn=await withdrawn_among(rows, name, before))
    change = aliases.withdraw(scene, number, because)
    await put(rows, name, change)
    return change


def _named(file: ModelFile) -> str:
    return f"{file.path!r} ({file.sha256}, {file.size_bytes} bytes)"


def _listed(items: list[str]) -> str:
    rest = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + rest
