"""Files of models for other workers: whole ones that this process verified, and manifests, from the disk cache.

Decides how many are read at once, and to which workers files go at all: to those that may load whatever this one may. That what
came is right is for the receiver to verify. The files of confidential models lie in another cache, and are never given away.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from typing import BinaryIO

from runtime.errors import Code, InvalidArgument, NotFound, PenstockError, ResourceExhausted
from runtime.identity import Peer
from runtime.ids import Digest, TenantId
from worker.files.cache import FileCache
from worker.files.manifest import is_sha256
from worker.threads import in_thread

PART_BYTES = 256 * 1024
_READ_BYTES = 4 * PART_BYTES
_AGAIN_AFTER_S = 1.0


class ReaderRefused(PenstockError, code=Code.PERMISSION_DENIED, reason="READER_REFUSED"):
    """A worker that might not load all that this one holds."""


def may_give(holder: frozenset[TenantId], reader: frozenset[TenantId]) -> bool:
    """Whether what a worker for these tenants holds may go to one for those; none: everybody's.

    It holds models of its tenants and what is shared with one of them. A worker for all of those tenants may load that too.
    """
    return not reader or (bool(holder) and holder <= reader)


class SharedFiles:
    """Reads for others from one worker's cache. `tenants`: whose models it may load now; none: everybody's."""

    def __init__(self, cache: FileCache, *, tenants: Callable[[], frozenset[TenantId]] = frozenset, at_once: int = 4) -> None:
        self._cache, self._tenants, self._at_once = cache, tenants, at_once
        self._reading = 0

    async def read(self, reader: Peer, sha256: Digest, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        """The file, or the manifest, from there on, in parts.

        Raises ReaderRefused, NotFound, InvalidArgument, ResourceExhausted.
        """
        if not may_give(self._tenants(), reader.tenants):
            raise ReaderRefused(
                f"worker {reader.node_id} is for some tenants only, and this one holds files of others too; ask the registry"
            )
        if not is_sha256(sha256):
            raise InvalidArgument(f"{sha256[:80]!r} is no sha256; 64 hex digits are expected")
        if self._reading >= self._at_once:
            raise ResourceExhausted(
                f"{self._reading} files are read from here, as many as may be; ask another worker, or retry",
                retry_after_s=_AGAIN_AFTER_S,
            )
        self._reading += 1
        try:
            with ExitStack() as stack:
                stream = await in_thread(stack.enter_context, self._cache.lent(sha256))
                if stream is None:
                    content = await self._manifest(sha256)
                    for start in range(_checked(offset_bytes, len(content)), len(content), PART_BYTES):
                        yield content[start : start + PART_BYTES]
                    return
                await in_thread(_seek, stream, offset_bytes)
                while block := await in_thread(stream.read, _READ_BYTES):
                    for start in range(0, len(block), PART_BYTES):
                        yield block[start : start + PART_BYTES]
        finally:
            self._reading -= 1

    async def _manifest(self, sha256: Digest) -> bytes:
        content = await in_thread(self._cache.manifest, sha256)
        if content is None:
            raise NotFound(f"no verified file {sha256} is on this worker's disk; ask another, or the registry")
        return content


def _seek(stream: BinaryIO, offset_bytes: int) -> None:
    stream.seek(_checked(offset_bytes, stream.seek(0, 2)))


def _checked(offset_bytes: int, size_bytes: int) -> int:
    if offset_bytes > size_bytes:
        raise InvalidArgument(f"offset {offset_bytes} lies beyond the file's {size_bytes} bytes; begin within it")
    return offset_bytes
