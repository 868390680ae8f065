"""A model's files, from other workers, the registry or the disk cache to a folder that an engine may open.

Decides what may be loaded: a manifest that a trusted signer signed and that has the digest that was ordered, and files that
have the sha256 it names. Both are checked at every load, also when they come from this machine's disk. Workers that hold the
model are asked for files first, the registry when none of them can. A transfer that broke is gone on with where it stopped, at
the next origin or when the load is tried again. Content that differs is fetched anew, and not from the worker that sent it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Container, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from runtime.clock import Clock, SystemClock
from runtime.errors import Code, PenstockError, Unavailable
from runtime.ids import Digest
from runtime.manifests import ManifestRefused
from worker.files.cache import FileCache
from worker.files.disk_files import CacheFull, Reception
from worker.files.manifest import Description, ManifestFile, is_sha256, open_manifest
from worker.files.origins import Origin, Origins, Peers, Received, Source
from worker.life.lifecycle import CopyKey
from worker.threads import in_thread
from worker.types import ModelSpec

_log = structlog.get_logger("penstock.artifacts")
_MAX_MANIFEST_BYTES = 32 * 1024 * 1024
_DISTRUST_KEPT = 1_000
Progress = Callable[[int], None]
"""Told of bytes that came in."""


class FileDiffers(PenstockError, code=Code.DATA_LOSS, reason="MODEL_FILE_DIFFERS"):
    """What the registry sends for a file is not the content that the manifest names."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model on this machine's disk, verified."""

    spec: ModelSpec
    folder: Path


class Artifacts:
    """Prepares models for loading. What is prepared stays until it is released."""

    def __init__(
        self,
        cache: FileCache,
        source: Source,
        trusted_signers: Callable[[], Container[bytes]],
        peers: Peers | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._cache, self._source, self._trusted_signers = cache, source, trusted_signers
        self._peers, self._clock = peers, clock or SystemClock()
        self._distrusted: dict[Digest, set[str]] = {}
        """Workers that sent something else, by the model whose load is not over yet."""
        self.received = Received()
        self._arriving: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def describe(self, digest: Digest, key: CopyKey) -> Description:
        """What the version is, from the cache, the registry, or workers that hold it if the registry is away.

        Raises ManifestRefused, ModelRefused, what the registry raises.
        """
        if not is_sha256(digest):
            raise ManifestRefused(f"the ordered digest {digest[:80]!r} is no sha256")
        trusted = await in_thread(self._trusted_signers)
        if (cached := await in_thread(self._cache.manifest, digest)) is not None:
            try:
                return open_manifest(cached, digest, trusted)
            except PenstockError as error:
                _log.warning("cached_manifest_refused", digest=digest, error=error.message)
                await in_thread(self._cache.forget_manifest, digest)
        try:
            raw = await self._source.manifest(digest)
        except Unavailable:
            if (found := await self._told_by_peers(digest, key, trusted)) is None:
                raise
            return found
        description = open_manifest(raw, digest, trusted)
        await in_thread(self._cache.keep_manifest, digest, raw)
        return description

    async def prepare(self, description: Description, progress: Progress) -> Prepared:
        """Bring the files here, verify them, lay out the folder. Raises FileDiffers, CacheFull, what the registry raises."""
        spec, files = description.spec, description.files
        try:
            await in_thread(self._cache.pin, spec.digest, files)
            missing = [file for file in {file.sha256: file for file in files}.values() if not await self._is_here(file)]
            if missing:
                async with self._peers_holding((spec.model, spec.version), spec.digest) as peers:
                    origins = Origins(peers, self._source, self._distrusted_for(spec.digest))
                    for file in missing:
                        await self._ensure(file, origins, progress)
                self._distrusted.pop(spec.digest, None)
            folder = await in_thread(self._cache.assemble, spec.digest, files)
        except BaseException:
            self._cache.unpin(spec.digest)
            raise
        return Prepared(spec, folder)

    async def check(self, prepared: Prepared) -> None:
        """What was opened is what was verified. Raises FileSwapped."""
        await in_thread(self._cache.check, prepared.spec.digest)

    async def release(self, prepared: Prepared) -> None:
        """The model is closed: its folder goes, its files may go when room is needed."""
        await in_thread(self._cache.dismantle, prepared.spec.digest)
        self._cache.unpin(prepared.spec.digest)

    async def _is_here(self, file: ManifestFile) -> bool:
        async with self._alone(file.sha256):
            return await in_thread(self._cache.holds, file)

    async def _ensure(self, file: ManifestFile, origins: Origins, progress: Progress) -> None:
        """Receive the file from whoever sends it right. Ends: of those asked alone each is wrong once, the registry twice."""
        async with self._alone(file.sha256):
            if await in_thread(self._cache.holds, file):
                return  # another version's load brought it meanwhile
            differed = 0
            origins.next_file()
            while not await self._received(file, origins, progress):
                differed += not origins.distrust()
                if differed == 2:
                    raise FileDiffers(
                        f"file {file.path!r} came twice from {self._source.name} with a content other than sha256"
                        f" {file.sha256}; publish the model again"
                    )

    async def _received(self, file: ManifestFile, origins: Origins, progress: Progress) -> bool:
        """Whether the content is right; what came stays for the next attempt if the transfer breaks."""
        begun_s = self._clock.monotonic_s()
        with closing(await in_thread(self._cache.resume, file)) as reception:
            origins.begin()
            for origin in origins:
                try:
                    await self._receive(origin, origins, file, reception, progress)
                    break
                except CacheFull:
                    raise  # it is our disk
                except PenstockError as error:
                    if origins.is_last(origin):
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

    async def _receive(
        self, origin: Origin, origins: Origins, file: ManifestFile, reception: Reception, progress: Progress
    ) -> None:
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
            raise Unavailable(
                f"{origin.name} ended file {file.path!r} after {reception.received_bytes} of {file.size_bytes} bytes"
            )

    def _tell(self, file: ManifestFile, origins: Origins, right: bool, took_s: float) -> None:
        peer_bytes, registry_bytes = origins.came_bytes
        if not right:
            _log.warning("received_file_differs", sha256=file.sha256, origins=origins.contributors)
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
    async def _peers_holding(self, key: CopyKey, digest: Digest) -> AsyncGenerator[Sequence[Origin], None]:
        if self._peers is None:
            yield ()
            return
        async with self._peers.holding(key, digest) as peers:
            yield peers

    async def _told_by_peers(self, digest: Digest, key: CopyKey, trusted: Container[bytes]) -> Description | None:
        """What workers say the manifest is: as good as anybody's word, because it is verified."""
        async with self._peers_holding(key, digest) as peers:
            for peer in peers:
                try:
                    async with aclosing(peer.fetch(digest, 0)) as chunks:
                        raw = await _joined(chunks)
                    description = open_manifest(raw, digest, trusted)
                except PenstockError as error:
                    _log.warning("peer_failed", peer=peer.name, manifest=digest, error=error.message)
                    continue
                await in_thread(self._cache.keep_manifest, digest, raw)
                return description
        return None

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


async def _joined(chunks: AsyncGenerator[bytes, None]) -> bytes:
    """A manifest, which is small. Raises ManifestRefused for more than one can be."""
    parts: list[bytes] = []
    room = _MAX_MANIFEST_BYTES
    async for chunk in chunks:
        room -= len(chunk)
        if room < 0:
            raise ManifestRefused(f"what came for a manifest is larger than {_MAX_MANIFEST_BYTES} bytes; it is none")
        parts.append(chunk)
    return b"".join(parts)
