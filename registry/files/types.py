"""The nouns of stored files."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import NewType

from registry.files.data_keys import WrappedKey
from registry.files.layout import PART_BYTES, Layout
from runtime.ids import Digest, ModelName, TenantId
from runtime.sealed_chunks import OBJECT_ID_BYTES

UploadId = NewType("UploadId", str)
ObjectId = NewType("ObjectId", bytes)
"""Names what is stored; bound into every chunk and into its data key. Never used twice."""

OBJECTS_PREFIX = "objects/"
DAY_MS = 86_400_000


def new_upload_id() -> UploadId:
    return UploadId(secrets.token_hex(16))


def new_object_id() -> ObjectId:
    return ObjectId(secrets.token_bytes(OBJECT_ID_BYTES))


def object_prefix(object_id: bytes) -> str:
    return f"{OBJECTS_PREFIX}{object_id.hex()}/"


def part_key(object_id: bytes, number: int) -> str:
    """Where in the store a part lies."""
    return f"{object_prefix(object_id)}{number}"


def object_id_in(key: str) -> ObjectId | None:
    """Of which object this is a part; None: it is no part of ours."""
    hexed, _, number = key.removeprefix(OBJECTS_PREFIX).partition("/")
    if not key.startswith(OBJECTS_PREFIX) or len(hexed) != 2 * OBJECT_ID_BYTES or not (number.isascii() and number.isdigit()):
        return None
    try:
        return ObjectId(bytes.fromhex(hexed))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class FileLimits:
    """How much of everything, and for how long."""

    part_bytes: int = PART_BYTES
    file_bytes: int = 64 * 1024**3
    uploads: int = 1024
    """Under way in all. Tenants that begin at the same moment may go beyond by one each."""
    uploads_per_tenant: int = 64
    parts_at_once: int = 4
    """That one process holds in memory; more wait."""
    parts_waiting: int = 64
    completions_at_once: int = 4
    fetches_at_once: int = 16
    waiting: int = 256
    """Completions, and fetches, that wait for a place."""
    silence_s: float = 30.0
    """A sender of parts, or a reader of chunks, that stands still for so long is given up."""
    slowest_bytes_per_s: int = 16 * 1024
    """A part that takes longer than at this rate, and once as long as a silence, is given up: a place is not for ever."""
    verifying_s: float = 15.0
    """For how long a completion keeps others off without showing that it lives."""
    grace_ms: int = DAY_MS
    """What nobody needs is kept this long: its publisher may still be on the way."""
    upload_lifetime_ms: int = 7 * DAY_MS


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a tenant says it is going to send."""

    tenant: TenantId
    sha256: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Upload:
    """A file on its way in."""

    upload_id: UploadId
    tenant: TenantId
    sha256: Digest
    layout: Layout
    object_id: ObjectId
    key: WrappedKey
    touched_at_ms: int
    verifying_until_ms: int


@dataclass(frozen=True, slots=True)
class Begun:
    """How far an upload is; complete where there is none to go on with."""

    upload: Upload | None = None
    received_parts: tuple[int, ...] = ()

    @property
    def complete(self) -> bool:
        return self.upload is None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is here whole."""

    sha256: Digest
    layout: Layout
    object_id: ObjectId
    key: WrappedKey


@dataclass(frozen=True, slots=True)
class Wish:
    """What a node asks for."""

    sha256: Digest
    digest: Digest
    first_chunk: int
    ed25519_public_key: bytes


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """What decides whether somebody may have the files of a version."""

    model: ModelName
    tenant: TenantId
    shared_with: frozenset[str]
    withdrawn: bool
    manifest: bytes
    """As it was signed. The files it lists are the version's, whatever another table says."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one tenant has stored."""

    tenant: TenantId
    used_bytes: int
    """Files, and uploads under way at their announced size."""
    quota_bytes: int
    """0 = no limit."""
    files: int
    uploads: int
