"""Confidential models: their files lie in memory, go with the model, and are given to nobody."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runtime.errors import FailedPrecondition, PenstockError, Unavailable
from runtime.identity import Peer, Role
from runtime.ids import Digest, ModelName, ModelVersion, NodeId, WorkerId
from tests.worker.manifests import CHUNK_BYTES, TRUSTED, MemoryRegistry, manifest_of, sha256_of
from worker.files import volatile
from worker.files.artifacts import Artifacts, ConfidentialRefused, FileDiffers, Prepared
from worker.files.cache import CacheInUse, open_cache
from worker.files.disk_files import CacheFull
from worker.files.origins import Origin
from worker.files.sharing import SharedFiles
from worker.files.volatile import filesystem_of, is_memory_backed, open_volatile_cache
from worker.life.lifecycle import CopyKey

KEY = (ModelName("digits"), ModelVersion("1"))
WEIGHTS = os.urandom(4 * CHUNK_BYTES)
FILES = {"model.onnx": WEIGHTS, "labels.txt": b"one"}
WORKER = WorkerId(f"test{os.getpid()}")
READER = Peer(Role.WORKER, NodeId("reader"))
MOUNTS = """\
24 1 0:21 / / rw,relatime - overlay overlay rw,lowerdir=/a - b
25 24 0:23 / /dev/shm rw,relatime shared:4 master:1 - tmpfs tmpfs rw,size=1k
26 24 8:1 /x /a\\040b rw - ext4 /dev/sda1 rw
nonsense
"""

needs_tmpfs = pytest.mark.skipif(not is_memory_backed(volatile.SHARED_MEMORY), reason="/dev/shm is no tmpfs here")


class NobodyAsked:
    """Peers that must not be asked."""

    asked = 0

    @asynccontextmanager
    async def holding(self, key: CopyKey, digest: Digest) -> AsyncGenerator[Sequence[Origin], None]:
        self.asked += 1
        yield ()


class Rig:
    def __init__(self, disk: Path, folder: Path | None) -> None:
        self.registry, self.peers, self.disk, self.folder = MemoryRegistry(), NobodyAsked(), disk, folder
        self.memory = volatile.SHARED_MEMORY / f"penstock-{WORKER}" if folder is None else folder

    def publish(self, files: dict[str, bytes] = FILES, *, confidential: bool = True, version: str = "1") -> Digest:
        manifest = manifest_of(files, version=version)
        manifest.confidential = confidential
        return self.registry.publish(manifest, files)

    @asynccontextmanager
    async def worker(self, limit_bytes: int | None = 1 << 20) -> AsyncGenerator[Artifacts, None]:
        with open_cache(self.disk, 1 << 20) as cache, open_volatile_cache(self.folder, limit_bytes, WORKER) as memory:
            self.shared = SharedFiles(cache)
            yield Artifacts(cache, self.registry, lambda: TRUSTED, self.peers, volatile=memory)

    def on_disk(self) -> list[str]:
        return [str(file) for file in self.disk.rglob("*") if file.is_file() and holds_plain(file)]

    def in_memory(self) -> list[str]:
        return [str(file) for file in self.memory.rglob("*") if file.is_file() and file.name != "lock" and file.stat().st_size]


def holds_plain(file: Path) -> bool:
    content = file.read_bytes()
    return any(WEIGHTS[start : start + 64] in content for start in range(0, len(WEIGHTS), 64))


async def prepare(artifacts: Artifacts, digest: Digest) -> Prepared:
    return await artifacts.prepare(await artifacts.describe(digest, KEY), lambda _: None)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "disk", None)
    yield made
    assert not made.memory.exists()


@needs_tmpfs
async def test_its_files_lie_in_memory_until_it_is_closed_and_never_on_the_disk(rig: Rig) -> None:
    async with rig.worker() as artifacts:
        prepared = await prepare(artifacts, rig.publish())
        assert prepared.folder.is_relative_to(rig.memory)
        assert {path: (prepared.folder / path).read_bytes() for path in FILES} == FILES
        assert rig.on_disk() == []
        await artifacts.check(prepared)
        await artifacts.release(prepared)
        assert rig.in_memory() == []
        prepared = await prepare(artifacts, rig.publish())
        assert len(rig.registry.fetched) == 4, "it is fetched anew"
        assert rig.memory.stat().st_mode & 0o777 == 0o700
    assert rig.peers.asked == 0


@needs_tmpfs
async def test_what_another_open_model_needs_stays(rig: Rig) -> None:
    async with rig.worker() as artifacts:
        first = await prepare(artifacts, rig.publish())
        second = await prepare(artifacts, rig.publish({"model.onnx": WEIGHTS}, version="2"))
        await artifacts.release(first)
        assert (second.folder / "model.onnx").read_bytes() == WEIGHTS
        await artifacts.check(second)
        await artifacts.release(second)
        assert rig.in_memory() == []


@needs_tmpfs
async def test_other_workers_do_not_get_them_and_get_those_of_other_models(rig: Rig) -> None:
    async with rig.worker() as artifacts:
        await prepare(artifacts, rig.publish())
        with pytest.raises(PenstockError, match="no verified file"):
            await anext(rig.shared.read(READER, sha256_of(WEIGHTS), 0))
        await prepare(artifacts, rig.publish(confidential=False, version="2"))
        assert await anext(rig.shared.read(READER, sha256_of(WEIGHTS), 0)) == WEIGHTS


@needs_tmpfs
async def test_a_load_that_broke_goes_on_and_one_that_failed_leaves_nothing(rig: Rig) -> None:
    digest = rig.publish({"model.onnx": WEIGHTS})
    async with rig.worker() as artifacts:
        rig.registry.breaks_after_bytes = 2 * CHUNK_BYTES
        with pytest.raises(Unavailable):
            await prepare(artifacts, digest)
        await artifacts.release(await prepare(artifacts, digest))
        assert [offset for _, offset in rig.registry.fetched] == [0, 2 * CHUNK_BYTES]
        rig.registry.files[sha256_of(WEIGHTS)] = WEIGHTS[::-1]
        with pytest.raises(FileDiffers):
            await prepare(artifacts, digest)
        assert rig.in_memory() == []
    async with rig.worker(limit_bytes=10) as artifacts:
        with pytest.raises(CacheFull):
            await prepare(artifacts, digest)


@needs_tmpfs
async def test_what_a_killed_worker_left_is_gone_before_anything_else(rig: Rig) -> None:
    (rig.memory / "files").mkdir(parents=True, mode=0o700)
    rig.memory.chmod(0o700)
    (rig.memory / "files" / sha256_of(WEIGHTS)).write_bytes(WEIGHTS)
    (rig.memory / "models" / "x").mkdir(parents=True)
    (rig.memory / "models" / "x" / "model.onnx").write_bytes(WEIGHTS)
    async with rig.worker():
        assert rig.in_memory() == []


@needs_tmpfs
async def test_a_folder_that_others_may_look_into_is_not_used(rig: Rig) -> None:
    rig.memory.mkdir(mode=0o777)
    rig.memory.chmod(0o755)
    try:
        with pytest.raises(FailedPrecondition, match="not this user's alone"), open_volatile_cache(None, 1, WORKER):
            pass
    finally:
        rig.memory.rmdir()
    rig.memory.symlink_to(rig.disk)
    rig.disk.mkdir()
    try:
        with pytest.raises(FailedPrecondition), open_volatile_cache(rig.memory, 1, WORKER):
            pass
    finally:
        rig.memory.unlink()


@needs_tmpfs
async def test_it_belongs_to_one_worker(rig: Rig) -> None:
    with open_volatile_cache(None, None, WORKER), pytest.raises(CacheInUse), open_volatile_cache(None, None, WORKER):
        pass


async def test_without_a_memory_backed_folder_such_a_model_is_refused_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volatile, "is_memory_backed", lambda _: False)
    rig = Rig(tmp_path / "disk", None)
    async with rig.worker() as artifacts:
        with pytest.raises(ConfidentialRefused, match="pass --volatile-dir"):
            await prepare(artifacts, rig.publish())
        assert rig.registry.fetched == []
        await prepare(artifacts, rig.publish(confidential=False, version="2"))
    with pytest.raises(FailedPrecondition, match="is on no tmpfs"), open_volatile_cache(tmp_path / "named", 1, WORKER):
        pass
    assert not (tmp_path / "named").exists()


def test_what_the_kernel_says_of_a_device() -> None:
    assert filesystem_of("0:23", MOUNTS) == "tmpfs"
    assert filesystem_of("8:1", MOUNTS) == "ext4"
    assert filesystem_of("0:21", MOUNTS) == "overlay"
    assert filesystem_of("9:9", MOUNTS) is None
