"""/v1/files: what a caller may keep, and how it is shown.

Decides what an upload has to be. Keeps nothing: a FileStore does. Source: OpenAI's API reference, "Files".
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from gateway.callers import Caller
from gateway.openai.errors import RequestRefused
from gateway.openai.multipart import Part, parts_of
from gateway.openai.stored import FileStore, Page, StoredFile, Upload
from runtime.ids import DEFAULT_TENANT, TenantId

MAX_LISTED = 10_000
_PURPOSE = "batch"
_MAX_NAME_BYTES = 255
_FIELD_BYTES = 1024
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_KEPT_S = (3_600, 2_592_000)
_TAKEN = ("file", "purpose", _ANCHOR, _SECONDS)
_ORDERS: Mapping[str, bool] = {"": False, "desc": False, "asc": True}


class Files:
    """Files as JSON, for one tenant at a time."""

    def __init__(self, store: FileStore) -> None:
        self._store = store

    async def create(self, caller: Caller, content_type: str, body: bytes) -> bytes:
        caller.key.require_infer()
        upload = upload_of(await parts_of(content_type, body))
        return _rendered(_shown(await self._store.upload(tenant_of(caller), upload)))

    async def all(self, caller: Caller, *, purpose: str = "", limit: int = 0, after: str = "", order: str = "") -> bytes:
        check_limit(limit, MAX_LISTED)
        if order not in _ORDERS:
            raise RequestRefused(f"'order' is {order[:40]!r}; known: asc, desc", param="order")
        page = await self._store.files(
            tenant_of(caller), purpose=purpose, limit=limit, after=after, oldest_first=_ORDERS[order]
        )
        return listed(Page([_shown(file) for file in page.items], page.has_more))

    async def one(self, caller: Caller, file_id: str) -> bytes:
        return _rendered(_shown(await self._store.file(tenant_of(caller), file_id)))

    async def delete(self, caller: Caller, file_id: str) -> bytes:
        caller.key.require_infer()
        await self._store.delete(tenant_of(caller), file_id)
        return _rendered({"id": file_id, "object": "file", "deleted": True})

    async def found(self, caller: Caller, file_id: str) -> StoredFile:
        """Whose content may be read. Raises FileUnknown."""
        return await self._store.file(tenant_of(caller), file_id)


def upload_of(parts: Mapping[str, Part]) -> Upload:
    """Raises RequestRefused."""
    for name in parts:
        if name not in _TAKEN:
            raise RequestRefused(
                f"{name[:80]!r} is no part of this form; leave it out", param=name[:80], fault="unknown_parameter"
            )
    file, purpose = _required(parts, "file"), _required(parts, "purpose").text(_FIELD_BYTES)
    if file.filename is None:
        raise RequestRefused("'file' has no filename; send it as a file", param="file", fault="invalid_type")
    if purpose != _PURPOSE:
        raise RequestRefused(f"'purpose' is {purpose[:40]!r}; only 'batch' is taken here", param="purpose")
    if len(file.filename.encode()) > _MAX_NAME_BYTES:
        raise RequestRefused(f"the filename has more than {_MAX_NAME_BYTES} bytes; send a shorter one", param="file")
    return Upload(file.filename, purpose, file.views, _keep_s(parts))


def tenant_of(caller: Caller) -> TenantId:
    """Where no key is asked for, everybody is one tenant."""
    return caller.key.tenant or DEFAULT_TENANT


def check_limit(limit: int, at_most: int) -> None:
    """0: none was given. Raises RequestRefused."""
    if limit > at_most:
        raise RequestRefused(f"'limit' is {limit}; it is taken from 1 to {at_most}", param="limit", fault="out_of_range")


def listed(page: Page[dict[str, object]]) -> bytes:
    """A page as the API lists things."""
    ids = [item["id"] for item in page.items]
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return _rendered({"object": "list", "data": list(page.items), **ends, "has_more": page.has_more})


def _required(parts: Mapping[str, Part], name: str) -> Part:
    part = parts.get(name)
    if part is None:
        raise RequestRefused(f"the part {name!r} is missing; it is required", param=name, fault="missing_required_parameter")
    return part


def _keep_s(parts: Mapping[str, Part]) -> int:
    anchor, seconds = parts.get(_ANCHOR), parts.get(_SECONDS)
    if anchor is None and seconds is None:
        return 0
    if anchor is None or seconds is None:
        raise RequestRefused("'expires_after' needs both anchor and seconds; send both, or neither", param="expires_after")
    if (at := anchor.text(_FIELD_BYTES)) != "created_at":
        raise RequestRefused(f"{_ANCHOR!r} is {at[:40]!r}; known: created_at", param=_ANCHOR)
    said = seconds.text(_FIELD_BYTES)
    least, most = _KEPT_S
    if not (said.isascii() and said.isdecimal() and len(said) < 12 and least <= int(said) <= most):
        raise RequestRefused(
            f"{_SECONDS!r} is {said[:40]!r}; it is a number from {least} to {most}", param=_SECONDS, fault="out_of_range"
        )
    return int(said)


def _shown(file: StoredFile) -> dict[str, object]:
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_at_ms // 1000,
        "expires_at": file.expires_at_ms // 1000 or None,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def _rendered(value: object) -> bytes:
    return json.dumps(value).encode()
