"""Files in SQL, a piece a row: written and read a piece at a time, so that no file is ever held whole.

A file is nobody's to see until its last piece is there. Locks: the file's row, then the tenant's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from hashlib import sha256
from typing import Any

from sqlalchemy import Row, Select, delete, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from runtime.database import Database, DatabaseBusy
from runtime.ids import TenantId
from scheduler.jobs.errors import FileDamaged, FileInUse, FileRefused, FileUnknown
from scheduler.jobs.files.types import UPLOAD_LIFETIME_MS, FileId, FileQuestion, NewFile, StoredFile, new_file_id
from scheduler.jobs.schema import batches, chunks, files
from scheduler.jobs.tenants import Changes, check_room, locked
from scheduler.jobs.types import JobLimits

Guard = Callable[[AsyncConnection], Awaitable[None]]
"""Called first in each transaction that writes; raises where the writer may not go on."""

_TURNS = 5
_SWEPT_AT_ONCE = 20


class FileStore:
    def __init__(self, database: Database, limits: JobLimits) -> None:
        self._database, self._limits = database, limits

    async def begin(self, new: NewFile, now_ms: int) -> FileId:
        """A file that is going to be written."""
        file_id = new_file_id()
        row = {
            "file_id": file_id,
            "tenant": new.tenant,
            "name": new.name,
            "purpose": new.purpose,
            "created_at_ms": now_ms,
            "expires_at_ms": now_ms + UPLOAD_LIFETIME_MS,
        }
        for _ in range(_TURNS):
            try:
                async with self._database.writing() as connection:
                    await locked(connection, new.tenant)
                    await connection.execute(insert(files).values(row))
                    return file_id
            except IntegrityError:
                continue  # the tenant's row was made by another at this moment
        raise DatabaseBusy("others begin with the same tenant again and again; try once more", retry_after_s=1.0)

    async def append(
        self, file_id: FileId, number: int, data: bytes, now_ms: int, *, bounded: bool = True, guard: Guard | None = None
    ) -> None:
        """The piece of this number, from 0. Unbounded is what was worked for: it is kept even past the tenant's bytes.

        Raises FileUnknown, FileRefused, JobsFull, and what the guard raises.
        """
        async with self._database.writing() as connection:
            if guard is not None:
                await guard(connection)
            being_written = (files.c.file_id == file_id) & (files.c.stored_at_ms == 0)
            row = (await connection.execute(select(files).where(being_written).with_for_update())).first()
            if row is None:
                raise unknown(file_id)
            size_bytes = row.size_bytes + len(data)
            if bounded and size_bytes > self._limits.file_bytes:
                raise FileRefused(f"the file has more than {self._limits.file_bytes} bytes, which is all; split it")
            grown = {"size_bytes": size_bytes, "expires_at_ms": now_ms + UPLOAD_LIFETIME_MS}
            await connection.execute(update(files).where(files.c.file_id == file_id).values(grown))
            await connection.execute(insert(chunks).values(file_id=file_id, number=number, data=data))
            tenant = await locked(connection, TenantId(row.tenant))
            if bounded:
                check_room(tenant, self._limits, size_bytes=len(data))
            await _stored(connection, row.tenant, len(data))

    async def finish(self, file_id: FileId, digest: str, keep_ms: int, now_ms: int) -> StoredFile:
        """From now on it can be seen. Raises FileUnknown."""
        async with self._database.writing() as connection:
            await publish(connection, file_id, digest, keep_ms, now_ms)
        return await self.file(file_id, None)

    async def file(self, file_id: FileId, tenant: TenantId | None) -> StoredFile:
        """Raises FileUnknown."""
        async with self._database.reading() as connection:
            row = (await connection.execute(_seen(tenant).where(files.c.file_id == file_id))).first()
        if row is None:
            raise unknown(file_id)
        return _file(row)

    async def page(self, asked: FileQuestion) -> tuple[list[StoredFile], bool]:
        """And whether there are more. Raises FileUnknown where the last file of the page before is gone."""
        place = tuple_(files.c.created_at_ms, files.c.file_id)
        order = (files.c.created_at_ms, files.c.file_id)
        listed = _seen(asked.tenant).order_by(*(order if asked.oldest_first else [each.desc() for each in order]))
        if asked.purpose:
            listed = listed.where(files.c.purpose == asked.purpose)
        if asked.after is not None:
            last = await self.file(asked.after, asked.tenant)
            at = (last.created_at_ms, last.file_id)
            listed = listed.where(place > at if asked.oldest_first else place < at)
        async with self._database.reading() as connection:
            rows = (await connection.execute(listed.limit(asked.page_size + 1))).all()
        return [_file(row) for row in rows[: asked.page_size]], len(rows) > asked.page_size

    async def pieces(self, file_id: FileId, first: int = 0) -> AsyncGenerator[bytes, None]:
        """The pieces from this number on, in order; nothing is held while the reader is busy with one."""
        number = first
        while True:
            this = (chunks.c.file_id == file_id) & (chunks.c.number == number)
            async with self._database.reading() as connection:
                data = await connection.scalar(select(chunks.c.data).where(this))
            if data is None:
                return
            yield bytes(data)
            number += 1

    async def checked_pieces(self, file: StoredFile) -> AsyncGenerator[bytes, None]:
        """All of it. Raises FileUnknown where it is deleted meanwhile, FileDamaged where it is not what it was."""
        digest, size_bytes = sha256(), 0
        async for piece in self.pieces(file.file_id):
            digest.update(piece)
            size_bytes += len(piece)
            yield piece
        if size_bytes < file.size_bytes:
            raise unknown(file.file_id)
        if digest.hexdigest() != file.sha256:
            raise FileDamaged(f"what is stored of file {file.file_id} is not what was written; upload it anew")

    async def delete(self, file_id: FileId, tenant: TenantId | None) -> None:
        """Raises FileUnknown, FileInUse."""
        async with self._database.writing() as connection:
            asked = _seen(tenant).where(files.c.file_id == file_id).with_for_update()
            row = (await connection.execute(asked)).first()
            if row is None:
                raise unknown(file_id)
            if (batch_id := await _reader_of(connection, file_id)) is not None:
                raise FileInUse(f"batch {batch_id} still reads file {file_id}; cancel it, or wait until it has begun")
            await _drop(connection, row)

    async def drop_unfinished(self, file_id: FileId) -> None:
        """What was written of it goes; one that was finished stays."""
        async with self._database.writing() as connection:
            being_written = (files.c.file_id == file_id) & (files.c.stored_at_ms == 0)
            row = (await connection.execute(select(files).where(being_written).with_for_update())).first()
            if row is not None:
                await _drop(connection, row)

    async def sweep(self, now_ms: int) -> int:
        """Files whose keeping is over, and uploads that nobody goes on with; a few at a time."""
        over = (files.c.expires_at_ms > 0) & (files.c.expires_at_ms <= now_ms)
        asked = select(files).where(over).order_by(files.c.expires_at_ms).limit(_SWEPT_AT_ONCE)
        async with self._database.writing() as connection:
            rows = (await connection.execute(asked.with_for_update(skip_locked=True))).all()
            freed = Changes()
            for row in rows:
                await connection.execute(delete(files).where(files.c.file_id == row.file_id))
                freed.of(row.tenant).add(stored_bytes=-row.size_bytes)
            await freed.write(connection)
        return len(rows)


def unknown(file_id: str) -> FileUnknown:
    return FileUnknown(f"there is no file {file_id[:64]!r}; it was deleted, or has expired")


async def publish(connection: AsyncConnection, file_id: str, digest: str, keep_ms: int, now_ms: int) -> None:
    """Raises FileUnknown."""
    stored = {"sha256": digest, "stored_at_ms": now_ms, "expires_at_ms": files.c.created_at_ms + keep_ms}
    being_written = (files.c.file_id == file_id) & (files.c.stored_at_ms == 0)
    if not (await connection.execute(update(files).where(being_written).values(stored))).rowcount:
        raise unknown(file_id)


async def _reader_of(connection: AsyncConnection, file_id: str) -> str | None:
    under_way = batches.c.status.in_(("in_progress", "cancelling", "finalizing")) & (batches.c.lines_made < batches.c.total)
    reads = under_way | (batches.c.status == "validating")
    return await connection.scalar(select(batches.c.batch_id).where((batches.c.input_file_id == file_id) & reads).limit(1))


async def _drop(connection: AsyncConnection, row: Row[Any]) -> None:
    await connection.execute(delete(files).where(files.c.file_id == row.file_id))
    await _stored(connection, row.tenant, -row.size_bytes)


async def _stored(connection: AsyncConnection, tenant: str, size_bytes: int) -> None:
    changes = Changes()
    changes.of(tenant).add(stored_bytes=size_bytes)
    await changes.write(connection)


def _seen(tenant: TenantId | None) -> Select[Any]:
    asked = select(files).where(files.c.stored_at_ms > 0)
    return asked if tenant is None else asked.where(files.c.tenant == tenant)


def _file(row: Row[Any]) -> StoredFile:
    return StoredFile(
        FileId(row.file_id),
        TenantId(row.tenant),
        row.name,
        row.purpose,
        row.size_bytes,
        row.sha256,
        row.created_at_ms,
        row.expires_at_ms,
    )
