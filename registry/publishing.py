"""How a version comes to be: a manifest somebody trusted signed, of files that are all here, under a number not used before.

Owns the order of the checks. Never changes a version: whoever publishes the same digest twice is given the first answer.
"""

from __future__ import annotations

import structlog

from registry.policy import manifest_faults
from registry.ports import ModelStore, ModelUnknown, Objects, VersionExists
from registry.types import FileStatus, ManifestFacts, ModelFile, SignedBytes, StoredVersion, VersionSummary
from runtime.clock import Clock
from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.ids import Digest, NodeId

_SHOWN = 10
_log = structlog.get_logger("penstock.registry")


class FilesMissing(PenstockError, code=Code.FAILED_PRECONDITION, reason="FILES_MISSING"):
    """Files that the manifest names were not uploaded whole."""


class Publishing:
    """Publishes versions into a store, of files in an object store."""

    def __init__(self, models: ModelStore, objects: Objects, clock: Clock) -> None:
        self._models, self._objects, self._clock = models, objects, clock

    async def publish(self, facts: ManifestFacts, digest: Digest, signer_id: NodeId, signed: SignedBytes) -> VersionSummary:
        """`digest` and `signer_id` were verified against `signed` by the caller.

        Raises InvalidArgument, ModelUnknown, FilesMissing, VersionExists.
        """
        if faults := manifest_faults(facts):
            raise InvalidArgument("the manifest cannot be published: " + _listed(faults))
        if not await self._models.has_model(facts.model):
            raise ModelUnknown(f"there is no model {facts.model}; create it first")
        if known := await self._published_before(facts, digest):
            return known
        await self._check_files(facts.files)
        version = StoredVersion(self._summary(facts, digest, signer_id), signed)
        try:
            await self._models.add_version(version)
        except VersionExists:
            # Somebody published meanwhile: the same, or another.
            if known := await self._published_before(facts, digest):
                return known
            raise
        _log.info("version_published", model=facts.model, version=facts.version, digest=digest, signer_id=signer_id)
        return version.summary

    async def _published_before(self, facts: ManifestFacts, digest: Digest) -> VersionSummary | None:
        known = await self._models.version(facts.model, facts.version)
        if known is None:
            return None
        if known.summary.digest != digest:
            raise VersionExists(
                f"model {facts.model} has a version {facts.version} with digest {known.summary.digest}; "
                f"versions never change: publish {digest} under another number"
            )
        return known.summary

    async def _check_files(self, files: tuple[ModelFile, ...]) -> None:
        missing, wrong = [], []
        for file in files:
            status = await self._objects.stat(file.sha256)
            if not status.complete:
                missing.append(_missing(file, status))
            elif status.received_bytes != file.size_bytes:
                wrong.append(f"{file.path!r} has {status.received_bytes} bytes, not {file.size_bytes}")
        if wrong:
            raise InvalidArgument("the manifest's sizes are not those of its files: " + _listed(wrong))
        if missing:
            raise FilesMissing("upload these files first: " + _listed(missing))

    def _summary(self, facts: ManifestFacts, digest: Digest, signer_id: NodeId) -> VersionSummary:
        return VersionSummary(
            model=facts.model,
            version=facts.version,
            digest=digest,
            engine=facts.engine,
            task=facts.task,
            size_bytes=sum(file.size_bytes for file in facts.files),
            published_at_ms=int(self._clock.wall_s() * 1000),
            signer_id=signer_id,
        )


def _missing(file: ModelFile, status: FileStatus) -> str:
    return f"{file.path!r} ({file.sha256}, {status.received_bytes} of {file.size_bytes} bytes are here)"


def _listed(items: list[str]) -> str:
    rest = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + rest
