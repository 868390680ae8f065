"""POSIX shared memory of clients on this machine: which regions are registered, and copies into and out of them.

Owns the registered regions, their number and their size. Memory is never mapped: bytes are read and written through the file
descriptor. A mapping of a file that its client truncates is a SIGBUS for the whole worker, which no check beforehand prevents;
`pread` gives fewer bytes instead. And a client that changes its memory while a request runs would change what was checked
already: a copy stays what it was. The copy is one memcpy per tensor, straight into the array that the engine gets.

What may be opened: a name in /dev/shm with the operator's prefix, a regular file, not through a link, of this process's user.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from runtime.errors import AlreadyExists, Code, InvalidArgument, NotFound, PenstockError

_FOLDER = "/dev/shm"  # noqa: S108  # where shm_open keeps its files: shm_overview(7)
_MAX_NAME = 255
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class SharedMemoryRefused(PenstockError, code=Code.PERMISSION_DENIED, reason="SHARED_MEMORY_REFUSED"):
    """This memory is not for clients of this worker."""


class SharedMemoryFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="SHARED_MEMORY_FULL"):
    """As many regions, or as much memory, are registered as this worker takes."""


@dataclass(frozen=True, slots=True)
class SharedMemoryPolicy:
    """`prefix`: how names have to begin; empty = any name."""

    prefix: str
    max_regions: int = 256
    max_bytes: int = 64 * 1024**3


class Region:
    """One registered region; its descriptor is closed when nothing holds the region any more."""

    def __init__(self, key: str, offset: int, byte_size: int, descriptor: int) -> None:
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self, offset: int, byte_size: int) -> memoryview:
        """A copy of these bytes. Raises InvalidArgument where the client took them away."""
        copied = np.empty(byte_size, np.uint8)
        have = 0
        while have < byte_size:
            got = os.preadv(self._descriptor, [copied.data[have:]], self.offset + offset + have)
            if not got:
                raise InvalidArgument(
                    f"shared memory {self.key!r} is smaller than it was registered with: {have} of {byte_size} bytes are left"
                )
            have += got
        return copied.data

    def write(self, offset: int, content: memoryview) -> None:
        """Put the bytes there. Raises InvalidArgument where the client took the place away.

        A client that shrinks its memory just now has it grown again, up to what was registered: its own loss.
        """
        left, start = content, self.offset + offset
        size = os.fstat(self._descriptor).st_size
        if start + len(left) > size:
            raise InvalidArgument(f"shared memory {self.key!r} is smaller than it was registered with: {size} bytes")
        try:
            while left:
                put = os.pwrite(self._descriptor, left, start)
                left, start = left[put:], start + put
        except OSError as error:
            raise InvalidArgument(f"cannot write to shared memory {self.key!r}: {error.strerror}") from error


class SharedMemory:
    """The regions by name. Used on the loop only."""

    def __init__(self, policy: SharedMemoryPolicy, *, folder: str = _FOLDER) -> None:
        self._policy = policy
        self._folder = folder
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Make this part of the client's memory known. Raises what is wrong with it."""
        if not name or len(name) > _MAX_NAME:
            raise InvalidArgument(f"a region's name has 1 to {_MAX_NAME} characters; this one has {len(name)}")
        if name in self._regions:
            raise AlreadyExists(
                f"shared memory region '{name}' already in manager: unregister it first, or choose another name"
            )
        self._check_room(byte_size)
        descriptor = _opened(self._folder, self._file(key), key)
        try:
            _check_file(os.fstat(descriptor), key, offset, byte_size)
        except BaseException:
            os.close(descriptor)
            raise
        self._regions[name] = Region(key, offset, byte_size, descriptor)

    def unregister(self, name: str = "") -> None:
        """Forget the region, or all of them; one that is not there is forgotten already. Requests that use it end well."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def region(self, name: str) -> Region:
        """Raises NotFound."""
        region = self._regions.get(name)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{name[:_MAX_NAME]}'; register it first")
        return region

    def __iter__(self) -> Iterator[tuple[str, Region]]:
        return iter(self._regions.items())

    def __len__(self) -> int:
        return len(self._regions)

    def _check_room(self, byte_size: int) -> None:
        policy = self._policy
        if not byte_size:
            raise InvalidArgument("a region of 0 bytes holds nothing; give byte_size")
        if len(self._regions) >= policy.max_regions:
            raise SharedMemoryFull(f"{len(self._regions)} regions are registered, all that this worker takes; unregister some")
        held = sum(region.byte_size for region in self._regions.values())
        if held + byte_size > policy.max_bytes:
            raise SharedMemoryFull(
                f"{held} bytes of shared memory are registered and {byte_size} more are asked for; this worker takes"
                f" {policy.max_bytes}: unregister some"
            )

    def _file(self, key: str) -> str:
        """The name that shm_open would use. Source: shm_open(3): one slash in front, none in the rest."""
        file = key.removeprefix("/")
        if not file or "/" in file or "\0" in file or file in (".", "..") or len(file) > _MAX_NAME:
            raise InvalidArgument(f"{key[:_MAX_NAME]!r} is no name of shared memory; expected '/name' without a further slash")
        if not file.startswith(self._policy.prefix):
            raise SharedMemoryRefused(
                f"shared memory {key!r} is not for this worker; names that it opens begin with '/{self._policy.prefix}'"
            )
        return file


def _opened(folder: str, file: str, key: str) -> int:
    try:
        return os.open(f"{folder}/{file}", _OPEN)
    except PermissionError as error:
        raise SharedMemoryRefused(
            f"shared memory {key!r} may not be opened by the worker's user; create it as that user"
        ) from error
    except OSError as error:
        raise NotFound(f"Unable to open shared memory region: '{key}': {error.strerror}") from error


def _check_file(file: os.stat_result, key: str, offset: int, byte_size: int) -> None:
    if not stat.S_ISREG(file.st_mode):
        raise SharedMemoryRefused(f"{key!r} is no shared memory but another kind of file")
    if file.st_uid != os.geteuid():
        raise SharedMemoryRefused(f"shared memory {key!r} belongs to another user than the worker's; create it as that user")
    if offset + byte_size > file.st_size:
        raise InvalidArgument(
            f"shared memory {key!r} has {file.st_size} bytes; {byte_size} from {offset} on are more than there are"
        )
