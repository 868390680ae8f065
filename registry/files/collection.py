"""What nobody needs any more. Pure: facts and a time in, what is to go out.

A file is needed by the versions that consist of it, and for a grace by whoever uploaded it, because a version that names it may
be about to be published. A tenant's claim to a file (what its quota counts) goes the same way: a version of its own keeps it,
or the grace does. An upload is needed while it is gone on with; an object, while a row names it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from registry.files.types import FileLimits, ObjectId
from runtime.ids import TenantId


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file, as the database has it at one moment."""

    created_at_ms: int
    claimed_at_ms: Mapping[TenantId, int]
    """By tenant: when it last said that it needs the file."""
    named_by: frozenset[TenantId]
    """Whose models have versions that consist of it."""


@dataclass(frozen=True, slots=True)
class FileVerdict:
    claims: frozenset[TenantId]
    """To be dropped."""
    file: bool
    """Whether the file goes, with every claim to it."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection deleted, or would delete."""

    files: int = 0
    uploads: int = 0
    orphans: int = 0
    freed_bytes: int = 0

    def __add__(self, other: Collected) -> Collected:
        return Collected(
            self.files + other.files,
            self.uploads + other.uploads,
            self.orphans + other.orphans,
            self.freed_bytes + other.freed_bytes,
        )


def judged(facts: FileFacts, now_ms: int, limits: FileLimits) -> FileVerdict:
    """What of this file may go."""
    before_ms = now_ms - limits.grace_ms
    stale = frozenset(
        tenant for tenant, at_ms in facts.claimed_at_ms.items() if at_ms < before_ms and tenant not in facts.named_by
    )
    is_needed = bool(facts.named_by) or facts.created_at_ms >= before_ms or len(stale) < len(facts.claimed_at_ms)
    return FileVerdict(stale, not is_needed)


def is_stale_upload(touched_at_ms: int, verifying_until_ms: int, now_ms: int, limits: FileLimits) -> bool:
    """Whether nobody goes on with it."""
    return touched_at_ms < now_ms - limits.upload_lifetime_ms and verifying_until_ms <= now_ms


def is_orphan(
    object_id: ObjectId | None, modified_at_ms: int, named: Collection[ObjectId], now_ms: int, limits: FileLimits
) -> bool:
    """Whether a stored object may go. What is not named like one of ours is somebody else's, and stays."""
    return object_id is not None and object_id not in named and modified_at_ms < now_ms - limits.grace_ms
