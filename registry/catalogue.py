"""Models and their versions: created, listed, found. Publishing is `publishing.py`'s."""

from __future__ import annotations

import structlog

from registry.policy import is_sha256, is_version, model_faults
from registry.ports import ModelStore
from registry.types import Model, ModelWithVersions, StoredVersion
from runtime.clock import Clock
from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.ids import Digest, ModelName, ModelVersion

_log = structlog.get_logger("penstock.registry")


class VersionUnknown(PenstockError, code=Code.NOT_FOUND, reason="VERSION_UNKNOWN"):
    """No such version in the registry."""


class Catalogue:
    """What may be asked about models."""

    def __init__(self, store: ModelStore, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def create(self, name: ModelName, description: str) -> Model:
        if faults := model_faults(name, description):
            raise InvalidArgument("; ".join(faults))
        model = Model(name, description, int(self._clock.wall_s() * 1000))
        await self._store.add_model(model)
        _log.info("model_created", model=name)
        return model

    async def models(self) -> tuple[ModelWithVersions, ...]:
        return await self._store.models()

    async def by_digest(self, digest: Digest) -> StoredVersion:
        if not is_sha256(digest):
            raise InvalidArgument(f"digest {digest[:80]!r}: 64 lower-case hex digits are expected")
        found = await self._store.version_by_digest(digest)
        if found is None:
            raise VersionUnknown(f"no version has the digest {digest}; list the models to see what there is")
        return found

    async def by_number(self, model: ModelName, version: ModelVersion) -> StoredVersion:
        """The newest where `version` is empty."""
        if faults := model_faults(model):
            raise InvalidArgument("; ".join(faults) + "; or ask by digest")
        if version and not is_version(version):
            raise InvalidArgument(
                f"version {version[:40]!r}: a positive decimal number, or nothing for the newest, is expected"
            )
        found = await self._store.version(model, version)
        if found is None:
            wanted = f"no version {version}" if version else "no published version"
            raise VersionUnknown(f"model {model} has {wanted}, or there is no such model; list the models to see what there is")
        return found
