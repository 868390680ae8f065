"""What every object store has to do, whatever it is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from registry.local_objects import LocalObjects
from registry.memory import MemoryObjects
from registry.ports import FileCorrupt, FileUnknown, Objects, UploadBusy, UploadOffsetWrong, UploadRefused
from registry.types import FileStatus
from runtime.errors import InvalidArgument
from runtime.ids import Digest

CONTENT = bytes(range(256)) * 100
SIZE = len(CONTENT)
SHA256 = Digest(hashlib.sha256(CONTENT).hexdigest())
NOTHING = FileStatus(0, complete=False)


@pytest.fixture(params=["memory", "local"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return MemoryObjects() if request.param == "memory" else LocalObjects(tmp_path)


async def send(
    objects: Objects, content: bytes, *, sha256: Digest = SHA256, size_bytes: int = SIZE, offset_bytes: int = 0
) -> FileStatus:
    async with objects.upload(sha256, size_bytes=size_bytes, offset_bytes=offset_bytes) as upload:
        for start in range(0, len(content), 1000):
            await upload.write(content[start : start + 1000])
        assert upload.received_bytes == offset_bytes + len(content)
        return await upload.finish()


async def read(objects: Objects, offset_bytes: int = 0) -> bytes:
    async with aclosing(objects.read(SHA256, offset_bytes=offset_bytes, chunk_bytes=999)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_a_whole_file_is_visible_from_any_offset(objects: Objects) -> None:
    assert await objects.stat(SHA256) == NOTHING
    assert await send(objects, CONTENT) == FileStatus(SIZE, complete=True)
    assert await objects.stat(SHA256) == FileStatus(SIZE, complete=True)
    for offset in (0, 1, 999, SIZE):
        assert await read(objects, offset) == CONTENT[offset:]
    with pytest.raises(InvalidArgument):
        await read(objects, SIZE + 1)


async def test_a_part_stays_unseen_until_the_rest_came(objects: Objects) -> None:
    assert await send(objects, CONTENT[:2500]) == FileStatus(2500, complete=False)
    assert await objects.stat(SHA256) == FileStatus(2500, complete=False)
    with pytest.raises(FileUnknown):
        await read(objects)
    assert (await send(objects, CONTENT[2500:], offset_bytes=2500)).complete
    assert await read(objects) == CONTENT


async def test_a_sender_that_breaks_off_leaves_its_part(objects: Objects) -> None:
    async def break_off() -> None:
        async with objects.upload(SHA256, size_bytes=SIZE, offset_bytes=0) as upload:
            await upload.write(CONTENT[:10])
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await break_off()
    assert (await send(objects, CONTENT[10:], offset_bytes=10)).complete


@pytest.mark.parametrize("offset_bytes", [1, SIZE])
async def test_an_upload_goes_on_where_the_part_ends_only(objects: Objects, offset_bytes: int) -> None:
    with pytest.raises(UploadOffsetWrong):
        await send(objects, b"", offset_bytes=offset_bytes)
    assert await objects.stat(SHA256) == NOTHING


async def test_the_wrong_content_leaves_nothing(objects: Objects) -> None:
    with pytest.raises(UploadRefused):
        await send(objects, CONTENT[:-1] + b"?")
    assert await objects.stat(SHA256) == NOTHING
    assert (await send(objects, CONTENT)).complete


async def test_more_than_announced_is_not_taken(objects: Objects) -> None:
    with pytest.raises(UploadRefused):
        await send(objects, CONTENT, size_bytes=1500)
    assert (await objects.stat(SHA256)).received_bytes == 1000
    with pytest.raises(UploadRefused):
        await send(objects, b"", size_bytes=999, offset_bytes=999)


async def test_one_sender_at_a_time(objects: Objects) -> None:
    async with objects.upload(SHA256, size_bytes=SIZE, offset_bytes=0) as upload:
        with pytest.raises(UploadBusy):
            await send(objects, CONTENT)
        await upload.write(CONTENT)
        assert (await upload.finish()).complete
    with pytest.raises(UploadBusy):
        await send(objects, CONTENT)
    assert await read(objects) == CONTENT


async def test_an_empty_file_is_a_file(objects: Objects) -> None:
    empty = Digest(hashlib.sha256(b"").hexdigest())
    assert await send(objects, b"", sha256=empty, size_bytes=0) == FileStatus(0, complete=True)
    assert await objects.stat(empty) == FileStatus(0, complete=True)


def rot_in_memory(objects: Objects) -> None:
    assert isinstance(objects, MemoryObjects)
    objects._whole[SHA256] = CONTENT[:-1] + b"?"


def rot_on_disk(objects: Objects) -> None:
    assert isinstance(objects, LocalObjects)
    objects._object(SHA256).write_bytes(CONTENT[:-1] + b"?")


@pytest.mark.parametrize("offset_bytes", [0, 500, SIZE])
@pytest.mark.parametrize(("objects", "rot"), [("memory", rot_in_memory), ("local", rot_on_disk)], indirect=["objects"])
async def test_rot_is_found_by_whoever_reads_and_can_be_mended(
    objects: Objects, rot: Callable[[Objects], None], offset_bytes: int
) -> None:
    await send(objects, CONTENT)
    rot(objects)
    with pytest.raises(FileCorrupt):
        await read(objects, offset_bytes)
    assert await objects.stat(SHA256) == NOTHING
    assert (await send(objects, CONTENT)).complete
    assert await read(objects) == CONTENT
