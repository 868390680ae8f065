"""Files in SQL, on SQLite and PostgreSQL: whole or not at all, within their tenant's bytes, gone in time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from hashlib import sha256

import pytest
from sqlalchemy import func, select, update

from scheduler.jobs.errors import FileDamaged, FileRefused, FileUnknown, JobsFull
from scheduler.jobs.files.types import CHUNK_BYTES, UPLOAD_LIFETIME_MS, FileId, FileQuestion, NewFile, Purpose
from scheduler.jobs.files.writing import FileWriter
from scheduler.jobs.schema import chunks
from tests.scheduler.jobs.ground import ACME, OTHER, Ground


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7])
async def test_what_was_written_is_what_is_read(ground: Ground, size: int) -> None:
    data = bytes(index * 7 % 256 for index in range(256)) * (size // 256 + 1)
    file = await ground.upload(data[:size])
    assert (file.size_bytes, file.sha256) == (size, sha256(data[:size]).hexdigest())
    assert await ground.content(file.file_id) == data[:size]
    assert await ground.kept() == await ground.recounted() == (0, size)


async def test_pieces_are_of_one_size_however_the_bytes_come(sqlite_ground: Ground) -> None:
    ground = sqlite_ground
    new = NewFile(ACME, "n", Purpose.BATCH, 1000)
    writer = FileWriter(ground.files, ground.clock, await ground.files.begin(new, ground.now_ms))
    for size in (10, CHUNK_BYTES, 3, 2 * CHUNK_BYTES, 5):
        await writer.write(bytes(size))
    await writer.flush()
    async with ground.database.reading() as connection:
        sizes = (await connection.execute(select(func.length(chunks.c.data)).order_by(chunks.c.number))).scalars().all()
    assert sizes == [CHUNK_BYTES] * 3 + [18]


async def test_a_file_is_seen_once_it_is_whole(ground: Ground) -> None:
    new = NewFile(ACME, "n", Purpose.BATCH, 1000)
    writer = FileWriter(ground.files, ground.clock, await ground.files.begin(new, ground.now_ms))
    await writer.write(bytes(CHUNK_BYTES))
    with pytest.raises(FileUnknown):
        await ground.files.file(writer.file_id, ACME)
    assert (await ground.files.page(FileQuestion(ACME)))[0] == []
    await ground.files.drop_unfinished(writer.file_id)
    with pytest.raises(FileUnknown):
        await writer.write(bytes(CHUNK_BYTES))
    assert await ground.kept() == await ground.recounted() == (0, 0)


async def test_anothers_file_is_unknown(ground: Ground) -> None:
    file = await ground.upload(b"x")
    for call in (ground.files.file(file.file_id, OTHER), ground.files.delete(file.file_id, OTHER)):
        with pytest.raises(FileUnknown):
            await call
    await ground.files.delete(file.file_id, ACME)
    with pytest.raises(FileUnknown):
        await ground.files.delete(file.file_id, ACME)
    assert await ground.kept() == (0, 0)


async def test_a_tenant_stores_so_much_and_a_file_has_so_much(ground: Ground) -> None:
    small = Ground(ground.database, ground.clock, replace(ground.limits, stored_bytes=3 * CHUNK_BYTES))
    await small.upload(bytes(2 * CHUNK_BYTES))
    with pytest.raises(JobsFull):
        await small.upload(bytes(CHUNK_BYTES + 1))
    await small.upload(b"x", tenant=OTHER)
    tiny = Ground(ground.database, ground.clock, replace(ground.limits, file_bytes=100))
    with pytest.raises(FileRefused, match="100 bytes"):
        await tiny.upload(bytes(101))


async def test_uploads_at_once_do_not_pass_the_bytes_together(ground: Ground) -> None:
    small = Ground(ground.database, ground.clock, replace(ground.limits, stored_bytes=2 * CHUNK_BYTES))
    ended = await asyncio.gather(*[small.upload(bytes(CHUNK_BYTES)) for _ in range(5)], return_exceptions=True)
    assert sum(isinstance(each, JobsFull) for each in ended) == 3
    assert (await small.kept())[1] == 2 * CHUNK_BYTES


async def test_files_are_gone_when_their_time_is_over_and_uploads_that_nobody_goes_on_with(ground: Ground) -> None:
    short, long = await ground.upload(b"short", keep_ms=60_000), await ground.upload(b"long")
    await ground.files.begin(NewFile(ACME, "left", Purpose.BATCH, 10), ground.now_ms)
    await ground.pass_s(60)
    assert await ground.files.sweep(ground.now_ms) == 1
    await ground.pass_s(UPLOAD_LIFETIME_MS / 1000)
    assert await ground.files.sweep(ground.now_ms) == 1
    assert [file.file_id for file in (await ground.files.page(FileQuestion()))[0]] == [long.file_id]
    assert await ground.kept() == await ground.recounted() == (0, 4)
    assert short.file_id != long.file_id


async def test_listed_either_way_in_pages(ground: Ground) -> None:
    made = []
    for number in range(5):
        made.append((await ground.upload(bytes(number), tenant=OTHER if number == 1 else ACME)).file_id)
        await ground.pass_s(1)
    mine = [file_id for file_id in made if file_id != made[1]]

    async def walked(*, oldest_first: bool) -> list[FileId]:
        found: list[FileId] = []
        more = True
        while more:
            asked = FileQuestion(ACME, page_size=3, after=found[-1] if found else None, oldest_first=oldest_first)
            page, more = await ground.files.page(asked)
            found += [file.file_id for file in page]
        return found

    assert await walked(oldest_first=True) == mine
    assert await walked(oldest_first=False) == mine[::-1]
    assert (await ground.files.page(FileQuestion(ACME, purpose="batch_output")))[0] == []


async def test_what_was_altered_in_the_database_is_not_handed_out_as_if_it_were_whole(ground: Ground) -> None:
    file = await ground.upload(b"good")
    async with ground.database.writing() as connection:
        await connection.execute(update(chunks).values(data=b"evil"))
    with pytest.raises(FileDamaged):
        await ground.content(file.file_id)
