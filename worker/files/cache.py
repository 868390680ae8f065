"""Files of models on this machine's disk, by content.

    files/ab3f…        whole; verified whenever a model is loaded from it
    partial/ab3f…      being received; its length is where a transfer goes on
    manifests/9c1e…    signed manifests by digest, as they travelled
    models/9c1e…/      a loaded model's folder, hard-linked from files/; made at load, gone at unload

Owns the folder, alone: a lock keeps a second process out. Bounded by bytes: what was used longest ago goes first, and never
what is pinned or being read. What was verified is known by its inode, size and time of change until it is opened, so that one
exchanged after its check is noticed. Whole files that this process verified are lent to others. Blocking; call it in a thread.
Never asks the registry.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import structlog

from runtime.errors import Code, PenstockError
from runtime.ids import Digest
from worker.files.disk_files import (
    CacheFull,
    FileSwapped,
    Reception,
    Verified,
    copied,
    full_disk_named,
    opened,
    opened_if_there,
    sha256_of,
)
from worker.files.manifest import ManifestFile, is_sha256

MANIFESTS_KEPT = 1_000
_LINKLESS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
_log = structlog.get_logger("penstock.cache")


class CacheInUse(PenstockError, code=Code.FAILED_PRECONDITION, reason="CACHE_IN_USE"):
    """Another worker works in that folder."""


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
        self._lent: Counter[str] = Counter()
        self._verified: dict[str, Verified] = {}
        self._laid_out: dict[Digest, dict[Path, Verified]] = {}
        """The files of assembled folders."""
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

    def forget_unpinned(self) -> None:
        """Delete every file that no model needs now, also what came of one."""
        with self._guard:
            for sha256 in self._loose():
                self._drop(sha256)

    def holds(self, file: ManifestFile) -> bool:
        """Whether the file is here whole, by size and sha256. One that differs is deleted."""
        path = self._files / file.sha256
        try:
            with opened(path) as stream:
                if os.fstat(stream.fileno()).st_size == file.size_bytes and sha256_of(stream) == file.sha256:
                    self._verified[file.sha256] = seen = Verified.of(os.fstat(stream.fileno()))
                    os.utime(stream.fileno(), ns=(time.time_ns(), seen.changed_ns))  # when it was used, not changed
                    return True
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.ELOOP:  # a symbolic link is no file of ours
                raise
        _log.warning("cached_file_differs", sha256=file.sha256)
        self._verified.pop(file.sha256, None)
        path.unlink(missing_ok=True)
        return False

    @contextmanager
    def lent(self, sha256: Digest) -> Iterator[BinaryIO | None]:
        """A whole file that this process verified, to read; None if there is none. It is not dropped meanwhile."""
        with self._guard:
            self._lent[sha256] += 1
        try:
            known = self._verified.get(sha256)
            stream = opened_if_there(self._files / sha256) if known else None
            if stream is None:
                yield None
                return
            with stream:
                yield stream if Verified.of(os.fstat(stream.fileno())) == known else None
        finally:
            with self._guard:
                self._lent[sha256] -= 1
                if not self._lent[sha256]:
                    del self._lent[sha256]

    def resume(self, file: ManifestFile) -> Reception:
        """Go on with what came of the file before."""
        path = self._partial / file.sha256
        with full_disk_named():
            stream = path.open("a+b", buffering=0)  # what a full disk did not take must not wait for close()
        try:
            reception = Reception(file, path, self._files / file.sha256, stream, self._verified)
            reception.read_what_came()
        except BaseException:
            stream.close()
            raise
        return reception

    def assemble(self, digest: Digest, files: Iterable[ManifestFile]) -> Path:
        """A folder with these verified files under their paths. Raises FileSwapped for one that is not what was verified."""
        folder = self._models / digest
        self.dismantle(digest)
        laid_out: dict[Path, Verified] = {}
        with full_disk_named():
            for file in files:
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                laid_out[target] = self._laid(file, target)
        self._laid_out[digest] = laid_out
        return folder

    def check(self, digest: Digest) -> None:
        """The folder's files are still the ones that were verified. Raises FileSwapped."""
        for path, verified in self._laid_out.get(digest, {}).items():
            if Verified.at(path) != verified:
                raise FileSwapped(f"file {path.name!r} of {digest} was changed after it was verified; see who writes there")

    def dismantle(self, digest: Digest) -> None:
        self._laid_out.pop(digest, None)
        shutil.rmtree(self._models / digest, ignore_errors=True)

    def _laid(self, file: ManifestFile, target: Path) -> Verified:
        """A hard link, which lives on when the cache lets go of the file; a verified copy where the file system has none."""
        source = self._files / file.sha256
        known = self._verified.get(file.sha256)
        try:
            target.hardlink_to(source)
        except OSError as error:
            if error.errno not in _LINKLESS:
                raise
            return copied(source, target, file)
        found = Verified.at(target)
        if found is None or found != known:
            raise FileSwapped(f"file {file.path!r} was changed after it was verified; load the model again")
        return found

    def manifest(self, digest: Digest) -> bytes | None:
        try:
            return (self._manifests / digest).read_bytes()
        except FileNotFoundError:
            return None

    def keep_manifest(self, digest: Digest, raw: bytes) -> None:
        draft = self._manifests / f".{digest}"
        with full_disk_named():
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
        for file in sorted(found, key=lambda file: file.stat().st_atime_ns):
            if is_sha256(file.name):
                self._entries[file.name] = self._entries.pop(file.name, 0) + file.stat().st_size
        manifests = sorted(self._manifests.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        for file in manifests[:-MANIFESTS_KEPT]:
            file.unlink()
        self._make_room(0)

    def close(self) -> None:
        self._lock.close()

    def _loose(self) -> list[str]:
        """Files that may go, used longest ago first."""
        pinned: frozenset[str] = frozenset(self._lent).union(*self._pins.values())
        return [sha256 for sha256 in self._entries if sha256 not in pinned]

    def _drop(self, sha256: str) -> int:
        """How many bytes that freed."""
        self._verified.pop(sha256, None)
        for folder in (self._files, self._partial):
            (folder / sha256).unlink(missing_ok=True)
        _log.info("cached_file_dropped", sha256=sha256)
        return self._entries.pop(sha256)

    def _make_room(self, more_bytes: int) -> None:
        excess_bytes = self.used_bytes + more_bytes - self._limit_bytes
        for sha256 in self._loose():
            if excess_bytes <= 0:
                break
            excess_bytes -= self._drop(sha256)
        if excess_bytes > 0 and more_bytes > 0:
            raise CacheFull(
                f"{more_bytes} bytes of model files are needed, {excess_bytes} more than the cache of {self._limit_bytes} can"
                " take beside the loaded models; unload some, or allow more with --cache-bytes"
            )


@contextmanager
def open_cache(folder: Path, limit_bytes: int) -> Iterator[FileCache]:
    """The cache in this folder, made if there is none. Raises CacheInUse."""
    with full_disk_named():
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
