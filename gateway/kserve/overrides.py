"""A load that brings a configuration, or files as well, as a version of its own: read, uploaded, signed, published.

With Triton an override holds until the next load; here versions never change, so it is the newest one from now on, and the one
before can be loaded, or be what an alias means, as ever. Decides what such a load may make, and whose model it may be. The
bytes of all loads at once are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from penstock.registry.v1 import models_pb2

from gateway.kserve.repository import NotPublished
from gateway.publisher import KnownModel, number_after
from gateway.types import PublishedVersion
from runtime.errors import AlreadyExists, Code, InvalidArgument, NotFound, PenstockError, ResourceExhausted
from runtime.ids import DEFAULT_TENANT, ModelName, TenantId
from runtime.load_overrides import SOURCE, LoadOverride, check_engine
from runtime.model_overlay import overlaid
from runtime.triton_config import carry, labels_of

MAX_OVERRIDE_BYTES = 256 * 1024**2
"""Of one load, and of all that are under way together."""

_NUMBER_ATTEMPTS = 5


class OthersModel(PenstockError, code=Code.PERMISSION_DENIED, reason="OTHERS_MODEL"):
    """The model is another tenant's: who may call it may not change it."""


class Publishing(Protocol):
    """What is needed of `gateway.publisher.Publisher`."""

    async def find(self, model: ModelName) -> KnownModel | None: ...

    async def manifest(self, model: ModelName) -> models_pb2.Manifest: ...

    async def create(self, model: ModelName, tenant: TenantId) -> None: ...

    async def upload(self, content: bytes, tenant: TenantId) -> str: ...

    async def publish(self, manifest: models_pb2.Manifest) -> PublishedVersion: ...


class Overrides:
    """Implements `gateway.kserve.repository.Overriding`. Belongs to one event loop."""

    def __init__(self, publisher: Publishing, max_bytes: int = MAX_OVERRIDE_BYTES) -> None:
        self._publisher, self._max_bytes = publisher, max_bytes
        self._under_way_bytes = 0

    async def published(self, model: ModelName, override: LoadOverride, tenant: TenantId) -> PublishedVersion:
        """The version made of it. `tenant`: whose key asks; empty: everybody may all.

        Raises TritonConfigRefused, InvalidArgument, OverrideRefused, OthersModel, NotPublished, ResourceExhausted, and what the
        registry answers.
        """
        with self._room_for(override.size_bytes):
            known = await self._publisher.find(model)
            if known is not None and tenant and known.tenant != tenant:
                raise OthersModel(f"failed to load '{model}', the model is another tenant's: load it without parameters")
            owner = known.tenant if known is not None else tenant or DEFAULT_TENANT
            if override.files:
                manifest = await self._of_files(model, override, owner, known)
            else:
                manifest = await self._of_config(model, override, known)
            return await self._numbered(manifest, override, known)

    async def _of_config(self, model: ModelName, override: LoadOverride, known: KnownModel | None) -> models_pb2.Manifest:
        """The files stay as they are."""
        try:
            if known is None:
                raise NotFound("there is no such model")
            base = await self._publisher.manifest(model)
        except NotFound as error:
            raise NotPublished(
                f"failed to load '{model[:200]}', no version of it is in the registry to configure; load it with files"
            ) from error
        check_engine(model, base.engine)
        manifest = overlaid(SOURCE, base, {file.path for file in base.files}, override.parsed())
        manifest.tenant = known.tenant
        return manifest

    async def _of_files(
        self, model: ModelName, override: LoadOverride, owner: TenantId, known: KnownModel | None
    ) -> models_pb2.Manifest:
        """All is read and checked before anything is uploaded."""
        if len(override.versions) != 1:
            raise InvalidArgument(
                f"a load here makes one version, and files of {len(override.versions)} came: {override.versions[:8]};"
                " load them one after the other"
            )
        files = {path: content for (_, path), content in override.files.items()}
        manifest = self._read(model, override, files)
        manifest.tenant = owner
        if known is None:
            await self._publisher.create(model, owner)
        for path, content in sorted(files.items()):
            sha256 = await self._publisher.upload(content, owner)
            manifest.files.add(path=path, sha256=sha256, size_bytes=len(content))
        return manifest

    def _read(self, model: ModelName, override: LoadOverride, files: dict[str, bytes]) -> models_pb2.Manifest:
        config = override.parsed()
        if config.name not in ("", model):
            raise InvalidArgument(f"{SOURCE}: name is {config.name[:128]!r}, and the load is of model {model[:128]!r}")
        manifest = carry(SOURCE, config, model, files.keys(), _labels_in(files)).manifest
        check_engine(model, manifest.engine)
        if not manifest.inputs or not manifest.outputs:
            raise InvalidArgument(f"{SOURCE} has to give inputs and outputs: a gateway opens no model to read them")
        for warm_up in manifest.warm_ups:
            for given in warm_up.inputs.values():
                if given.file and given.file not in files:
                    raise InvalidArgument(f"{SOURCE}: warm-up data {given.file[:80]!r} is none of the files that came")
        return manifest

    async def _numbered(
        self, manifest: models_pb2.Manifest, override: LoadOverride, known: KnownModel | None
    ) -> PublishedVersion:
        """Published under a number of its own; somebody else may be quicker."""
        for attempt in range(1, _NUMBER_ATTEMPTS + 1):
            manifest.version = str(number_after(known, override.files))
            try:
                return await self._publisher.publish(manifest)
            except AlreadyExists:
                if attempt == _NUMBER_ATTEMPTS:
                    raise
                known = await self._publisher.find(ModelName(manifest.model))
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _room_for(self, size_bytes: int) -> Iterator[None]:
        if self._under_way_bytes and self._under_way_bytes + size_bytes > self._max_bytes:
            raise ResourceExhausted(
                f"loads with {self._under_way_bytes} bytes are under way here, and {size_bytes} more do not fit;"
                f" {self._max_bytes} may be at once: try again",
                retry_after_s=1.0,
            )
        self._under_way_bytes += size_bytes
        try:
            yield
        finally:
            self._under_way_bytes -= size_bytes


def _labels_in(files: dict[str, bytes]) -> Callable[[str], Sequence[str]]:
    def labels(name: str) -> Sequence[str]:
        if name not in files:
            raise InvalidArgument(f"{SOURCE}: label_filename {name[:80]!r} is none of the files that came")
        return labels_of(SOURCE, name, files[name])

    return labels
