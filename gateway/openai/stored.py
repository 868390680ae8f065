"""The nouns of what is kept for a tenant: files and batches, and who keeps them.

Times in milliseconds since 1970, 0 = it has not happened; who writes JSON makes seconds of them.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from gateway.jobs.types import JobOwner
from runtime.ids import TenantId

_Kept = TypeVar("_Kept")


@dataclass(frozen=True, slots=True)
class StoredFile:
    file_id: str
    name: str
    purpose: str
    size_bytes: int
    created_at_ms: int
    expires_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that came, in parts that are views into the request."""

    name: str
    purpose: str
    parts: Sequence[memoryview]
    keep_s: int = 0
    """0 = as long as its keeper keeps any."""


@dataclass(frozen=True, slots=True)
class BatchAsked:
    """A request for a batch, checked."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class Stage(enum.Enum):
    """What a batch went through, by the names that its times have in OpenAI's object."""

    CREATED = "created_at"
    IN_PROGRESS = "in_progress_at"
    EXPIRES = "expires_at"
    FINALIZING = "finalizing_at"
    COMPLETED = "completed_at"
    FAILED = "failed_at"
    EXPIRED = "expired_at"
    CANCELLING = "cancelling_at"
    CANCELLED = "cancelled_at"


@dataclass(frozen=True, slots=True)
class BatchFault:
    """What is wrong with an input file; line 0: with the whole of it."""

    line: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class StoredBatch:
    batch_id: str
    asked: BatchAsked
    status: str
    output_file_id: str = ""
    error_file_id: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    times_ms: Mapping[Stage, int] = field(default_factory=dict)
    faults: Sequence[BatchFault] = ()


@dataclass(frozen=True, slots=True)
class Page(Generic[_Kept]):
    items: Sequence[_Kept]
    has_more: bool = False


class FileStore(Protocol):
    """Keeps files: gateway.openai.peers.FilesClient. To other tenants a file is unknown."""

    async def upload(self, tenant: TenantId, upload: Upload) -> StoredFile: ...

    async def file(self, tenant: TenantId, file_id: str) -> StoredFile:
        """Raises FileUnknown."""
        ...

    async def files(
        self, tenant: TenantId, *, purpose: str = "", limit: int = 0, after: str = "", oldest_first: bool = False
    ) -> Page[StoredFile]: ...

    async def delete(self, tenant: TenantId, file_id: str) -> None:
        """Raises FileUnknown."""
        ...

    def content(self, tenant: TenantId, file: StoredFile) -> AsyncGenerator[bytes, None]:
        """The file's bytes, all of them or an error. Close it when leaving early. Raises FileUnknown, ContentCutShort."""
        ...


class BatchStore(Protocol):
    """Keeps batches and has them done: gateway.openai.peers.BatchesClient."""

    async def create(self, owner: JobOwner, asked: BatchAsked) -> StoredBatch:
        """Raises FileUnknown."""
        ...

    async def batch(self, tenant: TenantId, batch_id: str) -> StoredBatch:
        """Raises BatchUnknown."""
        ...

    async def batches(self, tenant: TenantId, *, limit: int = 0, after: str = "") -> Page[StoredBatch]: ...

    async def cancel(self, tenant: TenantId, batch_id: str) -> StoredBatch:
        """Raises BatchUnknown."""
        ...
