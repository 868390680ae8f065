"""Files coming in: begun once for each tenant and content, received part by part, at any replica, in any order.

Decides nothing about whole files; that is `completion.py`'s. What one tenant uploads tells it nothing about another's files: a
file that is here already is received whole all the same, and found to be here only then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from registry.access.types import Principal, Scope
from registry.audit.types import note_of
from registry.files.data_keys import DataKeys, WrappedKey
from registry.files.objects import Objects
from registry.files.parts import sealed_part
from registry.files.places import Places
from registry.files.policy import fault_of, is_upload_id
from registry.files.presence import lost_object
from registry.files.senders import listened
from registry.files.sql import FileStore, unknown
from registry.files.types import Announcement, Begun, FileLimits, Upload, UploadId, object_prefix, part_key
from runtime.clock import Clock
from runtime.errors import InvalidArgument
from runtime.ids import Digest

Accept = Callable[[], Awaitable[None]]


class Uploads:
    def __init__(self, store: FileStore, objects: Objects, data_keys: DataKeys, clock: Clock, limits: FileLimits) -> None:
        self._store, self._objects, self._data_keys, self._clock, self._limits = store, objects, data_keys, clock, limits
        self._places = Places("parts", limits.parts_at_once, limits.parts_waiting, each=max(1, limits.parts_at_once - 1))

    async def begin(self, principal: Principal, tenant: str, sha256: str, size_bytes: int) -> Begun:
        """Idempotent. A file that the store lost is complete no more: what is sent now takes its place."""
        announced = Announcement(principal.tenant_or(tenant), Digest(sha256), size_bytes)
        principal.require(Scope.MODELS_PUBLISH, announced.tenant)
        if fault := fault_of(announced, self._limits):
            raise fault
        note = note_of(principal, "upload.begin", sha256, tenant=announced.tenant, detail=f"{size_bytes} bytes")
        begun = await self._store.begin(announced, self._limits, self._wrapped, note, self._now_ms())
        if begun.complete and (lost := await lost_object(self._store, self._objects, announced.sha256)) is not None:
            begun = await self._store.begin(announced, self._limits, self._wrapped, note, self._now_ms(), lost)
        return begun

    async def receive(
        self, principal: Principal, upload_id: UploadId, number: int, pieces: AsyncIterator[bytes], accept: Accept
    ) -> None:
        """One part, whole or not at all. `accept` is called once it is the part's turn, before its first byte is read."""
        upload = await self.found(principal, upload_id)
        if number >= upload.layout.part_count:
            raise InvalidArgument(f"part {number}: a file of {upload.layout.size_bytes} bytes has {upload.layout.part_count}")
        if number in await self._store.received(upload_id):
            await accept()
            return await _let_pass(self._listened(pieces, upload.layout.part_size(number)))
        data_key = self._data_keys.open(upload.object_id, upload.sha256, upload.key)
        async with self._places.of(upload.tenant):
            await accept()
            heard = self._listened(pieces, upload.layout.part_size(number))
            sealed = await sealed_part(data_key, upload.object_id, upload.layout, number, heard)
            # Where two send the same part, the first one's is kept, and is a whole one either way.
            await self._objects.put(part_key(upload.object_id, number), sealed)
        return await self._store.add_part(upload_id, number, self._now_ms())

    def _listened(self, pieces: AsyncIterator[bytes], size_bytes: int) -> AsyncIterator[bytes]:
        silence_s = self._limits.silence_s
        return listened(pieces, silence_s, silence_s + size_bytes / self._limits.slowest_bytes_per_s)

    async def abort(self, principal: Principal, upload_id: UploadId) -> None:
        """An upload that is gone already is no fault."""
        principal.require(Scope.MODELS_PUBLISH)
        upload = await self._ones_own(principal, upload_id)
        if upload is None:
            return
        note = note_of(principal, "upload.abort", upload.sha256, tenant=upload.tenant)
        await self._store.drop_upload(upload_id, note)
        await drop_object(self._objects, upload.object_id)

    async def found(self, principal: Principal, upload_id: UploadId) -> Upload:
        """Raises UploadUnknown, also where it is another tenant's: that there is one is nobody else's to know."""
        principal.require(Scope.MODELS_PUBLISH)
        upload = await self._ones_own(principal, upload_id)
        if upload is None:
            raise unknown(upload_id)
        return upload

    async def _ones_own(self, principal: Principal, upload_id: UploadId) -> Upload | None:
        upload = await self._store.upload(upload_id) if is_upload_id(upload_id) else None
        return upload if upload is not None and principal.tenant in (None, upload.tenant) else None

    def _wrapped(self, object_id: bytes, sha256: Digest) -> WrappedKey:
        return self._data_keys.make(object_id, sha256)[1]

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


async def drop_object(objects: Objects, object_id: bytes) -> int:
    """Delete what is stored of it; how many bytes that were. No row may name it any more."""
    freed_bytes = 0
    async for page in objects.pages(object_prefix(object_id)):
        await objects.delete([each.key for each in page])
        freed_bytes += sum(each.size_bytes for each in page)
    return freed_bytes


async def _let_pass(pieces: AsyncIterator[bytes]) -> None:
    async for _ in pieces:
        pass
