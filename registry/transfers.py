"""Files coming in and going out, within limits: how many at once, how large, how long a sender may be silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from registry.policy import is_sha256
from registry.ports import Objects, UploadRefused
from registry.types import FileStatus
from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.ids import Digest

T = TypeVar("T")

CHUNK_BYTES = 512 * 1024


class UploadsFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="UPLOADS_FULL"):
    """As many uploads are under way as may."""


class UploadSilent(PenstockError, code=Code.ABORTED, reason="UPLOAD_SILENT"):
    """The sender stopped sending."""


@dataclass(frozen=True, slots=True)
class TransferLimits:
    file_bytes: int = 64 * 1024**3
    uploads: int = 16
    silence_s: float = 30.0


@dataclass(frozen=True, slots=True)
class UploadStart:
    """What a sender announces."""

    sha256: Digest
    size_bytes: int
    offset_bytes: int


class Transfers:
    """Moves files between streams and the object store."""

    def __init__(self, objects: Objects, limits: TransferLimits) -> None:
        self._objects, self._limits = objects, limits
        self._uploads = 0

    async def stat(self, sha256: Digest) -> FileStatus:
        _check_sha256(sha256)
        return await self._objects.stat(sha256)

    async def receive(
        self, start: UploadStart, parts: AsyncIterator[bytes], accept: Callable[[], Awaitable[None]]
    ) -> FileStatus:
        """Store what comes until the sender ends or breaks off; what came stays. A file that is here already is not read.

        `accept` is called once nothing stands against the upload any more, before its first part is read.
        """
        self._check(start)
        known = await self._objects.stat(start.sha256)
        if known.complete:
            if known.received_bytes != start.size_bytes:
                raise UploadRefused(f"file {start.sha256} has {known.received_bytes} bytes, not {start.size_bytes}")
            return known
        upload = self._objects.upload(start.sha256, size_bytes=start.size_bytes, offset_bytes=start.offset_bytes)
        with self._place():
            async with upload as receiving:
                await accept()
                while (part := await self.heard(parts)) is not None:
                    await receiving.write(part)
                return await receiving.finish()

    def send(self, sha256: Digest, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        """The file's chunks from there on; the caller closes the generator."""
        _check_sha256(sha256)
        return self._objects.read(sha256, offset_bytes=offset_bytes, chunk_bytes=CHUNK_BYTES)

    async def heard(self, parts: AsyncIterator[T]) -> T | None:
        """The sender's next message; None at the end. Raises UploadSilent."""
        try:
            async with asyncio.timeout(self._limits.silence_s):
                return await anext(parts, None)
        except TimeoutError as error:
            raise UploadSilent(
                f"nothing came for {self._limits.silence_s:g} s; ask for the file's state and go on from there"
            ) from error

    def _check(self, start: UploadStart) -> None:
        _check_sha256(start.sha256)
        if start.size_bytes > self._limits.file_bytes:
            raise InvalidArgument(f"a file of {start.size_bytes} bytes; the registry takes up to {self._limits.file_bytes}")
        if start.offset_bytes > start.size_bytes:
            raise InvalidArgument(f"offset {start.offset_bytes} lies beyond the file's {start.size_bytes} bytes")

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._uploads >= self._limits.uploads:
            raise UploadsFull(f"{self._uploads} uploads are under way, as many as may", retry_after_s=1.0)
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1


def _check_sha256(sha256: str) -> None:
    if not is_sha256(sha256):
        raise InvalidArgument(f"sha256 {sha256[:80]!r}: 64 lower-case hex digits are expected")
