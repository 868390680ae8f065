"""A model's files, from the registry or the disk cache to a folder that an engine may open.

Decides what may be loaded: a manifest that a trusted signer signed and that has the digest that was ordered, and files that
have the sha256 it names. Both are checked at every load, also when they come from this machine's disk. A transfer that
broke is gone on with where it stopped, when the load is tried again. Never retries by itself but once: content that differs
is fetched anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Container
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import structlog

from runtime.errors import Code, PenstockError, Unavailable
from runtime.ids import Digest
from runtime.manifests import ManifestRefused
from worker.cache import FileCache
from worker.manifest import Description, ManifestFile, is_sha256, open_manifest
from worker.threads import in_thread
from worker.types import ModelSpec

_log = structlog.get_logger("penstock.artifacts")
Progress = Callable[[int], None]
"""Told of bytes that came in."""


class FileDiffers(PenstockError, code=Code.DATA_LOSS, reason="MODEL_FILE_DIFFERS"):
    """What the registry sends for a file is not the content that the manifest names."""


class Source(Protocol):
    """Where manifests and files come from. Both may raise Unavailable and NotFound."""

    async def manifest(self, digest: Digest) -> bytes:
        """A serialised SignedManifest; not to be believed before it is verified."""
        ...

    def fetch(self, sha256: Digest, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        """The file's bytes from there on."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model on this machine's disk, verified."""

    spec: ModelSpec
    folder: Path


class Artifacts:
    """Prepares models for loading. What is prepared stays until it is released."""

    def __init__(self, cache: FileCache, source: Source, trusted_signers: Callable[[], Container[bytes]]) -> None:
        self._cache, self._source, self._trusted_signers = cache, source, trusted_signers
        self._arriving: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def describe(self, digest: Digest) -> Description:
        """What the version is, from the cache or the registry. Raises ManifestRefused, ModelRefused, what the source raises."""
        if not is_sha256(digest):
            raise ManifestRefused(f"the ordered digest {digest[:80]!r} is no sha256")
        trusted = await in_thread(self._trusted_signers)
        if (cached := await in_thread(self._cache.manifest, digest)) is not None:
            try:
                return open_manifest(cached, digest, trusted)
            except PenstockError as error:
                _log.warning("cached_manifest_refused", digest=digest, error=error.message)
                await in_thread(self._cache.forget_manifest, digest)
        raw = await self._source.manifest(digest)
        description = open_manifest(raw, digest, trusted)
        await in_thread(self._cache.keep_manifest, digest, raw)
        return description

    async def prepare(self, description: Description, progress: Progress) -> Prepared:
        """Bring the files here, verify them, lay out the folder. Raises FileDiffers, CacheFull, what the source raises."""
        files, digest = description.files, description.spec.digest
        try:
            await in_thread(self._cache.pin, digest, files)
            for file in {file.sha256: file for file in files}.values():
                await self._ensure(file, progress)
            folder = await in_thread(self._cache.assemble, digest, files)
        except BaseException:
            self._cache.unpin(digest)
            raise
        return Prepared(description.spec, folder)

    async def release(self, prepared: Prepared) -> None:
        """The model is closed: its folder goes, its files may go when room is needed."""
        await in_thread(self._cache.dismantle, prepared.spec.digest)
        self._cache.unpin(prepared.spec.digest)

    async def _ensure(self, file: ManifestFile, progress: Progress) -> None:
        async with self._alone(file.sha256):
            if await in_thread(self._cache.holds, file):
                return
            if not await self._received(file, progress):
                _log.warning("received_file_differs", sha256=file.sha256)
                if not await self._received(file, progress):
                    raise FileDiffers(
                        f"file {file.path!r} came twice from the registry with a content other than sha256 {file.sha256};"
                        " publish the model again"
                    )

    async def _received(self, file: ManifestFile, progress: Progress) -> bool:
        """Whether the content is right; what came stays for the next attempt if the transfer breaks."""
        with closing(await in_thread(self._cache.resume, file)) as reception:
            if not reception.complete:
                async with aclosing(self._source.fetch(file.sha256, reception.received_bytes)) as chunks:
                    async for chunk in chunks:
                        await in_thread(reception.append, chunk)
                        progress(len(chunk))
                        if reception.received_bytes > file.size_bytes:
                            await in_thread(reception.discard)
                            return False
            if not reception.complete:
                raise Unavailable(
                    f"the registry ended file {file.path!r} after {reception.received_bytes} of {file.size_bytes} bytes"
                )
            return await in_thread(reception.finish)

    @asynccontextmanager
    async def _alone(self, sha256: Digest) -> AsyncGenerator[None, None]:
        """One transfer of a file at a time; versions share files."""
        lock = self._arriving.get(sha256)
        if lock is None:
            lock = self._arriving[sha256] = asyncio.Lock()
        async with lock:
            yield
