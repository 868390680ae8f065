"""Files of models on this machine's disk, by content.

    files/ab3f…        whole; verified whenever a model is loaded from it
    partial/ab3f…      being received; its length is where a transfer goes on
    manifests/9c1e…    signed manifests by digest, as they travelled
    models/9c1e…/      a loaded model's folder, hard-linked from files/; made at load, gone at unload

Owns the folder, alone: a lock keeps a second process out. Bounded by bytes: what was used longest ago goes first, and never
what is pinned. Blocking; call it in a thread. Never asks the registry.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import structlog

from runtime.errors import Code, PenstockError
from runtime.ids import Digest
from runtime.model_folder import hash_file
from worker.manifest import ManifestFile, is_sha256

MANIFESTS_KEPT = 1_000
_BLOCK_BYTES = 1 << 20
_LINKLESS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = structlog.get_logger("penstock.cache")


class CacheInUse(PenstockError, code=Code.FAILED_PRECONDITION, reason="CACHE_IN_USE"):
    """Another worker works in that folder."""


class CacheFull(PenstockError, code=Code.FAILED_PRECONDITION, reason="CACHE_FULL"):
    """A model's files do not fit beside those that are in use."""


class FileCache:
    """The cache folder of one worker."""

    def __init__(self, folder: Path, limit_bytes: int, lock: BinaryIO) -> None:
        self._files, self._partial = folder / "files", folder / "partial"
        self._manifests, self._models = folder / "manifests", folder / "models"
        self._limit_bytes, self._lock = limit_bytes, lock
        self._entries: OrderedDict[str, int] = OrderedDict()
        """Bytes by sha256, of whole files and of what a transfer will take; used longest ago first."""
        self._pins: dict[Digest, frozenset[str]] = {}
        """Files that a model needs, by the model's digest."""
        self._guard = Lock()

    @property
    def used_bytes(self) -> int:
        return sum(self._entries.values())

    def pin(self, digest: Digest, files: Iterable[ManifestFile]) -> None:
        """Keep this model's files, and make room for those that are not here. Raises CacheFull."""
        wanted: dict[str, int] = {file.sha256: file.size_bytes for file in files}
        with self._guard:
            self._pins[digest] = frozenset(wanted)
            missing = {sha256: size for sha256, size in wanted.items() if self._entries.get(sha256) != size}
            self._make_room(sum(missing.values()) - sum(self._entries.get(sha256, 0) for sha256 in missing))
            self._entries.update(missing)
            for sha256 in wanted:
                self._entries.move_to_end(sha256)

    def unpin(self, digest: Digest) -> None:
        """They may go when room is needed. Safe to call for what is not pinned."""
        with self._guard:
            self._pins.pop(digest, None)

    def holds(self, file: ManifestFile) -> bool:
        """Whether the file is here whole, by size and sha256. One that differs is deleted."""
        path = self._files / file.sha256
        try:
            if path.stat().st_size == file.size_bytes and hash_file(path) == file.sha256:
                os.utime(path)
                return True
        except FileNotFoundError:
            return False
        _log.warning("cached_file_differs", sha256=file.sha256)
        path.unlink(missing_ok=True)
        return False

    def resume(self, file: ManifestFile) -> Reception:
        """Go on with what came of the file before."""
        path = self._partial / file.sha256
        with _full_disk_named():
            stream = path.open("a+b", buffering=0)  # what a full disk did not take must not wait for close()
        try:
            reception = Reception(file, path, self._files / file.sha256, stream)
            reception.read_what_came()
        except BaseException:
            stream.close()
            raise
        return reception

    def assemble(self, digest: Digest, files: Iterable[ManifestFile]) -> Path:
        """A folder with these files under their paths."""
        folder = self._models / digest
        self.dismantle(digest)
        with _full_disk_named():
            for file in files:
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(self._files / file.sha256, target)
        return folder

    def dismantle(self, digest: Digest) -> None:
        shutil.rmtree(self._models / digest, ignore_errors=True)

    def manifest(self, digest: Digest) -> bytes | None:
        try:
            return (self._manifests / digest).read_bytes()
        except FileNotFoundError:
            return None

    def keep_manifest(self, digest: Digest, raw: bytes) -> None:
        draft = self._manifests / f".{digest}"
        with _full_disk_named():
            draft.write_bytes(raw)
            draft.replace(self._manifests / digest)

    def forget_manifest(self, digest: Digest) -> None:
        (self._manifests / digest).unlink(missing_ok=True)

    def read_folder(self) -> None:
        """Take in what an earlier process left."""
        shutil.rmtree(self._models, ignore_errors=True)
        for made in (self._files, self._partial, self._manifests, self._models):
            made.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = [*self._files.iterdir(), *self._partial.iterdir()]
        for file in sorted(found, key=lambda file: file.stat().st_mtime_ns):
            if is_sha256(file.name):
                self._entries[file.name] = self._entries.pop(file.name, 0) + file.stat().st_size
        manifests = sorted(self._manifests.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        for file in manifests[:-MANIFESTS_KEPT]:
            file.unlink()
        self._make_room(0)

    def close(self) -> None:
        self._lock.close()

    def _make_room(self, more_bytes: int) -> None:
        excess_bytes = self.used_bytes + more_bytes - self._limit_bytes
        pinned: frozenset[str] = frozenset().union(*self._pins.values())
        for sha256 in [sha256 for sha256 in self._entries if sha256 not in pinned]:
            if excess_bytes <= 0:
                break
            excess_bytes -= self._entries.pop(sha256)
            for folder in (self._files, self._partial):
                (folder / sha256).unlink(missing_ok=True)
            _log.info("cached_file_dropped", sha256=sha256)
        if excess_bytes > 0 and more_bytes > 0:
            raise CacheFull(
                f"{more_bytes} bytes of model files are needed, {excess_bytes} more than the cache of {self._limit_bytes} can"
                " take beside the loaded models; unload some, or allow more with --cache-bytes"
            )


class Reception:
    """A file that is being received. Closed by who opened it."""

    def __init__(self, file: ManifestFile, path: Path, target: Path, stream: FileIO) -> None:
        self._file, self._path, self._target, self._stream = file, path, target, stream
        self._hasher = hashlib.sha256()
        self.received_bytes = 0

    def read_what_came(self) -> None:
        self._stream.seek(0)
        while block := self._stream.read(_BLOCK_BYTES):
            self._hasher.update(block)
            self.received_bytes += len(block)
        if self.received_bytes > self._file.size_bytes:
            self.discard()

    @property
    def complete(self) -> bool:
        return self.received_bytes == self._file.size_bytes

    def append(self, data: bytes) -> None:
        with _full_disk_named():
            rest = memoryview(data)
            while rest:
                rest = rest[self._stream.write(rest) :]
        self._hasher.update(data)
        self.received_bytes += len(data)

    def finish(self) -> bool:
        """Make it a file of the cache; False, and what came is discarded, if it is not the content that was asked for."""
        if self._hasher.hexdigest() != self._file.sha256:
            self.discard()
            return False
        self._path.replace(self._target)
        return True

    def discard(self) -> None:
        self._stream.truncate(0)
        self._hasher, self.received_bytes = hashlib.sha256(), 0

    def close(self) -> None:
        self._stream.close()


@contextmanager
def open_cache(folder: Path, limit_bytes: int) -> Iterator[FileCache]:
    """The cache in this folder, made if there is none. Raises CacheInUse."""
    with _full_disk_named():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / "lock").open("ab")
    with closing(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CacheInUse(f"another worker uses the cache in {folder}; give each its own --cache-dir") from error
        cache = FileCache(folder, limit_bytes, lock)
        cache.read_folder()
        yield cache


def _link(file: Path, target: Path) -> None:
    """A hard link, which lives on when the cache lets go of the file; a copy where the file system has none."""
    try:
        target.hardlink_to(file)
    except OSError as error:
        if error.errno not in _LINKLESS:
            raise
        shutil.copyfile(file, target)


@contextmanager
def _full_disk_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise CacheFull(f"the disk has no room left for model files ({error.strerror}); free some, then load again") from error
