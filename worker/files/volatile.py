"""A cache in memory, for the files of confidential models: a folder on a tmpfs that is empty before and after.

Decides whether a folder is memory-backed, by what the kernel says of its device; a name such as /dev/shm proves nothing. What
an earlier process left there, because it was killed, is deleted before anything else. Memory may still be swapped out: that is
the machine's own setting.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from runtime.errors import FailedPrecondition
from runtime.ids import WorkerId
from worker.files.cache import FileCache, open_cache

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # its folders are checked to be this user's alone
_MEMORY_BACKED = ("tmpfs", "ramfs")
_MOUNTS = Path("/proc/self/mountinfo")
_PART = 0.5
"""Of the file system, unless it is said how much."""

_log = structlog.get_logger("penstock.cache")


@contextmanager
def open_volatile_cache(folder: Path | None, limit_bytes: int | None, worker_id: WorkerId) -> Iterator[FileCache | None]:
    """The cache in this folder, or in shared memory where none is named; None where that is not memory-backed.

    Raises FailedPrecondition for a named folder that is not, CacheInUse.
    """
    named = folder is not None
    folder = folder or SHARED_MEMORY / f"penstock-{worker_id}"
    if not is_memory_backed(folder):
        if named:
            raise FailedPrecondition(f"--volatile-dir {folder} is on no tmpfs: its files would lie on a disk; name one that is")
        yield None
        return
    _make_private(folder)
    with open_cache(folder, limit_bytes or int(_size_bytes(folder) * _PART)) as cache:
        try:
            cache.forget_unpinned()
            yield cache
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _make_private(folder: Path) -> None:
    """Anybody may make folders in shared memory, also one with this name."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise FailedPrecondition(f"{folder} is not this user's alone; remove it, or name another with --volatile-dir")


def is_memory_backed(folder: Path) -> bool:
    """The folder, or where it would be made, lies in memory."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        device = folder.stat().st_dev
        mounts = _MOUNTS.read_text(errors="replace")
    except OSError as error:
        _log.info("mounts_unknown", why=str(error))
        return False
    return filesystem_of(f"{os.major(device)}:{os.minor(device)}", mounts) in _MEMORY_BACKED


def filesystem_of(device: str, mounts: str) -> str | None:
    """Its type, from the lines of /proc/<pid>/mountinfo. Source: proc(5): the third field, and the first after the hyphen."""
    for line in mounts.splitlines():
        before, hyphen, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if hyphen and kinds and len(fields) > 2 and fields[2] == device:
            return kinds[0]
    return None


def _size_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_frsize * found.f_blocks
