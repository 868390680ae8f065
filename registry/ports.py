"""What the registry needs of its stores. Implementations: `sql.py` and `local_objects.py`; in memory, `memory.py`.

Stores keep and find; what may be kept is decided before they are asked. Each method is one transaction.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from registry.types import ApiKey, FileStatus, Model, ModelWithVersions, StoredVersion, Tenant
from runtime.errors import Code, PenstockError
from runtime.ids import Digest, KeyId, ModelName, ModelVersion, TenantId


class ModelExists(PenstockError, code=Code.ALREADY_EXISTS, reason="MODEL_EXISTS"):
    """A model of that name was created before."""


class ModelUnknown(PenstockError, code=Code.NOT_FOUND, reason="MODEL_UNKNOWN"):
    """No such model in the registry."""


class VersionExists(PenstockError, code=Code.ALREADY_EXISTS, reason="VERSION_EXISTS"):
    """That version of the model was published before, with another content."""


class TenantExists(PenstockError, code=Code.ALREADY_EXISTS, reason="TENANT_EXISTS"):
    """A tenant of that name was created before."""


class TenantUnknown(PenstockError, code=Code.NOT_FOUND, reason="TENANT_UNKNOWN"):
    """No such tenant."""


class FileUnknown(PenstockError, code=Code.NOT_FOUND, reason="FILE_UNKNOWN"):
    """No complete file with that sha256."""


class UploadBusy(PenstockError, code=Code.ABORTED, reason="UPLOAD_BUSY"):
    """Somebody else is uploading the same file at this moment."""


class UploadOffsetWrong(PenstockError, code=Code.ABORTED, reason="UPLOAD_OFFSET_WRONG"):
    """The upload does not go on where the stored part ends."""


class UploadRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="UPLOAD_REFUSED"):
    """The bytes are not those that were announced."""


class FileCorrupt(PenstockError, code=Code.DATA_LOSS, reason="FILE_CORRUPT"):
    """A stored file no longer has the content it is named after."""


class StorageFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="STORAGE_FULL"):
    """No room for more bytes."""


class DatabaseUnavailable(PenstockError, code=Code.UNAVAILABLE, reason="DATABASE_UNAVAILABLE"):
    """The database did not answer."""


class ModelStore(Protocol):
    async def add_model(self, model: Model) -> None:
        """Raises ModelExists."""
        ...

    async def models(self) -> tuple[ModelWithVersions, ...]:
        """All, by name; versions by number, lowest first."""
        ...

    async def has_model(self, model: ModelName) -> bool: ...

    async def add_version(self, version: StoredVersion) -> None:
        """Raises ModelUnknown; VersionExists where model and version, or the digest, are taken."""
        ...

    async def version(self, model: ModelName, version: ModelVersion) -> StoredVersion | None:
        """That version; the one with the highest number where `version` is empty."""
        ...

    async def version_by_digest(self, digest: Digest) -> StoredVersion | None: ...


class AccountStore(Protocol):
    async def add_tenant(self, tenant: Tenant) -> None:
        """Raises TenantExists."""
        ...

    async def is_empty(self) -> bool:
        """Whether there is no tenant at all."""
        ...

    async def add_first(self, tenant: Tenant, key: ApiKey | None, secret_sha256: bytes) -> bool:
        """Add both (or the tenant alone) if the store is empty, and say whether it was."""
        ...

    async def add_key(self, key: ApiKey, secret_sha256: bytes) -> None:
        """Raises TenantUnknown."""
        ...

    async def keys(self, tenant: TenantId | None) -> tuple[ApiKey, ...]:
        """Of one tenant or all, oldest first."""
        ...

    async def key_by_secret(self, secret_sha256: bytes) -> ApiKey | None: ...

    async def revoke_key(self, key_id: KeyId, revoked_at_ms: int) -> ApiKey | None:
        """The key as it is then; one revoked before keeps its time. None: no such key."""
        ...


class Upload(Protocol):
    """A file being received, by one sender at a time."""

    @property
    def received_bytes(self) -> int: ...

    async def write(self, data: bytes) -> None:
        """Append. Raises UploadRefused beyond the announced size, StorageFull."""
        ...

    async def finish(self) -> FileStatus:
        """Make the file visible if all of it is here; keep the part if not. Raises UploadRefused on the wrong content,
        of which nothing is kept."""
        ...


class Objects(Protocol):
    """Files by the sha256 of their content."""

    async def stat(self, sha256: Digest) -> FileStatus: ...

    def upload(self, sha256: Digest, *, size_bytes: int, offset_bytes: int) -> AbstractAsyncContextManager[Upload]:
        """Go on with a file from where its stored part ends. Leaving keeps what arrived.

        Raises UploadBusy, UploadOffsetWrong; UploadRefused where more than `size_bytes` are stored.
        """
        ...

    def read(self, sha256: Digest, *, offset_bytes: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        """The content from there on, checked as it goes. Raises FileUnknown; FileCorrupt after the last chunk."""
        ...
