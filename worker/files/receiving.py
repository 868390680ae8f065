"""Files of a model, received into a cache: from workers that hold the model, then from the registry.

Decides when a file is here: when its content has the sha256 that the manifest names. A transfer that broke is gone on with
where it stopped, at the next origin or when the load is tried again. Content that differs is fetched anew, and not from the
worker that sent it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from weakref import WeakValueDictionary

import structlog

from runtime.clock import Clock
from runtime.errors import Code, PenstockError, Unavailable
from runtime.ids import Digest
from worker.files.cache import FileCache
from worker.files.disk_files import CacheFull, Reception
from worker.files.incidents import Report
from worker.files.manifest import Description, ManifestFile
from worker.files.origins import Origin, Origins, Peers, Received, Source
from worker.threads import in_thread

_log = structlog.get_logger("penstock.artifacts")
_DISTRUST_KEPT = 1_000
Progress = Callable[[int], None]
"""Told of bytes that came in."""


class FileDiffers(PenstockError, code=Code.DATA_LOSS, reason="MODEL_FILE_DIFFERS"):
    """What is sent for a file is not the content that the manifest names."""


class Receiver:
    """Brings files here, those of each sha256 one at a time."""

    def __init__(self, source: Source, peers: Peers | None, clock: Clock, report: Report) -> None:
        self._source, self._peers, self._clock, self._report = source, peers, clock, report
        self._distrusted: dict[Digest, set[str]] = {}
        """Workers that sent something else, by the model whose load is not over yet."""
        self.received = Received()
        self._arriving: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def bring(self, description: Description, cache: FileCache, progress: Progress) -> None:
        """All of the model's files, into this cache. Raises FileDiffers, CacheFull, what the registry raises."""
        spec = description.spec
        files = {file.sha256: file for file in description.files}.values()
        missing = [file for file in files if not await self._is_here(file, cache)]
        if not missing:
            return
        async with self._peers_holding(description) as peers:
            origins = Origins(peers, self._source.files_of(spec.digest), self._distrusted_for(spec.digest))
            for file in missing:
                await self._ensure(file, cache, origins, progress)
        self._distrusted.pop(spec.digest, None)

    async def _is_here(self, file: ManifestFile, cache: FileCache) -> bool:
        async with self._alone(file.sha256):
            return await in_thread(cache.holds, file)

    async def _ensure(self, file: ManifestFile, cache: FileCache, origins: Origins, progress: Progress) -> None:
        """Receive the file from whoever sends it right. Ends: of those asked alone each is wrong once, the registry twice."""
        async with self._alone(file.sha256):
            if await in_thread(cache.holds, file):
                return  # another version's load brought it meanwhile
            differed = 0
            origins.next_file()
            while not await self._received(file, cache, origins, progress):
                differed += not origins.distrust()
                if differed == 2:
                    raise FileDiffers(
                        f"file {file.path!r} came twice from {self._source.name} with a content other than sha256"
                        f" {file.sha256}; publish the model again"
                    )

    async def _received(self, file: ManifestFile, cache: FileCache, origins: Origins, progress: Progress) -> bool:
        """Whether the content is right; what came stays for the next attempt if the transfer breaks."""
        begun_s = self._clock.monotonic_s()
        with closing(await in_thread(cache.resume, file)) as reception:
            origins.begin()
            for origin in origins:
                try:
                    await _receive(origin, origins, file, reception, progress)
                    break
                except CacheFull:
                    raise  # it is our disk
                except PenstockError as error:
                    if origin is origins.last:
                        raise
                    _log.warning("peer_failed", peer=origin.name, sha256=file.sha256, error=error.message)
                    origins.drop(origin)
                    if origins.each_alone:
                        await in_thread(reception.discard)
                        origins.begin()
            right = reception.complete and await in_thread(reception.finish)
            if not right:
                await in_thread(reception.discard)
        self._tell(file, origins, right, self._clock.monotonic_s() - begun_s)
        return right

    def _tell(self, file: ManifestFile, origins: Origins, right: bool, took_s: float) -> None:
        peer_bytes, registry_bytes = origins.came_bytes
        if not right:
            _log.warning("received_file_differs", sha256=file.sha256, origins=origins.contributors)
            came_from = " and ".join(origins.contributors) or "an earlier transfer"
            self._report(FileDiffers(f"file {file.path!r} came with another content from {came_from}"), file.sha256)
            return
        self.received.peer_bytes += peer_bytes
        self.received.registry_bytes += registry_bytes
        _log.info(
            "file_received",
            path=file.path,
            sha256=file.sha256,
            origins=origins.contributors,
            peer_bytes=peer_bytes,
            registry_bytes=registry_bytes,
            mib_per_s=round((peer_bytes + registry_bytes) / 2**20 / took_s, 1) if took_s > 0 else None,
        )

    @asynccontextmanager
    async def _peers_holding(self, description: Description) -> AsyncGenerator[Sequence[Origin], None]:
        """Nobody gives away the files of a confidential model."""
        if self._peers is None or description.confidential:
            yield ()
            return
        spec = description.spec
        async with self._peers.holding((spec.model, spec.version), spec.digest) as peers:
            yield peers

    def _distrusted_for(self, digest: Digest) -> set[str]:
        while len(self._distrusted) >= _DISTRUST_KEPT:
            del self._distrusted[next(iter(self._distrusted))]
        return self._distrusted.setdefault(digest, set())

    @asynccontextmanager
    async def _alone(self, sha256: Digest) -> AsyncGenerator[None, None]:
        """One transfer of a file at a time; versions share files."""
        lock = self._arriving.get(sha256)
        if lock is None:
            lock = self._arriving[sha256] = asyncio.Lock()
        async with lock:
            yield


async def _receive(origin: Origin, origins: Origins, file: ManifestFile, reception: Reception, progress: Progress) -> None:
    if reception.complete:
        return
    async with aclosing(origin.fetch(file.sha256, reception.received_bytes)) as chunks:
        async for chunk in chunks:
            await in_thread(reception.append, chunk)
            progress(len(chunk))
            origins.came(origin, len(chunk))
            if reception.received_bytes > file.size_bytes:
                return
    if not reception.complete:
        raise Unavailable(f"{origin.name} ended file {file.path!r} after {reception.received_bytes} of {file.size_bytes} bytes")
