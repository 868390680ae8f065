"""Bytes as they come, written into a file in pieces of one size. Holds one piece, never the file."""

from __future__ import annotations

from hashlib import sha256

from runtime.clock import Clock
from scheduler.jobs.files.sql import FileStore, Guard
from scheduler.jobs.files.types import CHUNK_BYTES, FileId


class FileWriter:
    """One file that is being written."""

    def __init__(
        self, store: FileStore, clock: Clock, file_id: FileId, *, bounded: bool = True, guard: Guard | None = None
    ) -> None:
        self._store, self._clock, self.file_id = store, clock, file_id
        self._bounded, self._guard = bounded, guard
        self._held, self._number, self._digest = bytearray(), 0, sha256()

    @property
    def digest(self) -> str:
        """Of what was flushed; lower-case hex."""
        return self._digest.hexdigest()

    async def write(self, data: bytes) -> None:
        """Raises what FileStore.append raises."""
        self._held += data
        while len(self._held) >= CHUNK_BYTES:
            await self._append(bytes(self._held[:CHUNK_BYTES]))
            del self._held[:CHUNK_BYTES]

    async def flush(self) -> None:
        """The last piece, which may be small."""
        if self._held:
            await self._append(bytes(self._held))
            self._held.clear()

    async def _append(self, piece: bytes) -> None:
        now_ms = int(self._clock.wall_s() * 1_000)
        await self._store.append(self.file_id, self._number, piece, now_ms, bounded=self._bounded, guard=self._guard)
        self._digest.update(piece)
        self._number += 1
