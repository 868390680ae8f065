"""One file of a model on this machine's disk: received, hashed, opened, and known again.

Never follows a symbolic link. What may be large is read in blocks, and given up when nobody waits for it any more. Blocking;
call it in a thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from runtime.errors import Code, PenstockError
from worker.files.manifest import ManifestFile
from worker.threads import check_wanted

_BLOCK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CacheFull(PenstockError, code=Code.FAILED_PRECONDITION, reason="CACHE_FULL"):
    """A model's files do not fit beside those that are in use."""


class FileSwapped(PenstockError, code=Code.DATA_LOSS, reason="MODEL_FILE_SWAPPED"):
    """A file is no longer the one that was verified."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A file as it was when its content was read and found right. Making or losing a hard link changes none of this."""

    device: int
    inode: int
    size_bytes: int
    changed_ns: int

    @classmethod
    def of(cls, seen: os.stat_result) -> Verified:
        return cls(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)

    @classmethod
    def at(cls, path: Path) -> Verified | None:
        """What lies there now, also where that is a link."""
        try:
            return cls.of(path.lstat())
        except OSError:
            return None


class Reception:
    """A file that is being received. Closed by who opened it."""

    def __init__(
        self, file: ManifestFile, path: Path, target: Path, stream: FileIO, verified: MutableMapping[str, Verified]
    ) -> None:
        self._file, self._path, self._target, self._stream, self._verified = file, path, target, stream, verified
        self._hasher = hashlib.sha256()
        self.received_bytes = 0

    def read_what_came(self) -> None:
        self._stream.seek(0)
        while block := self._stream.read(_BLOCK_BYTES):
            check_wanted()
            self._hasher.update(block)
            self.received_bytes += len(block)
        if self.received_bytes > self._file.size_bytes:
            self.discard()

    @property
    def complete(self) -> bool:
        return self.received_bytes == self._file.size_bytes

    def append(self, data: bytes) -> None:
        with full_disk_named():
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
        os.fchmod(self._stream.fileno(), 0o400)  # models' folders are links to it: nobody is to write through one of them
        self._verified[self._file.sha256] = Verified.of(os.fstat(self._stream.fileno()))
        return True

    def discard(self) -> None:
        self._stream.truncate(0)
        self._hasher, self.received_bytes = hashlib.sha256(), 0

    def close(self) -> None:
        self._stream.close()


def opened(path: Path) -> BinaryIO:
    """For reading; a link is not followed, and what is no regular file is not opened for long."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ELOOP, "no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def opened_if_there(path: Path) -> BinaryIO | None:
    try:
        return opened(path)
    except OSError:
        return None


def sha256_of(stream: BinaryIO) -> str:
    hasher = hashlib.sha256()
    while block := stream.read(_BLOCK_BYTES):
        check_wanted()
        hasher.update(block)
    return hasher.hexdigest()


def copied(source: Path, target: Path, file: ManifestFile) -> Verified:
    hasher = hashlib.sha256()
    with opened(source) as stream, target.open("xb") as copy:
        while block := stream.read(_BLOCK_BYTES):
            check_wanted()
            hasher.update(block)
            copy.write(block)
        copy.flush()
        verified = Verified.of(os.fstat(copy.fileno()))
    if hasher.hexdigest() != file.sha256:
        raise FileSwapped(f"file {file.path!r} was changed after it had been verified; load the model again")
    return verified


@contextmanager
def full_disk_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise CacheFull(f"the disk has no room left for model files ({error.strerror}); free some, then load again") from error
