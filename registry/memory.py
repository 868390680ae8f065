"""The stores in memory: for tests, and to read what a store has to do without the technology."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from registry.ports import (
    FileCorrupt,
    FileUnknown,
    ModelExists,
    ModelUnknown,
    TenantExists,
    TenantUnknown,
    Upload,
    UploadBusy,
    UploadOffsetWrong,
    UploadRefused,
    VersionExists,
)
from registry.types import ApiKey, FileStatus, Model, ModelWithVersions, StoredVersion, Tenant
from runtime.errors import InvalidArgument
from runtime.ids import Digest, KeyId, ModelName, ModelVersion, TenantId


class MemoryModelStore:
    """Implements ModelStore."""

    def __init__(self) -> None:
        self._models: dict[ModelName, Model] = {}
        self._versions: dict[tuple[ModelName, int], StoredVersion] = {}

    async def add_model(self, model: Model) -> None:
        if model.model in self._models:
            raise ModelExists(f"model {model.model} exists already")
        self._models[model.model] = model

    async def models(self) -> tuple[ModelWithVersions, ...]:
        return tuple(
            ModelWithVersions(self._models[name], tuple(version.summary for version in self._of(name)))
            for name in sorted(self._models)
        )

    async def has_model(self, model: ModelName) -> bool:
        return model in self._models

    async def add_version(self, version: StoredVersion) -> None:
        summary = version.summary
        if summary.model not in self._models:
            raise ModelUnknown(f"there is no model {summary.model}")
        taken = any(known.summary.digest == summary.digest for known in self._versions.values())
        if taken or (summary.model, int(summary.version)) in self._versions:
            raise VersionExists(f"model {summary.model} has a version {summary.version} already")
        self._versions[summary.model, int(summary.version)] = version

    async def version(self, model: ModelName, version: ModelVersion) -> StoredVersion | None:
        if version:
            return self._versions.get((model, int(version)))
        published = self._of(model)
        return published[-1] if published else None

    async def version_by_digest(self, digest: Digest) -> StoredVersion | None:
        return next((version for version in self._versions.values() if version.summary.digest == digest), None)

    def _of(self, model: ModelName) -> list[StoredVersion]:
        return [version for (name, _), version in sorted(self._versions.items(), key=lambda item: item[0]) if name == model]


class MemoryAccountStore:
    """Implements AccountStore."""

    def __init__(self) -> None:
        self._tenants: dict[TenantId, Tenant] = {}
        self._keys: dict[KeyId, ApiKey] = {}
        self._by_secret: dict[bytes, KeyId] = {}

    async def add_tenant(self, tenant: Tenant) -> None:
        if tenant.tenant in self._tenants:
            raise TenantExists(f"tenant {tenant.tenant} exists already")
        self._tenants[tenant.tenant] = tenant

    async def is_empty(self) -> bool:
        return not self._tenants

    async def add_first(self, tenant: Tenant, key: ApiKey | None, secret_sha256: bytes) -> bool:
        if self._tenants:
            return False
        self._tenants[tenant.tenant] = tenant
        if key is not None:
            await self.add_key(key, secret_sha256)
        return True

    async def add_key(self, key: ApiKey, secret_sha256: bytes) -> None:
        if key.tenant not in self._tenants:
            raise TenantUnknown(f"there is no tenant {key.tenant}")
        self._keys[key.key_id] = key
        self._by_secret[secret_sha256] = key.key_id

    async def keys(self, tenant: TenantId | None) -> tuple[ApiKey, ...]:
        chosen = [key for key in self._keys.values() if tenant is None or key.tenant == tenant]
        return tuple(sorted(chosen, key=lambda key: (key.created_at_ms, key.key_id)))

    async def key_by_secret(self, secret_sha256: bytes) -> ApiKey | None:
        key_id = self._by_secret.get(secret_sha256)
        return None if key_id is None else self._keys[key_id]

    async def revoke_key(self, key_id: KeyId, revoked_at_ms: int) -> ApiKey | None:
        key = self._keys.get(key_id)
        if key is not None and not key.revoked_at_ms:
            key = self._keys[key_id] = replace(key, revoked_at_ms=revoked_at_ms)
        return key


class MemoryObjects:
    """Implements Objects."""

    def __init__(self) -> None:
        self._whole: dict[Digest, bytes] = {}
        self._parts: dict[Digest, bytearray] = {}
        self._busy: set[Digest] = set()

    async def stat(self, sha256: Digest) -> FileStatus:
        if sha256 in self._whole:
            return FileStatus(len(self._whole[sha256]), complete=True)
        return FileStatus(len(self._parts.get(sha256, b"")), complete=False)

    @asynccontextmanager
    async def upload(self, sha256: Digest, *, size_bytes: int, offset_bytes: int) -> AsyncIterator[Upload]:
        status = await self.stat(sha256)
        if sha256 in self._busy or status.complete:
            raise UploadBusy(f"another upload of {sha256} is under way or ended a moment ago")
        if status.received_bytes > size_bytes:
            raise UploadRefused(f"{status.received_bytes} bytes of {sha256} are stored, more than {size_bytes}")
        if status.received_bytes != offset_bytes:
            raise UploadOffsetWrong(f"{status.received_bytes} bytes of {sha256} are stored; go on from there")
        self._busy.add(sha256)
        try:
            yield _MemoryUpload(self._parts.setdefault(sha256, bytearray()), self._parts, self._whole, sha256, size_bytes)
        finally:
            self._busy.discard(sha256)

    async def read(self, sha256: Digest, *, offset_bytes: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        content = self._whole.get(sha256)
        if content is None:
            raise FileUnknown(f"there is no file {sha256}")
        if offset_bytes > len(content):
            raise InvalidArgument(f"file {sha256} has {len(content)} bytes; offset {offset_bytes} lies beyond its end")
        for start in range(offset_bytes, len(content), chunk_bytes):
            yield content[start : start + chunk_bytes]
        if hashlib.sha256(content).hexdigest() != sha256:
            del self._whole[sha256]
            raise FileCorrupt(f"the stored file {sha256} no longer has that content")


class _MemoryUpload:
    """Implements Upload."""

    def __init__(
        self, part: bytearray, parts: dict[Digest, bytearray], whole: dict[Digest, bytes], sha256: Digest, size_bytes: int
    ) -> None:
        self._part, self._parts, self._whole = part, parts, whole
        self._sha256, self._size_bytes = sha256, size_bytes

    @property
    def received_bytes(self) -> int:
        return len(self._part)

    async def write(self, data: bytes) -> None:
        if len(self._part) + len(data) > self._size_bytes:
            raise UploadRefused(f"more than the announced {self._size_bytes} bytes were sent")
        self._part += data

    async def finish(self) -> FileStatus:
        if len(self._part) < self._size_bytes:
            return FileStatus(len(self._part), complete=False)
        del self._parts[self._sha256]
        if hashlib.sha256(self._part).hexdigest() != self._sha256:
            raise UploadRefused(f"the bytes received do not have the sha256 {self._sha256}")
        self._whole[self._sha256] = bytes(self._part)
        return FileStatus(len(self._part), complete=True)
