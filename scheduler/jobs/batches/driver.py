"""Goes on with batches, a step at a time: checks a file, makes jobs of its lines, waits for them, writes what came of them.

A step that was cut short, by a crash or a database that went away, is done again from where the last transaction ended:
checking and writing from the beginning, making jobs from the line after the last. Never decides what becomes of a line's job.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from hashlib import blake2b
from itertools import islice

import structlog

from runtime.backoff import sleep_unless
from runtime.clock import Clock
from runtime.errors import Aborted, PenstockError
from scheduler.jobs.batches.lines import LineCutter, LineTooLong, RawLine
from scheduler.jobs.batches.policy import read_line
from scheduler.jobs.batches.results import ResultWriter
from scheduler.jobs.batches.sql_driving import DrivenBatch, DrivingStore, numbers
from scheduler.jobs.batches.types import (
    MAX_ERRORS,
    MAX_LINE_BYTES,
    MAX_LINES,
    UNDER_WAY,
    Batch,
    BatchStatus,
    Fault,
    Line,
    Progress,
)
from scheduler.jobs.bell import Bell
from scheduler.jobs.errors import FileDamaged, FileUnknown, LeaseLost
from scheduler.jobs.files.sql import FileStore
from scheduler.jobs.files.types import CHUNK_BYTES
from scheduler.jobs.loop import keep_doing
from scheduler.jobs.policy import cancelled
from scheduler.jobs.types import JobId

LOOK_EVERY_MS = 1_000
_AFTER_FAILURE_MS = 5_000
_POLL_S = 1.0
_JOBS_AT_ONCE = 200
_LINES_AT_ONCE = 10_000
_EMPTY = Progress()
_log = structlog.get_logger("penstock.batches")

Told = Callable[[Iterable[JobId]], None]
"""Jobs that were changed here."""


class BatchDriver:
    """Any number of tasks may drive at once, here and in other schedulers. Belongs to one event loop."""

    def __init__(
        self, store: DrivingStore, files: FileStore, results: ResultWriter, news: Bell, due: Bell, told: Told, clock: Clock
    ) -> None:
        self._store, self._files, self._results = store, files, results
        self._news, self._due, self._told, self._clock = news, due, told, clock
        self.ended = 0

    async def keep_driving(self, rng: random.Random) -> None:
        async def rounds() -> None:
            rung = self._news.next
            while await self.drive_one():
                pass
            await sleep_unless(self._clock, _POLL_S * (1.0 + 0.5 * rng.random()), rung)

        await keep_doing(rounds, 0.0, self._clock, rng)

    async def drive_one(self) -> bool:
        """One step of the batch that waits longest; whether there was one."""
        driven = await self._store.take()
        if driven is None:
            return False
        look_at_ms = driven.now_ms() + _AFTER_FAILURE_MS
        try:
            look_at_ms = await self._step(driven)
        except LeaseLost:
            look_at_ms = driven.now_ms()
        except Aborted as error:
            _log.info("batch_step_again", batch=driven.batch.batch_id, why=error.message)
        except asyncio.CancelledError:
            await asyncio.shield(_released(driven, driven.now_ms()))
            raise
        except PenstockError as error:
            _log.warning("batch_step_failed", batch=driven.batch.batch_id, why=error.message)
        except Exception:
            _log.exception("batch_step_failed", batch=driven.batch.batch_id)
        await _released(driven, look_at_ms)
        return True

    async def _step(self, driven: DrivenBatch) -> int:
        """When somebody is to look at it again, should it not have changed."""
        batch, now_ms = driven.batch, driven.now_ms()
        if batch.status not in UNDER_WAY:
            await driven.forget()
        elif batch.status is BatchStatus.VALIDATING:
            await self._validate(driven)
        elif batch.status is BatchStatus.CANCELLING:
            await self._finish(driven, BatchStatus.CANCELLED)
        elif batch.status is BatchStatus.FINALIZING:
            await self._finish(driven, BatchStatus.EXPIRED if batch.at.expired_ms else BatchStatus.COMPLETED)
        elif now_ms >= batch.at.expires_ms:
            ending = {"expired_at_ms": now_ms, "finalizing_at_ms": now_ms}
            await driven.change(status=BatchStatus.FINALIZING.value, **ending)
        else:
            await self._progress(driven)
        return now_ms + LOOK_EVERY_MS

    async def _validate(self, driven: DrivenBatch) -> None:
        try:
            total, faults = await self._checked(driven)
        except (FileUnknown, FileDamaged) as error:
            total, faults = 0, [Fault(0, "invalid_file", error.message)]
        except LineTooLong as error:
            total, faults = 0, [Fault(error.number, "line_too_long", f"this line has more than {MAX_LINE_BYTES} bytes")]
        if faults:
            await driven.fail(faults)
            self.ended += 1
        else:
            await driven.begin(total)
            self._news.ring()

    async def _checked(self, driven: DrivenBatch) -> tuple[int, list[Fault]]:
        """How many requests the file has, and what is wrong with it. Raises FileUnknown, FileDamaged, LineTooLong."""
        known: set[bytes] = set()
        faults: list[Fault] = []
        total = 0
        async with aclosing(self._lines(driven.batch, _EMPTY)) as lines:
            async for some in lines:
                read = await asyncio.to_thread(_read, some, driven.batch.endpoint)
                total += len(read)
                faults += _faults(read, known)
                if total > MAX_LINES:
                    return total, [Fault(0, "too_many_lines", f"the file has more than {MAX_LINES} requests; split it")]
                if len(faults) >= MAX_ERRORS:
                    return total, faults
                await driven.check()
        if not total:
            faults.append(Fault(0, "empty_file", "the file has no request"))
        return total, faults

    async def _progress(self, driven: DrivenBatch) -> None:
        batch = driven.batch
        if batch.progress.lines_made < batch.total:
            try:
                await self._make_jobs(driven)
            except (FileUnknown, FileDamaged) as error:  # only a hand in the database does that
                await driven.fail([Fault(0, "invalid_file", error.message)])
                return
        counts = await driven.count()
        if counts.open:
            await driven.change(**numbers(counts))
        else:
            await driven.change(status=BatchStatus.FINALIZING.value, finalizing_at_ms=driven.now_ms(), **numbers(counts))
            self._news.ring()

    async def _make_jobs(self, driven: DrivenBatch) -> None:
        progress = driven.batch.progress
        async with aclosing(self._lines(driven.batch, progress)) as lines:
            async for some in lines:
                for raw in (some[at : at + _JOBS_AT_ONCE] for at in range(0, len(some), _JOBS_AT_ONCE)):
                    read = await asyncio.to_thread(_read, raw, driven.batch.endpoint)
                    requests = [line for line in read if isinstance(line, Line)]
                    progress = Progress(progress.lines_made + len(requests), raw[-1].number, raw[-1].ends_at)
                    await driven.make_jobs(requests, progress)
                    self._due.ring()
        if progress.lines_made < driven.batch.total:
            raise FileUnknown(f"file {driven.batch.input_file_id} is not whole any more; upload it anew")

    async def _finish(self, driven: DrivenBatch, status: BatchStatus) -> None:
        """The files are written, in order; where the batch does not wait any longer, what has not ended ends before."""
        while status is not BatchStatus.COMPLETED and (await driven.count()).open:
            ended = await driven.end_lines(cancelled())
            self._told(ended)
            if not ended:  # others hold the rest at this moment
                await self._clock.sleep(0.1)
        async with aclosing(self._unmade(driven.batch)) as unmade:
            output, errors = await self._results.write(driven, unmade)
        counts = await driven.count()
        if status is not BatchStatus.CANCELLED:
            counts = replace(counts, dead=driven.batch.total - counts.succeeded)
        await driven.end(status, counts, output, errors)
        self.ended += 1

    async def _unmade(self, batch: Batch) -> AsyncGenerator[list[Line], None]:
        """The lines that no jobs were made of; none where the file is gone."""
        if batch.progress.lines_made >= batch.total:
            return
        with suppress(FileUnknown, FileDamaged):
            async with aclosing(self._lines(batch, batch.progress)) as lines:
                async for some in lines:
                    read = await asyncio.to_thread(_read, some, batch.endpoint)
                    yield [line for line in read if isinstance(line, Line)]

    async def _lines(self, batch: Batch, since: Progress) -> AsyncGenerator[list[RawLine], None]:
        """Some lines at a time, from the one after those that were read. Raises LineTooLong, FileUnknown, FileDamaged."""
        file = await self._files.file(batch.input_file_id, batch.tenant)
        cutter, skip = LineCutter(since.lines_read, since.bytes_read), since.bytes_read % CHUNK_BYTES
        begun = self._files.pieces(file.file_id, since.bytes_read // CHUNK_BYTES)
        async with aclosing(begun if since.bytes_read else self._files.checked_pieces(file)) as pieces:
            async for piece in pieces:
                cut = cutter.cut(piece[skip:])
                while some := await asyncio.to_thread(_some, cut):
                    yield some
                skip = 0
        if some := list(cutter.end()):
            yield some


async def _released(driven: DrivenBatch, look_at_ms: int) -> None:
    try:
        await driven.release(look_at_ms)
    except PenstockError as error:  # its lease runs out by itself
        _log.warning("batch_not_released", batch=driven.batch.batch_id, why=error.message)


def _some(lines: Iterator[RawLine]) -> list[RawLine]:
    """In a thread, and not all of a piece: short lines are many, and the loop has others to answer."""
    return list(islice(lines, _LINES_AT_ONCE))


def _read(lines: Iterable[RawLine], endpoint: str) -> list[Line | Fault]:
    return [read_line(line.number, line.raw, endpoint) for line in lines if not line.is_empty]


def _faults(read: Iterable[Line | Fault], known: set[bytes]) -> list[Fault]:
    """Also of lines that bear a custom_id that was there already; the known ones are remembered by their hashes."""
    faults: list[Fault] = []
    for each in read:
        if isinstance(each, Fault):
            faults.append(each)
            continue
        digest = blake2b(each.custom_id.encode(), digest_size=16).digest()
        if digest in known:
            faults.append(
                Fault(each.number, "duplicate_custom_id", "custom_id stands in a line before; each has to be its own")
            )
        known.add(digest)
    return faults
