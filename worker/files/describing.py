"""What a version is: its manifest, from the disk cache, the registry, or workers that hold it if the registry is away.

Decides nothing but where it is asked for: who is believed is `files/manifest.py`'s question, and the same wherever it came
from. What came is kept with the endorsement that made it believed, and verified again at each load.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Container
from contextlib import aclosing

import structlog

from runtime.clock import Clock
from runtime.errors import PenstockError, Unavailable
from runtime.ids import Digest
from runtime.manifests import ManifestRefused
from worker.files.cache import FileCache
from worker.files.manifest import Description, is_sha256, open_manifest
from worker.files.origins import Peers, Source
from worker.life.lifecycle import CopyKey
from worker.threads import in_thread

_log = structlog.get_logger("penstock.artifacts")
_MAX_MANIFEST_BYTES = 32 * 1024 * 1024


class Descriptions:
    """Finds what was ordered, by digest."""

    def __init__(
        self,
        cache: FileCache,
        source: Source,
        trusted_signers: Callable[[], Container[bytes]],
        peers: Peers | None,
        clock: Clock,
    ) -> None:
        self._cache, self._source, self._trusted_signers = cache, source, trusted_signers
        self._peers, self._clock = peers, clock

    async def find(self, digest: Digest, key: CopyKey) -> Description:
        """Raises ManifestRefused, ModelRefused, what the registry raises."""
        if not is_sha256(digest):
            raise ManifestRefused(f"the ordered digest {digest[:80]!r} is no sha256")
        trusted = await in_thread(self._trusted_signers)
        if (cached := await in_thread(self._cache.manifest, digest)) is not None:
            try:
                return self._opened(cached, digest, trusted)
            except PenstockError as error:
                _log.warning("cached_manifest_refused", digest=digest, error=error.message)
                await in_thread(self._cache.forget_manifest, digest)
        try:
            raw = await self._source.manifest(digest)
        except Unavailable:
            if (found := await self._told_by_peers(digest, key, trusted)) is None:
                raise
            return found
        return await self._kept(raw, digest, trusted)

    def _opened(self, raw: bytes, digest: Digest, trusted: Container[bytes]) -> Description:
        return open_manifest(raw, digest, trusted, now_ms=int(self._clock.wall_s() * 1000))

    async def _kept(self, raw: bytes, digest: Digest, trusted: Container[bytes]) -> Description:
        description = self._opened(raw, digest, trusted)
        await in_thread(self._cache.keep_manifest, digest, raw)
        return description

    async def _told_by_peers(self, digest: Digest, key: CopyKey, trusted: Container[bytes]) -> Description | None:
        """What workers say the manifest is: as good as anybody's word, because it is verified."""
        if self._peers is None:
            return None
        async with self._peers.holding(key, digest) as peers:
            for peer in peers:
                try:
                    async with aclosing(peer.fetch(digest, 0)) as chunks:
                        return await self._kept(await _joined(chunks), digest, trusted)
                except PenstockError as error:
                    _log.warning("peer_failed", peer=peer.name, manifest=digest, error=error.message)
        return None


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
