"""The local folder: what other processes, full disks and old parts do to it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path

import pytest

from registry.local_objects import LocalObjects
from registry.ports import StorageFull, UploadBusy
from registry.types import FileStatus
from runtime.errors import FailedPrecondition
from runtime.ids import Digest

CONTENT = b"content" * 1000
SHA256 = Digest(hashlib.sha256(CONTENT).hexdigest())


async def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    one, other = LocalObjects(tmp_path), LocalObjects(tmp_path)
    async with one.upload(SHA256, size_bytes=len(CONTENT), offset_bytes=0) as upload:
        await upload.write(CONTENT)
        with pytest.raises(UploadBusy):
            await other.upload(SHA256, size_bytes=len(CONTENT), offset_bytes=len(CONTENT)).__aenter__()
        await upload.finish()
    assert await other.stat(SHA256) == FileStatus(len(CONTENT), complete=True)


async def test_a_part_replaced_between_open_and_lock_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = LocalObjects(tmp_path)
    monkeypatch.setattr("registry.local_objects._lock", lambda _, sha256: (tmp_path / "partial" / sha256).unlink())
    with pytest.raises(UploadBusy):
        await objects.upload(SHA256, size_bytes=1, offset_bytes=0).__aenter__()


async def test_a_full_disk_is_said_so_and_the_part_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = LocalObjects(tmp_path)
    written = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(descriptor, data[:100])

    async with objects.upload(SHA256, size_bytes=len(CONTENT), offset_bytes=0) as upload:
        monkeypatch.setattr("registry.local_objects.os.write", full)
        with pytest.raises(StorageFull):
            await upload.write(CONTENT[:250])
        monkeypatch.undo()
    assert await objects.stat(SHA256) == FileStatus(200, complete=False)
    async with objects.upload(SHA256, size_bytes=len(CONTENT), offset_bytes=200) as upload:
        await upload.write(CONTENT[200:])
        assert (await upload.finish()).complete


async def test_old_parts_are_dropped_and_those_in_use_are_not(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    for name in ("old", "young", "busy"):
        (tmp_path / "partial" / name).write_bytes(b"part")
    for name in ("old", "busy"):
        os.utime(tmp_path / "partial" / name, (0, 0))
    async with objects.upload(Digest("busy"), size_bytes=9, offset_bytes=4):
        assert await objects.drop_stale(3600) == 1
    assert sorted(file.name for file in await asyncio.to_thread(lambda: list((tmp_path / "partial").iterdir()))) == [
        "busy",
        "young",
    ]


async def test_nothing_stays_open(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for offset in (0, 7, 0):
        try:
            async with objects.upload(SHA256, size_bytes=len(CONTENT), offset_bytes=offset) as upload:
                await upload.write(CONTENT)
                await upload.finish()
        except Exception:
            pass
        chunks = objects.read(SHA256, offset_bytes=0, chunk_bytes=10)
        await anext(chunks)
        await chunks.aclose()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="file"):
        LocalObjects(tmp_path / "file")
