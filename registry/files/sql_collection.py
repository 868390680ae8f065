"""What a collection reads and deletes in SQL. A row goes only if the judgement over it, made while it is locked, says so.

Never touches the store: rows go first, objects after, so that no row ever names an object that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.audit.trail import AuditTrail
from registry.audit.types import AuditNote
from registry.files.collection import FileFacts, FileVerdict, is_stale_upload
from registry.files.types import FileLimits, ObjectId, UploadId
from registry.schema import file_owners, files, models, uploads, version_files, versions
from runtime.database import Database
from runtime.ids import Digest, TenantId

PAGE_ROWS = 200
Freed = tuple[ObjectId, int]
"""What lies in the store under no row any more, and the bytes it was announced with."""


class CollectionStore:
    def __init__(self, database: Database, trail: AuditTrail) -> None:
        self._database, self._trail = database, trail

    async def candidates(self, before_ms: int, after: Digest) -> Sequence[Digest]:
        """A page of files, by sha256, of which something may go: cheap to ask, and to be judged one by one."""
        unclaimed = ~_named(files.c.sha256)
        stale = exists().where(file_owners.c.sha256 == files.c.sha256, file_owners.c.since_ms < before_ms, ~_named_by_owner())
        asked = (
            select(files.c.sha256)
            .where(files.c.sha256 > after, files.c.created_at_ms < before_ms, or_(unclaimed, stale))
            .order_by(files.c.sha256)
            .limit(PAGE_ROWS)
        )
        async with self._database.reading() as connection:
            return [Digest(sha256) for sha256 in (await connection.execute(asked)).scalars()]

    async def judge(self, sha256: Digest, judged: Callable[[FileFacts], FileVerdict], note: AuditNote | None) -> Freed | None:
        """Delete what may go of this file; its object, if all of it went. Without a note, delete nothing, say what would go."""
        async with self._database.writing() as connection:
            # A row that somebody holds is needed at this moment.
            asked = select(files).where(files.c.sha256 == sha256).with_for_update(skip_locked=True)
            file = (await connection.execute(asked)).first()
            if file is None:
                return None
            verdict = judged(await _facts(connection, sha256, file.created_at_ms))
            if note is not None:
                await _carry_out(connection, sha256, verdict)
                if verdict.file:
                    await self._trail.write(connection, note)
        return (ObjectId(bytes(file.object_id)), file.size_bytes) if verdict.file else None

    async def stale_uploads(self, now_ms: int, limits: FileLimits, after: UploadId) -> Sequence[UploadId]:
        """A page of uploads that nobody goes on with, by id."""
        asked = (
            select(uploads.c.upload_id)
            .where(uploads.c.upload_id > after, uploads.c.touched_at_ms < now_ms - limits.upload_lifetime_ms)
            .order_by(uploads.c.upload_id)
            .limit(PAGE_ROWS)
        )
        async with self._database.reading() as connection:
            return [UploadId(upload_id) for upload_id in (await connection.execute(asked)).scalars()]

    async def drop_stale_upload(
        self, upload_id: UploadId, now_ms: int, limits: FileLimits, note: AuditNote | None
    ) -> Freed | None:
        """Its object, if it went. Without a note, delete nothing and say what would go."""
        async with self._database.writing() as connection:
            asked = select(uploads).where(uploads.c.upload_id == upload_id).with_for_update(skip_locked=True)
            row = (await connection.execute(asked)).first()
            if row is None or not is_stale_upload(row.touched_at_ms, row.verifying_until_ms, now_ms, limits):
                return None
            if note is not None:
                await connection.execute(delete(uploads).where(uploads.c.upload_id == upload_id))
                await self._trail.write(connection, note)
        return ObjectId(bytes(row.object_id)), row.size_bytes

    async def named(self, object_ids: Collection[ObjectId]) -> frozenset[ObjectId]:
        """Those that a file or an upload is stored under."""
        async with self._database.reading() as connection:
            found = [
                (await connection.execute(select(table.c.object_id).where(table.c.object_id.in_(object_ids)))).scalars().all()
                # Uploads first: one that becomes a file in between is found as that.
                for table in (uploads, files)
            ]
        return frozenset(ObjectId(bytes(object_id)) for each in found for object_id in each)


def _named(sha256: ColumnElement[str]) -> ColumnElement[bool]:
    return exists().where(version_files.c.sha256 == sha256)


def _named_by_owner() -> ColumnElement[bool]:
    """Whether a version of the owner's own consists of the file. To be used where `file_owners` is in the query."""
    return exists().where(
        and_(
            version_files.c.sha256 == file_owners.c.sha256,
            versions.c.digest == version_files.c.digest,
            models.c.model == versions.c.model,
            models.c.tenant == file_owners.c.tenant,
        )
    )


async def _facts(connection: AsyncConnection, sha256: Digest, created_at_ms: int) -> FileFacts:
    owners = await connection.execute(select(file_owners).where(file_owners.c.sha256 == sha256))
    claims = {TenantId(row.tenant): int(row.since_ms) for row in owners}
    # The models' seals are not checked: what grants nothing is at stake, and an altered row must not keep garbage for ever.
    named = select(models.c.tenant).distinct().select_from(version_files.join(versions).join(models))
    rows = await connection.execute(named.where(version_files.c.sha256 == sha256))
    return FileFacts(created_at_ms, claims, frozenset(TenantId(tenant) for tenant in rows.scalars()))


async def _carry_out(connection: AsyncConnection, sha256: Digest, verdict: FileVerdict) -> None:
    claims = delete(file_owners).where(file_owners.c.sha256 == sha256)
    if verdict.file:
        await connection.execute(claims)
        await connection.execute(delete(files).where(files.c.sha256 == sha256))
    elif verdict.claims:
        await connection.execute(claims.where(file_owners.c.tenant.in_(verdict.claims)))
