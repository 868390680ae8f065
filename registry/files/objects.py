"""Where sealed bytes are kept: a local folder (`local.py`) or a bucket (`cloud.py`).

An object is written once and never again: who puts second under a key leaves what is there. Two that send one part at the same
moment, and one that sends it long after the file was verified, can therefore do no harm. Knows nothing of files or tenants.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from registry.files.errors import ObjectMissing, StoreRefused

PAGE_OBJECTS = 1000
_KEY = re.compile(r"[a-z0-9]+(/[a-z0-9]+)*\Z")
PROBE_PREFIX = "probe/"


@dataclass(frozen=True, slots=True)
class StoredObject:
    key: str
    size_bytes: int
    modified_at_ms: int
    """By the store's own clock."""


class Objects(Protocol):
    """Keys are lower-case letters, digits and slashes. Raises StoreUnavailable, StoreRefused, StorageFull."""

    async def put(self, key: str, data: bytes | bytearray) -> bool:
        """Keep it, whole or not at all, and lasting once this returns. False: something is there already, and stays.

        `data` belongs to the store until this returns.
        """
        ...

    async def get(self, key: str, start_byte: int, size_bytes: int) -> bytes:
        """So many bytes from there on, and at least one. Raises ObjectMissing where there are fewer."""
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """What is not there is no fault."""
        ...

    def pages(self, prefix: str) -> AsyncIterator[Sequence[StoredObject]]:
        """All there is under a prefix that ends with a slash, some at a time, in no order."""
        ...

    async def drop_drafts(self, before_ms: int) -> int:
        """Delete what puts that were broken off before then have left behind; the bytes that it took."""
        ...


async def prove(objects: Objects) -> None:
    """Write, read and delete one small object, and see that none is written twice."""
    key, content = f"{PROBE_PREFIX}{secrets.token_hex(8)}", secrets.token_bytes(16)
    try:
        first, second = await objects.put(key, content), await objects.put(key, b"another")
        is_kept = first and not second and await objects.get(key, 0, len(content)) == content
    finally:
        await objects.delete([key])
    if not is_kept:
        raise StoreRefused(
            "the object store does not keep what was put there first (If-None-Match on PUT); the registry needs one that does"
        )


def checked_key(key: str) -> str:
    """Raises ValueError: only the registry's own code makes keys."""
    if not _KEY.match(key):
        raise ValueError(f"{key!r} is no key of an object")
    return key


def cut_short(key: str) -> ObjectMissing:
    return ObjectMissing(f"stored object {key} is gone or too short; restore it from a backup, or upload the file again")
