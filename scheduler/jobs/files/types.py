"""The nouns of files."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import NewType

from runtime.ids import TenantId
from scheduler.jobs.types import DEFAULT_PAGE, MiB

FileId = NewType("FileId", str)

CHUNK_BYTES = MiB
"""Files are stored in pieces of this size; the last may be smaller."""

MAX_NAME_LETTERS = 512
UPLOAD_LIFETIME_MS = 3_600_000
"""An upload that nothing was added to for so long is dropped."""


class Purpose:
    """As the OpenAI API names them."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"


@dataclass(frozen=True, slots=True)
class StoredFile:
    file_id: FileId
    tenant: TenantId
    name: str
    purpose: str
    size_bytes: int
    sha256: str
    created_at_ms: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is about to be written."""

    tenant: TenantId
    name: str
    purpose: str
    keep_ms: int


@dataclass(frozen=True, slots=True)
class FileQuestion:
    """Which files are listed. None and empty: any."""

    tenant: TenantId | None = None
    purpose: str = ""
    page_size: int = DEFAULT_PAGE
    after: FileId | None = None
    oldest_first: bool = False


def new_file_id() -> FileId:
    return FileId(f"file-{secrets.token_hex(12)}")
