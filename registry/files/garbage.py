"""Collections of garbage: files, uploads and stored objects that nobody needs, found and deleted, now and then or when asked.

What may go is decided by `collection.py`. Rows go before objects: a kill in between leaves objects that no row names, which the
next collection finds. Never takes what a version, or an upload that is gone on with, needs.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from functools import partial

import structlog

from registry.access.types import ActorKind, Principal
from registry.audit.types import AuditNote, note_of
from registry.files.collection import Collected, is_orphan, judged
from registry.files.objects import Objects, StoredObject
from registry.files.sql_collection import CollectionStore, Freed
from registry.files.turn import StillMine, Turn
from registry.files.types import OBJECTS_PREFIX, FileLimits, UploadId, object_id_in
from registry.files.uploads import drop_object
from runtime.clock import Clock
from runtime.errors import PenstockError
from runtime.ids import Digest

_log = structlog.get_logger("penstock.garbage")


class Garbage:
    def __init__(self, store: CollectionStore, objects: Objects, turn: Turn, clock: Clock, limits: FileLimits) -> None:
        self._store, self._objects, self._turn, self._clock, self._limits = store, objects, turn, clock, limits

    async def collect(self, by: Principal | None = None, *, dry_run: bool = False) -> Collected:
        """What was deleted; on a dry run, what would be. Raises CollectionBusy."""
        now_ms = int(self._clock.wall_s() * 1000)
        async with self._turn.taken() as still_mine:
            collected = await self._collect_files(now_ms, by, still_mine, dry_run=dry_run)
            collected += await self._collect_uploads(now_ms, by, still_mine, dry_run=dry_run)
            collected += await self._collect_orphans(now_ms, still_mine, dry_run=dry_run)
            if not dry_run:
                collected += Collected(freed_bytes=await self._objects.drop_drafts(now_ms - self._limits.grace_ms))
        return collected

    async def _collect_files(self, now_ms: int, by: Principal | None, still_mine: StillMine, *, dry_run: bool) -> Collected:
        judge, collected = partial(judged, now_ms=now_ms, limits=self._limits), Collected()
        async for sha256 in self._candidates(now_ms):
            note = None if dry_run else _note(by, "file.collect", sha256)
            collected += await self._freed(await self._store.judge(sha256, judge, note), Collected(files=1), dry_run=dry_run)
            await still_mine()
        return collected

    async def _collect_uploads(self, now_ms: int, by: Principal | None, still_mine: StillMine, *, dry_run: bool) -> Collected:
        collected, after = Collected(), UploadId("")
        while page := await self._store.stale_uploads(now_ms, self._limits, after):
            for upload_id in page:
                note = None if dry_run else _note(by, "upload.collect", upload_id)
                freed = await self._store.drop_stale_upload(upload_id, now_ms, self._limits, note)
                collected += await self._freed(freed, Collected(uploads=1), dry_run=dry_run)
                await still_mine()
            after = page[-1]
        return collected

    async def _collect_orphans(self, now_ms: int, still_mine: StillMine, *, dry_run: bool) -> Collected:
        collected = Collected()
        async for page in self._objects.pages(OBJECTS_PREFIX):
            orphans = await self._orphans(page, now_ms)
            if not dry_run:
                await self._objects.delete([each.key for each in orphans])
            collected += Collected(orphans=len(orphans), freed_bytes=sum(each.size_bytes for each in orphans))
            await still_mine()
        return collected

    async def _candidates(self, now_ms: int) -> AsyncIterator[Digest]:
        after = Digest("")
        while page := await self._store.candidates(now_ms - self._limits.grace_ms, after):
            for sha256 in page:
                yield sha256
            after = page[-1]

    async def _freed(self, freed: Freed | None, counted: Collected, *, dry_run: bool) -> Collected:
        """The row is gone: its object goes too."""
        if freed is None:
            return Collected()
        object_id, size_bytes = freed
        return counted + Collected(freed_bytes=size_bytes if dry_run else await drop_object(self._objects, object_id))

    async def _orphans(self, page: Sequence[StoredObject], now_ms: int) -> list[StoredObject]:
        # The rows are asked after the objects were listed: a row is there before its first object is.
        ids = {each.key: object_id_in(each.key) for each in page}
        named = await self._store.named({object_id for object_id in ids.values() if object_id is not None})
        return [each for each in page if is_orphan(ids[each.key], each.modified_at_ms, named, now_ms, self._limits)]


async def collecting(garbage: Garbage, clock: Clock, every_s: float, rng: random.Random) -> None:
    """Collect for ever, each replica at moments of its own. A collection that fails is told, and tried again next time."""
    while True:
        await clock.sleep(every_s * (0.5 + rng.random()))
        try:
            collected = await garbage.collect()
        except PenstockError as error:
            _log.warning("collection_failed", reason=error.reason, detail=error.message)
        except Exception as error:  # a bug of ours, which must not be the end of all collections
            _log.error("collection_failed", exc_info=error)
        else:
            if collected != Collected():
                _log.info("collected", files=collected.files, uploads=collected.uploads, orphans=collected.orphans)


def _note(by: Principal | None, action: str, subject: str) -> AuditNote:
    return AuditNote(ActorKind.NOBODY, "registry", action, subject) if by is None else note_of(by, action, subject)
