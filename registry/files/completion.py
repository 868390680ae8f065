"""An upload becomes a file: all that was stored is read back, opened, hashed and compared, and then one transaction says so.

What is verified is what the store holds, not what once passed by. A lease in the upload's row keeps two from doing the same
work; it decides nothing: were two to verify at once, one transaction would make the file and the other find the upload gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass

from registry.access.types import Principal
from registry.audit.types import AuditOutcome, note_of
from registry.files.data_keys import DataKeyAltered, DataKeys
from registry.files.errors import ObjectMissing, UploadBusy, UploadIncomplete, UploadRefused
from registry.files.objects import Objects
from registry.files.parts import Run, opened_run, read_runs
from registry.files.places import Places
from registry.files.presence import lost_object
from registry.files.sql import FileStore, unknown
from registry.files.types import FileLimits, Upload, UploadId
from registry.files.uploads import Uploads, drop_object
from registry.threads import in_thread
from runtime.clock import Clock
from runtime.errors import PenstockError
from runtime.sealed_chunks import ChunkAltered

_CHUNKS_AT_ONCE = 4
_ASK_AGAIN_S = 3.0
_WORTHLESS = (UploadRefused, ObjectMissing, ChunkAltered, DataKeyAltered)
"""After these nothing of the upload can be used."""


@dataclass(frozen=True, slots=True)
class Progress:
    verified_bytes: int
    size_bytes: int
    complete: bool = False


class Completion:
    def __init__(
        self, uploads: Uploads, store: FileStore, objects: Objects, data_keys: DataKeys, clock: Clock, limits: FileLimits
    ) -> None:
        self._uploads, self._store, self._objects, self._data_keys = uploads, store, objects, data_keys
        self._clock, self._limits = clock, limits
        self._places = Places("completions", limits.completions_at_once, limits.waiting)

    async def complete(self, principal: Principal, upload_id: UploadId) -> AsyncGenerator[Progress, None]:
        """How far it is; complete at last. Raises UploadIncomplete, UploadBusy, and UploadRefused on the wrong content."""
        upload = await self._uploads.found(principal, upload_id)
        await self._check_received(upload)
        async with self._places:
            lease = _Lease(self._store, self._clock, self._limits.verifying_s, upload)
            await lease.take()
            try:
                async with aclosing(self._verified(upload, lease)) as verified:
                    async for verified_bytes in verified:
                        yield Progress(verified_bytes, upload.layout.size_bytes)
                await self._finish(principal, upload)
            except _WORTHLESS as error:
                await self._drop(principal, upload, error)
                raise
            finally:
                await lease.end()
        yield Progress(upload.layout.size_bytes, upload.layout.size_bytes, complete=True)

    async def _check_received(self, upload: Upload) -> None:
        received = await self._store.received(upload.upload_id)
        if len(received) < upload.layout.part_count:
            raise UploadIncomplete(
                f"{len(received)} of {upload.layout.part_count} parts of {upload.sha256} are here; begin again to learn which"
            )

    async def _verified(self, upload: Upload, lease: _Lease) -> AsyncGenerator[int, None]:
        """Bytes so far. Raises UploadRefused, ChunkAltered, ObjectMissing, DataKeyAltered."""
        layout, hasher, done_bytes = upload.layout, hashlib.sha256(), 0
        data_key = self._data_keys.open(upload.object_id, upload.sha256, upload.key)

        def hashed(run: Run, data: bytes) -> int:
            size_bytes = 0
            for chunk in opened_run(data_key, upload.object_id, layout, run, data):
                hasher.update(chunk)
                size_bytes += len(chunk)
            return size_bytes

        async with aclosing(read_runs(self._objects, upload.object_id, layout, 0, _CHUNKS_AT_ONCE)) as stored:
            async for run, data in stored:
                done_bytes += await in_thread(hashed, run, data)
                await lease.prolong()
                yield done_bytes
        if hasher.hexdigest() != upload.sha256:
            raise UploadRefused(
                f"the {layout.size_bytes} bytes received have the sha256 {hasher.hexdigest()}, not {upload.sha256}; send them"
                " anew"
            )

    async def _finish(self, principal: Principal, upload: Upload) -> None:
        note = note_of(
            principal, "upload.complete", upload.sha256, tenant=upload.tenant, detail=f"{upload.layout.size_bytes} bytes"
        )
        lost = await lost_object(self._store, self._objects, upload.sha256)
        if not await self._store.finish(upload.upload_id, note, int(self._clock.wall_s() * 1000), lost):
            await drop_object(self._objects, upload.object_id)
        elif lost is not None:
            await drop_object(self._objects, lost)  # what is left of it

    async def _drop(self, principal: Principal, upload: Upload, error: PenstockError) -> None:
        """Raises UploadUnknown where somebody else ended the upload, and what seemed missing was deleted rightly."""
        note = note_of(
            principal, "upload.refuse", upload.sha256, tenant=upload.tenant, outcome=AuditOutcome.FAILED, detail=error.message
        )
        if not await self._store.drop_upload(upload.upload_id, note):
            raise unknown(upload.upload_id) from error
        await drop_object(self._objects, upload.object_id)


class _Lease:
    """Whose turn it is to verify an upload, for some seconds at a time."""

    def __init__(self, store: FileStore, clock: Clock, lasts_s: float, upload: Upload) -> None:
        self._store, self._clock, self._lasts_ms, self._upload_id = store, clock, int(lasts_s * 1000), upload.upload_id
        self._until_ms = 0

    async def take(self) -> None:
        """Raises UploadBusy, UploadUnknown."""
        now_ms = self._now_ms()
        others_ms = await self._store.take_verification(self._upload_id, now_ms, now_ms + self._lasts_ms)
        if others_ms:
            raise UploadBusy(
                f"upload {self._upload_id} is being verified already; begin again to learn what came of it",
                retry_after_s=max(0.1, min(_ASK_AGAIN_S, (others_ms - now_ms) / 1000)),
            )
        self._until_ms = now_ms + self._lasts_ms

    async def prolong(self) -> None:
        """Once more than half of it is over."""
        now_ms = self._now_ms()
        if now_ms + self._lasts_ms // 2 > self._until_ms:
            had_ms, self._until_ms = self._until_ms, now_ms + self._lasts_ms
            await self._store.hold_verification(self._upload_id, had_ms, self._until_ms)

    async def end(self) -> None:
        """Where the database does not answer, it ends by itself."""
        with suppress(PenstockError):
            await self._store.hold_verification(self._upload_id, self._until_ms, 0)

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)
