"""Objects in a local folder.

    objects/0a1b…/7        whole, synced, never written again
    drafts/9f8e…           being written; what a kill left there is dropped later

An object becomes visible by one link, which the kernel refuses where the name is taken: safe beside other processes on the same
folder. Files are for their owner alone. All of it happens in threads.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import islice
from pathlib import Path

from registry.files.errors import StorageFull, StoreRefused
from registry.files.objects import PAGE_OBJECTS, StoredObject, checked_key, cut_short, prove
from registry.threads import in_thread
from runtime.errors import FailedPrecondition

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TURNS = 20
"""A folder that a delete takes away between our mkdir and our link is made again, so often."""


@asynccontextmanager
async def open_folder(folder: Path) -> AsyncIterator[LocalObjects]:
    """Entered, it has proven that it can be written. Raises FailedPrecondition, StoreRefused."""
    objects = LocalObjects(folder)
    await prove(objects)
    yield objects


class LocalObjects:
    """Implements Objects."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._drafts = folder, folder / "drafts"
        try:
            for made in (folder, self._drafts):
                made.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise FailedPrecondition(f"cannot keep files in {folder}: {error.strerror}; choose another folder") from error

    async def put(self, key: str, data: bytes | bytearray) -> bool:
        return await in_thread(self._put, self._folder / checked_key(key), data)

    async def get(self, key: str, start_byte: int, size_bytes: int) -> bytes:
        return await in_thread(self._get, checked_key(key), start_byte, size_bytes)

    async def delete(self, keys: Sequence[str]) -> None:
        await in_thread(self._delete, [self._folder / checked_key(key) for key in keys])

    async def pages(self, prefix: str) -> AsyncIterator[Sequence[StoredObject]]:
        found = self._under(self._folder / checked_key(prefix.removesuffix("/")))
        while page := await in_thread(self._page, found):
            yield page

    async def drop_drafts(self, before_ms: int) -> int:
        return await in_thread(self._drop_drafts, before_ms)

    def _put(self, file: Path, data: bytes | bytearray) -> bool:
        draft = self._drafts / secrets.token_hex(16)
        with _faults_named(self._folder):
            try:
                _write_synced(draft, data)
                for _ in range(_TURNS):
                    _make_folder(file.parent)
                    with suppress(FileNotFoundError):  # emptied and taken away by a delete meanwhile
                        os.link(draft, file)
                        _sync_folder(file.parent)
                        return True
            except FileExistsError:
                return False
            finally:
                draft.unlink(missing_ok=True)
        raise StoreRefused(f"folder {file.parent} vanishes as often as it is made; does something else clean up there?")

    def _get(self, key: str, start_byte: int, size_bytes: int) -> bytes:
        with _faults_named(self._folder):
            try:
                descriptor = os.open(self._folder / key, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                os.stat(self._drafts)  # gone too: the folder was taken away, which says nothing about what is in it
                raise cut_short(key) from error
            try:
                return _read_all(descriptor, key, start_byte, size_bytes)
            finally:
                os.close(descriptor)

    def _delete(self, files: Sequence[Path]) -> None:
        with _faults_named(self._folder):
            for file in files:
                file.unlink(missing_ok=True)
            for folder in {file.parent for file in files}:
                with suppress(OSError):  # not empty, or taken away already
                    folder.rmdir()

    def _page(self, found: Iterator[StoredObject]) -> list[StoredObject]:
        with _faults_named(self._folder):
            return list(islice(found, PAGE_OBJECTS))

    def _under(self, folder: Path) -> Iterator[StoredObject]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        yield from self._under(Path(entry.path))
                    else:
                        yield from self._described(entry)
        except FileNotFoundError:
            return  # taken away meanwhile

    def _described(self, entry: os.DirEntry[str]) -> Iterator[StoredObject]:
        with suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            key = Path(entry.path).relative_to(self._folder).as_posix()
            yield StoredObject(key, status.st_size, int(status.st_mtime * 1000))

    def _drop_drafts(self, before_ms: int) -> int:
        freed_bytes = 0
        with _faults_named(self._folder):
            for draft in self._under(self._drafts):
                # Never one that a put of this moment may be writing, whatever the caller's clock says.
                if draft.modified_at_ms < min(before_ms, int(time.time() * 1000) - 3_600_000):
                    (self._folder / draft.key).unlink(missing_ok=True)
                    freed_bytes += draft.size_bytes
        return freed_bytes


def _write_synced(file: Path, data: bytes | bytearray) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, key: str, start_byte: int, size_bytes: int) -> bytes:
    pieces: list[bytes] = []
    while size_bytes:
        piece = os.pread(descriptor, size_bytes, start_byte)
        if not piece:
            raise cut_short(key)
        pieces.append(piece)
        start_byte, size_bytes = start_byte + len(piece), size_bytes - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _make_folder(folder: Path) -> None:
    """With every folder above it, and lasting: a folder is an entry of the one above, which is synced too."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        _make_folder(folder.parent)
        _make_folder(folder)
        return
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _faults_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"the registry has no room left for files ({error.strerror}); free some, then go on") from error
        raise StoreRefused(
            f"cannot use the folder of files {folder}: {error.strerror}; mount or mend it, or give the registry another"
        ) from error
