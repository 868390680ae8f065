"""Whether an upload may begin, and whether it fits. Pure."""

from __future__ import annotations

import re

from registry.files.errors import QuotaExceeded, UploadsFull
from registry.files.types import Announcement, FileLimits, Usage
from runtime.errors import InvalidArgument, PenstockError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def fault_of_sha256(sha256: str) -> InvalidArgument | None:
    if _SHA256.fullmatch(sha256):
        return None
    return InvalidArgument(f"sha256 {sha256[:80]!r}: 64 lower-case hex digits are expected")


def is_upload_id(text: str) -> bool:
    return _UPLOAD_ID.fullmatch(text) is not None


def fault_of_tenant(tenant: str) -> InvalidArgument | None:
    if _TENANT.fullmatch(tenant):
        return None
    return InvalidArgument(f"tenant {tenant[:80]!r}: up to 63 of a-z 0-9 - are allowed, starting with a letter or digit")


def fault_of(announced: Announcement, limits: FileLimits) -> PenstockError | None:
    """What is wrong with the announcement by itself."""
    if fault := fault_of_sha256(announced.sha256) or fault_of_tenant(announced.tenant):
        return fault
    if announced.size_bytes > limits.file_bytes:
        return InvalidArgument(f"a file of {announced.size_bytes} bytes; the registry takes up to {limits.file_bytes}")
    return None


def refusal_of(announced: Announcement, usage: Usage, uploads_in_all: int, limits: FileLimits) -> PenstockError | None:
    """Why one more upload may not begin now."""
    after_bytes = usage.used_bytes + announced.size_bytes
    if usage.quota_bytes and after_bytes > usage.quota_bytes:
        return QuotaExceeded(
            f"tenant {usage.tenant} has {usage.used_bytes} of {usage.quota_bytes} bytes; {announced.size_bytes} more do not"
            " fit: abort uploads that are not needed, or ask an operator for a larger quota"
        )
    if usage.uploads >= limits.uploads_per_tenant:
        return UploadsFull(
            f"tenant {usage.tenant} has {usage.uploads} uploads under way, as many as may; complete or abort some",
            retry_after_s=5.0,
        )
    if uploads_in_all >= limits.uploads:
        return UploadsFull(f"{uploads_in_all} uploads are under way, as many as may", retry_after_s=5.0)
    return None
