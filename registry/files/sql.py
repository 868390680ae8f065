"""Uploads, files and who has them, in SQL. Each method is one transaction; what it may do is decided by what it is given. What
a collection does is in `sql_collection.py`.

Locks, on PostgreSQL: who adds up a tenant's bytes holds the tenant's row, and who relies on a file holds a share of the file's
row, which a collection cannot delete then. SQLite has one writer at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.audit.trail import AuditTrail
from registry.audit.types import AuditNote
from registry.files.data_keys import WrappedKey
from registry.files.errors import UploadRefused, UploadUnknown
from registry.files.layout import Layout
from registry.files.policy import refusal_of
from registry.files.types import (
    Announcement,
    Begun,
    FileLimits,
    ObjectId,
    StoredFile,
    Upload,
    UploadId,
    Usage,
    VersionFiles,
    new_object_id,
    new_upload_id,
)
from registry.schema import file_owners, files, models, tenants, upload_parts, uploads, versions
from registry.seals import Seals, select_checked, update_sealed
from runtime.database import Database, DatabaseBusy
from runtime.errors import NotFound
from runtime.ids import Digest, ModelName, TenantId

_TURNS = 5
"""Two tenants that complete the same file at the same moment: one row wins, the other looks again."""
_MOST_TENANTS = 1000


class FileStore:
    def __init__(self, database: Database, seals: Seals, trail: AuditTrail) -> None:
        self._database, self._seals, self._trail = database, seals, trail

    async def begin(
        self,
        announced: Announcement,
        limits: FileLimits,
        wrapped: Callable[[bytes, Digest], WrappedKey],
        note: AuditNote,
        now_ms: int,
        lost: ObjectId | None = None,
    ) -> Begun:
        """A file whose object is `lost` is as good as missing.

        Raises NotFound (no such tenant), UploadRefused (another size), QuotaExceeded, UploadsFull.
        """
        async with self._database.writing() as connection:
            tenant = await self._locked_tenant(connection, announced.tenant)
            if await _claimed(connection, announced, now_ms, lost):
                return Begun()
            known = await _upload_of(connection, announced)
            if known is not None:
                await connection.execute(_of(known.upload_id).values(touched_at_ms=now_ms))
                return Begun(known, await _received(connection, known.upload_id))
            usage = await _usage(connection, tenant)
            in_all = int(await connection.scalar(select(func.count()).select_from(uploads)) or 0)
            if refusal := refusal_of(announced, usage, in_all, limits):
                raise refusal
            begun = _new_upload(announced, limits, wrapped, now_ms)
            await connection.execute(insert(uploads).values(_row_of(begun, now_ms)))
            await self._trail.write(connection, note)
            return Begun(begun)

    async def upload(self, upload_id: UploadId) -> Upload | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(select(uploads).where(uploads.c.upload_id == upload_id))).first()
        return None if row is None else _upload(row)

    async def received(self, upload_id: UploadId) -> tuple[int, ...]:
        """Numbers of the parts that are here, ascending."""
        async with self._database.reading() as connection:
            return await _received(connection, upload_id)

    async def add_part(self, upload_id: UploadId, number: int, now_ms: int) -> None:
        """The part is stored; added twice, it is there once. Raises UploadUnknown."""
        async with self._database.writing() as connection:
            touched = await connection.execute(_of(upload_id).values(touched_at_ms=now_ms))
            if not touched.rowcount:
                raise unknown(upload_id)
            # The row that was touched is locked until the end: nobody else adds the part meanwhile.
            is_part = (upload_parts.c.upload_id == upload_id) & (upload_parts.c.number == number)
            if (await connection.execute(select(upload_parts).where(is_part))).first() is None:
                await connection.execute(insert(upload_parts).values(upload_id=upload_id, number=number))

    async def drop_upload(self, upload_id: UploadId, note: AuditNote) -> bool:
        """Whether there was one. Its stored parts are the caller's to delete, afterwards."""
        async with self._database.writing() as connection:
            dropped = await connection.execute(delete(uploads).where(uploads.c.upload_id == upload_id))
            if dropped.rowcount:
                await self._trail.write(connection, note)
            return bool(dropped.rowcount)

    async def take_verification(self, upload_id: UploadId, now_ms: int, until_ms: int) -> int:
        """0 where it is the caller's now; else until when somebody else has it. Raises UploadUnknown."""
        async with self._database.writing() as connection:
            # One that lasts longer than any can was taken by a clock that has been set back since.
            longest_ms = until_ms + (until_ms - now_ms)
            free = (uploads.c.verifying_until_ms <= now_ms) | (uploads.c.verifying_until_ms > longest_ms)
            changed = _of(upload_id).where(free).values(verifying_until_ms=until_ms, touched_at_ms=now_ms)
            if (await connection.execute(changed)).rowcount:
                return 0
            asked = select(uploads.c.verifying_until_ms).where(uploads.c.upload_id == upload_id)
            row = (await connection.execute(asked)).first()
            if row is None:
                raise unknown(upload_id)
            return int(row.verifying_until_ms)

    async def hold_verification(self, upload_id: UploadId, had_ms: int, until_ms: int) -> None:
        """Prolong it, or end it with 0, if it is still the one that lasted until `had_ms`."""
        async with self._database.writing() as connection:
            mine = uploads.c.verifying_until_ms == had_ms
            await connection.execute(_of(upload_id).where(mine).values(verifying_until_ms=until_ms))

    async def finish(self, upload_id: UploadId, note: AuditNote, now_ms: int, lost: ObjectId | None = None) -> bool:
        """A verified upload becomes a file that its tenant has. False: the file was here already, and what the upload stored is
        the caller's to delete. A file whose object is `lost` gets this one. Raises UploadUnknown."""
        for _ in range(_TURNS):
            try:
                async with self._database.writing() as connection:
                    is_new = await _finished(connection, upload_id, now_ms, lost)
                    await self._trail.write(connection, note)
                    return is_new
            except IntegrityError:
                continue  # the same file became one through another tenant's upload a moment ago
        raise DatabaseBusy("others complete the same file again and again; try once more", retry_after_s=1.0)

    async def file(self, sha256: Digest) -> StoredFile | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(select(files).where(files.c.sha256 == sha256))).first()
        return None if row is None else _file(row)

    async def version_files(self, digest: Digest) -> VersionFiles | None:
        """Raises RowAltered."""
        async with self._database.reading() as connection:
            version = await select_checked(connection, self._seals, versions, versions.c.digest == digest)
            if version is None:
                return None
            model = await select_checked(connection, self._seals, models, models.c.model == version.model)
        if model is None:
            return None
        return VersionFiles(
            ModelName(model.model),
            TenantId(model.tenant),
            frozenset(model.shared_with),
            bool(version.withdrawn_at_ms),
            bytes(version.manifest),
        )

    async def usages(self, tenant: TenantId | None) -> tuple[Usage, ...]:
        """Of this tenant, or of all (a thousand at most), by name. Raises RowAltered."""
        asked = select(tenants).order_by(tenants.c.tenant).limit(_MOST_TENANTS)
        if tenant is not None:
            asked = asked.where(tenants.c.tenant == tenant)
        async with self._database.reading() as connection:
            rows = (await connection.execute(asked)).all()
            return tuple([await _usage(connection, self._seals.check(tenants, row)) for row in rows])

    async def set_quota(self, tenant: TenantId, quota_bytes: int, note: AuditNote) -> Usage:
        """Raises NotFound, RowAltered."""
        async with self._database.writing() as connection:
            where = tenants.c.tenant == tenant
            changed = await update_sealed(connection, self._seals, tenants, {"quota_bytes": quota_bytes}, where)
            if changed is None:
                raise no_tenant(tenant)
            await self._trail.write(connection, note)
            return await _usage(connection, changed)

    async def _locked_tenant(self, connection: AsyncConnection, tenant: TenantId) -> Row[Any]:
        # FOR NO KEY UPDATE: rows that merely refer to the tenant are added meanwhile.
        asked = select(tenants).where(tenants.c.tenant == tenant).with_for_update(key_share=True)
        row = (await connection.execute(asked)).first()
        if row is None:
            raise no_tenant(tenant)
        return self._seals.check(tenants, row)


def unknown(upload_id: UploadId) -> UploadUnknown:
    return UploadUnknown(
        f"there is no upload {upload_id[:64]}: it was completed, aborted or dropped; begin again to learn which"
    )


def no_tenant(tenant: TenantId) -> NotFound:
    return NotFound(f"there is no tenant {tenant[:64]!r}; `penstock tenants list` shows those there are")


async def _claimed(connection: AsyncConnection, announced: Announcement, now_ms: int, lost: ObjectId | None) -> bool:
    """Whether the tenant has the file; if so, it needs it from now on for another grace. Raises UploadRefused."""
    is_owner = (file_owners.c.tenant == announced.tenant) & (file_owners.c.sha256 == announced.sha256)
    if (await connection.execute(select(file_owners).where(is_owner))).first() is None:
        return False
    file = await _held_file(connection, announced.sha256)
    # Whoever collects may have taken the file, or the claim to it, while this waited for the file's row.
    claimed = await connection.execute(update(file_owners).where(is_owner).values(since_ms=now_ms))
    if file is None or not claimed.rowcount:
        return False
    if file.size_bytes != announced.size_bytes:
        raise UploadRefused(f"file {announced.sha256} has {file.size_bytes} bytes, not {announced.size_bytes}")
    return bytes(file.object_id) != lost


async def _held_file(connection: AsyncConnection, sha256: str) -> Row[Any] | None:
    """FOR KEY SHARE: until the end of the transaction, no collection takes it away."""
    held = select(files).where(files.c.sha256 == sha256).with_for_update(read=True, key_share=True)
    return (await connection.execute(held)).first()


async def _upload_of(connection: AsyncConnection, announced: Announcement) -> Upload | None:
    is_ours = (uploads.c.tenant == announced.tenant) & (uploads.c.sha256 == announced.sha256)
    row = (await connection.execute(select(uploads).where(is_ours))).first()
    if row is not None and row.size_bytes != announced.size_bytes:
        raise UploadRefused(
            f"an upload of {announced.sha256} with {row.size_bytes} bytes is under way, not {announced.size_bytes}: abort"
            f" {row.upload_id} if that one is wrong"
        )
    return None if row is None else _upload(row)


async def _finished(connection: AsyncConnection, upload_id: UploadId, now_ms: int, lost: ObjectId | None) -> bool:
    row = (await connection.execute(select(uploads).where(uploads.c.upload_id == upload_id).with_for_update())).first()
    if row is None:
        raise unknown(upload_id)
    # The key as the row has it now: a new master key may have come while the upload was verified.
    kept = ("sha256", "object_id", "size_bytes", "part_bytes", "wrapped_key", "master_key_id")
    values = {name: row._mapping[name] for name in kept} | {"created_at_ms": now_ms}
    held = await _held_file(connection, row.sha256)
    is_new = held is None or bytes(held.object_id) == lost
    if held is None:
        await connection.execute(insert(files).values(values))
    elif is_new:
        await connection.execute(update(files).where(files.c.sha256 == row.sha256).values(values))
    is_owner = (file_owners.c.tenant == row.tenant) & (file_owners.c.sha256 == row.sha256)
    if not (await connection.execute(update(file_owners).where(is_owner).values(since_ms=now_ms))).rowcount:
        await connection.execute(insert(file_owners).values(tenant=row.tenant, sha256=row.sha256, since_ms=now_ms))
    await connection.execute(delete(uploads).where(uploads.c.upload_id == upload_id))
    return is_new


async def _received(connection: AsyncConnection, upload_id: UploadId) -> tuple[int, ...]:
    asked = select(upload_parts.c.number).where(upload_parts.c.upload_id == upload_id).order_by(upload_parts.c.number)
    return tuple((await connection.execute(asked)).scalars())


async def _usage(connection: AsyncConnection, tenant: Row[Any]) -> Usage:
    counted = (func.count(), func.coalesce(func.sum(files.c.size_bytes), 0))
    owned = select(*counted).select_from(file_owners.join(files)).where(file_owners.c.tenant == tenant.tenant)
    announced = select(func.count(), func.coalesce(func.sum(uploads.c.size_bytes), 0)).where(uploads.c.tenant == tenant.tenant)
    file_count, file_bytes = (await connection.execute(owned)).one()
    upload_count, upload_bytes = (await connection.execute(announced)).one()
    # PostgreSQL adds integers up to a decimal.
    used_bytes = int(file_bytes) + int(upload_bytes)
    return Usage(TenantId(tenant.tenant), used_bytes, tenant.quota_bytes, file_count, upload_count)


def _of(upload_id: UploadId) -> Any:
    return update(uploads).where(uploads.c.upload_id == upload_id)


def _new_upload(
    announced: Announcement, limits: FileLimits, wrapped: Callable[[bytes, Digest], WrappedKey], now_ms: int
) -> Upload:
    object_id, layout = new_object_id(), Layout(announced.size_bytes, limits.part_bytes)
    return Upload(
        new_upload_id(), announced.tenant, announced.sha256, layout, object_id, wrapped(object_id, announced.sha256), now_ms, 0
    )


def _row_of(upload: Upload, now_ms: int) -> dict[str, Any]:
    return {
        "upload_id": upload.upload_id,
        "tenant": upload.tenant,
        "sha256": upload.sha256,
        "size_bytes": upload.layout.size_bytes,
        "part_bytes": upload.layout.part_bytes,
        "object_id": upload.object_id,
        "wrapped_key": upload.key.wrapped,
        "master_key_id": upload.key.master_key_id,
        "created_at_ms": now_ms,
        "touched_at_ms": now_ms,
        "verifying_until_ms": 0,
    }


def _upload(row: Row[Any]) -> Upload:
    return Upload(
        UploadId(row.upload_id),
        TenantId(row.tenant),
        Digest(row.sha256),
        Layout(row.size_bytes, row.part_bytes),
        ObjectId(bytes(row.object_id)),
        WrappedKey(bytes(row.wrapped_key), row.master_key_id),
        row.touched_at_ms,
        row.verifying_until_ms,
    )


def _file(row: Row[Any]) -> StoredFile:
    return StoredFile(
        Digest(row.sha256),
        Layout(row.size_bytes, row.part_bytes),
        ObjectId(bytes(row.object_id)),
        WrappedKey(bytes(row.wrapped_key), row.master_key_id),
    )
