"""The local folder: kills, full disks, other processes, and who may read it."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest

from registry.files.errors import StorageFull, StoreRefused
from registry.files.local import LocalObjects
from registry.files.stores import open_objects
from runtime.errors import FailedPrecondition

KEY = f"objects/{'0a' * 16}/0"
AN_HOUR_MS = 3_600_000


def files_in(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


async def test_a_full_disk_is_said_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, written = LocalObjects(tmp_path), os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(descriptor, data[:100])

    monkeypatch.setattr("registry.files.local.os.write", full)
    with pytest.raises(StorageFull):
        await objects.put(KEY, b"x" * 250)
    monkeypatch.undo()
    assert not files_in(tmp_path)
    assert await objects.put(KEY, b"x" * 250)


async def test_short_writes_and_short_reads_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, written, read = LocalObjects(tmp_path), os.write, os.pread
    monkeypatch.setattr("registry.files.local.os.write", lambda descriptor, data: written(descriptor, data[:7]))
    monkeypatch.setattr("registry.files.local.os.pread", lambda descriptor, size, at: read(descriptor, min(size, 5), at))
    await objects.put(KEY, bytes(range(100)))
    assert await objects.get(KEY, 3, 90) == bytes(range(3, 93))


async def test_file_and_folder_are_synced_before_a_put_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, synced, fsync = LocalObjects(tmp_path), list[str](), os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr("registry.files.local.os.fsync", noted)
    await objects.put(KEY, b"content")
    part = tmp_path / KEY
    assert Path(synced[0]).parent == tmp_path / "drafts"
    assert synced[1:] == [str(tmp_path), str(part.parent.parent), str(part.parent)]


async def test_only_the_owner_may_look(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path / "files")
    await objects.put(KEY, b"content")
    for path in (tmp_path / "files", *(tmp_path / "files").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


async def test_folders_that_come_and_go_hurt_no_put(tmp_path: Path) -> None:
    one, other = LocalObjects(tmp_path), LocalObjects(tmp_path)

    async def put_and_delete(objects: LocalObjects, number: int) -> None:
        for _ in range(50):
            assert await objects.put(f"objects/{'0a' * 16}/{number}", b"x")
            await objects.delete([f"objects/{'0a' * 16}/{number}"])

    await asyncio.gather(*(put_and_delete(objects, number) for number, objects in enumerate((one, other, one, other))))
    assert not list((tmp_path / "objects").iterdir())


async def test_drafts_that_a_kill_left_are_dropped_once_they_are_old(tmp_path: Path) -> None:
    objects, now_ms = LocalObjects(tmp_path), int(time.time() * 1000)
    for name, age_s in (("aa", 7200), ("bb", 0)):
        (tmp_path / "drafts" / name).write_bytes(b"12345")
        os.utime(tmp_path / "drafts" / name, (time.time() - age_s,) * 2)
    assert await objects.drop_drafts(now_ms - 10 * AN_HOUR_MS) == 0
    assert await objects.drop_drafts(now_ms + AN_HOUR_MS) == 5, "one that is being written stays, whatever the clock says"
    assert [file.name for file in (tmp_path / "drafts").iterdir()] == ["bb"]


async def test_nothing_stays_open(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for size_bytes in (1, 7, 100):
        await objects.put(KEY, b"content")
        await asyncio.gather(objects.get(KEY, 0, size_bytes), return_exceptions=True)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="file"):
        await open_objects(str(tmp_path / "file")).__aenter__()


async def test_a_folder_that_cannot_be_written_is_named_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("registry.files.local.os.link", refused)
    with pytest.raises(StoreRefused, match="not permitted"):
        await open_objects(str(tmp_path / "files")).__aenter__()


async def test_what_the_disk_does_not_let_be_read_is_said_so(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    (tmp_path / "objects").write_bytes(b"no folder")
    with pytest.raises(StoreRefused, match="mend"):
        await objects.get(KEY, 0, 1)
    with pytest.raises(StoreRefused, match="mend"):
        async for _ in objects.pages("objects/"):
            pass
