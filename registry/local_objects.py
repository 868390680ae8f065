"""Files by content in a local folder.

    objects/ab/ab3f…   whole, verified, never written again
    partial/ab3f…      being received; its length is where an upload goes on
    corrupt/ab3f…      found to differ from its name; kept for whoever wants to know why

A file becomes visible by one rename, after its sha256 fitted and its bytes were synced. One sender at a time holds the partial
file's lock, which the kernel drops with the process. Hashing and writing happen a few MiB at a time, in threads.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from registry.ports import FileCorrupt, FileUnknown, StorageFull, Upload, UploadBusy, UploadOffsetWrong, UploadRefused
from registry.threads import in_thread, opened_in_thread
from registry.types import FileStatus
from runtime.errors import FailedPrecondition, InvalidArgument
from runtime.ids import Digest

_HASHED_AT_ONCE_BYTES = 8 * 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LocalObjects:
    """Implements Objects. Safe beside other processes on the same folder."""

    def __init__(self, folder: Path) -> None:
        self._objects, self._partial, self._corrupt = folder / "objects", folder / "partial", folder / "corrupt"
        try:
            for made in (self._objects, self._partial, self._corrupt):
                made.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise FailedPrecondition(f"cannot keep files in {folder}: {error.strerror}; choose another folder") from error

    async def stat(self, sha256: Digest) -> FileStatus:
        return await in_thread(self._stat, sha256)

    @asynccontextmanager
    async def upload(self, sha256: Digest, *, size_bytes: int, offset_bytes: int) -> AsyncIterator[Upload]:
        opening = functools.partial(self._open_partial, sha256, size_bytes, offset_bytes)
        partial = await opened_in_thread(opening, _PartialFile.close)
        try:
            await _hash_up_to(partial.descriptor, partial.hasher, offset_bytes)
            yield partial
        finally:
            partial.close()

    async def read(self, sha256: Digest, *, offset_bytes: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        descriptor = await opened_in_thread(functools.partial(self._open_object, sha256), os.close)
        try:
            size_bytes, hasher = os.fstat(descriptor).st_size, hashlib.sha256()
            if offset_bytes > size_bytes:
                raise InvalidArgument(f"file {sha256} has {size_bytes} bytes; offset {offset_bytes} lies beyond its end")
            await _hash_up_to(descriptor, hasher, offset_bytes)
            while chunk := await in_thread(_read_hashed, descriptor, chunk_bytes, hasher):
                yield chunk
            if hasher.hexdigest() != sha256:
                await in_thread(self._set_aside, sha256)
                raise FileCorrupt(f"the stored file {sha256} no longer has that content and was set aside; upload it again")
        finally:
            os.close(descriptor)

    async def drop_stale(self, older_than_s: float) -> int:
        """Delete parts that nobody went on with for so long; returns how many."""
        return await in_thread(self._drop_stale, time.time() - older_than_s)

    def _object(self, sha256: Digest) -> Path:
        return self._objects / sha256[:2] / sha256

    def _stat(self, sha256: Digest) -> FileStatus:
        for file, complete in ((self._object(sha256), True), (self._partial / sha256, False)):
            try:
                return FileStatus(file.stat().st_size, complete)
            except FileNotFoundError:
                continue
        return FileStatus(0, complete=False)

    def _open_object(self, sha256: Digest) -> int:
        try:
            return os.open(self._object(sha256), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise FileUnknown(f"there is no file {sha256} in the registry; it was never uploaded whole") from error

    def _open_partial(self, sha256: Digest, size_bytes: int, offset_bytes: int) -> _PartialFile:
        file = self._partial / sha256
        with _full_disk_named():
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, sha256)
            status = self._stat(sha256)
            # Whoever held the lock before may have completed or dropped this very file between our open and our lock.
            if status.complete or not _is_at(descriptor, file):
                raise UploadBusy(f"another upload of {sha256} ended a moment ago; ask for its state again")
            _check_offset(sha256, status.received_bytes, size_bytes, offset_bytes)
            return _PartialFile(descriptor, sha256, file, self._object(sha256), size_bytes, offset_bytes)
        except BaseException:
            os.close(descriptor)
            raise

    def _set_aside(self, sha256: Digest) -> None:
        try:
            self._object(sha256).replace(self._corrupt / sha256)
        except FileNotFoundError:
            return  # another reader was first

    def _drop_stale(self, before_wall_s: float) -> int:
        dropped = 0
        for file in self._partial.iterdir():
            if file.stat().st_mtime < before_wall_s and _unlink_unlocked(file):
                dropped += 1
        return dropped


class _PartialFile:
    """Implements Upload. Holds the lock of its file until closed."""

    def __init__(self, descriptor: int, sha256: Digest, file: Path, target: Path, size_bytes: int, received_bytes: int) -> None:
        self.descriptor, self.hasher = descriptor, hashlib.sha256()
        self._sha256, self._file, self._target = sha256, file, target
        self._size_bytes, self._received_bytes = size_bytes, received_bytes

    @property
    def received_bytes(self) -> int:
        return self._received_bytes

    async def write(self, data: bytes) -> None:
        if self._received_bytes + len(data) > self._size_bytes:
            raise UploadRefused(f"more than the announced {self._size_bytes} bytes were sent of file {self._sha256}")
        await in_thread(self._append, data)
        self._received_bytes += len(data)

    async def finish(self) -> FileStatus:
        if self._received_bytes < self._size_bytes:
            return FileStatus(self._received_bytes, complete=False)
        if self.hasher.hexdigest() != self._sha256:
            await in_thread(self._file.unlink, missing_ok=True)
            raise UploadRefused(f"the {self._size_bytes} bytes received do not have the sha256 {self._sha256}; send them anew")
        await in_thread(self._publish)
        return FileStatus(self._size_bytes, complete=True)

    def close(self) -> None:
        os.close(self.descriptor)

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        with _full_disk_named():
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
        self.hasher.update(data)

    def _publish(self) -> None:
        folder = self._target.parent
        with _full_disk_named():
            os.fsync(self.descriptor)
            if not folder.exists():
                folder.mkdir(exist_ok=True, mode=0o700)
                _sync_folder(folder.parent)
            self._file.replace(self._target)
            _sync_folder(folder)


async def _hash_up_to(descriptor: int, hasher: hashlib._Hash, offset_bytes: int) -> None:
    rest = offset_bytes
    while rest:
        read = await in_thread(_read_hashed, descriptor, min(rest, _HASHED_AT_ONCE_BYTES), hasher)
        if not read:
            raise UploadBusy("the file became shorter while it was read; ask for its state again")
        rest -= len(read)


def _read_hashed(descriptor: int, count_bytes: int, hasher: hashlib._Hash) -> bytes:
    data = os.read(descriptor, count_bytes)
    hasher.update(data)
    return data


def _lock(descriptor: int, sha256: Digest) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UploadBusy(
            f"another upload of {sha256} is under way; ask for its state, and go on when that has stopped", retry_after_s=1.0
        ) from error


def _check_offset(sha256: Digest, received_bytes: int, size_bytes: int, offset_bytes: int) -> None:
    if received_bytes > size_bytes:
        raise UploadRefused(f"{received_bytes} bytes of {sha256} are stored already, more than the announced {size_bytes}")
    if received_bytes != offset_bytes:
        raise UploadOffsetWrong(f"{received_bytes} bytes of {sha256} are stored; go on from there, not from {offset_bytes}")


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _unlink_unlocked(file: Path) -> bool:
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _full_disk_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFull(f"the registry has no room left for files ({error.strerror}); free some, then go on") from error
