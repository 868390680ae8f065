"""Writes a batch's result files: what was answered into one, what was not into the other, each in the order of the input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from runtime.clock import Clock
from scheduler.jobs.batches.policy import belongs_to_output, result_line, unmade_line
from scheduler.jobs.batches.sql_driving import DrivenBatch
from scheduler.jobs.batches.sql_results import Results, ResultStore
from scheduler.jobs.batches.types import Batch, Line, Written
from scheduler.jobs.files.sql import FileStore
from scheduler.jobs.files.types import NewFile, Purpose
from scheduler.jobs.files.writing import FileWriter
from scheduler.jobs.types import JobLimits


class ResultWriter:
    def __init__(self, store: ResultStore, files: FileStore, clock: Clock, limits: JobLimits) -> None:
        self._store, self._files, self._clock, self._limits = store, files, clock, limits

    async def write(self, driven: DrivenBatch, unmade: AsyncIterator[Sequence[Line]]) -> tuple[Written, Written]:
        """The output, and the errors: written whole, and nobody's to see yet. Lines that no jobs were made of come last.

        Raises LeaseLost.
        """
        output, errors = _OneFile(self, driven, "output"), _OneFile(self, driven, "errors")
        try:
            async with aclosing(self._store.results(driven.batch.batch_id)) as pages:
                async for results in pages:
                    done, undone = await asyncio.to_thread(_lines, driven.batch, results)
                    await output.write(done)
                    await errors.write(undone)
            async for lines in unmade:
                await errors.write(b"".join(unmade_line(driven.batch, line) for line in lines))
            return await output.flushed(), await errors.flushed()
        except BaseException:
            for begun in (output, errors):
                await asyncio.shield(begun.drop())
            raise

    async def begin(self, driven: DrivenBatch, kind: str) -> FileWriter:
        await driven.check()
        batch = driven.batch
        new = NewFile(batch.tenant, f"{batch.batch_id}_{kind}.jsonl", Purpose.BATCH_OUTPUT, self._limits.file_keep_ms)
        file_id = await self._files.begin(new, driven.now_ms())
        return FileWriter(self._files, self._clock, file_id, bounded=False, guard=driven.guard)

    async def drop(self, writer: FileWriter) -> None:
        await self._files.drop_unfinished(writer.file_id)


class _OneFile:
    """Begun with its first line."""

    def __init__(self, results: ResultWriter, driven: DrivenBatch, kind: str) -> None:
        self._results, self._driven, self._kind = results, driven, kind
        self._writer: FileWriter | None = None

    async def write(self, lines: bytes) -> None:
        if lines:
            self._writer = self._writer or await self._results.begin(self._driven, self._kind)
            await self._writer.write(lines)

    async def flushed(self) -> Written:
        if self._writer is None:
            return Written()
        await self._writer.flush()
        return Written(self._writer.file_id, self._writer.digest)

    async def drop(self) -> None:
        if self._writer is not None:
            await self._results.drop(self._writer)


def _lines(batch: Batch, results: Results) -> tuple[bytes, bytes]:
    done, undone = bytearray(), bytearray()
    for outcome, answer in results:
        into = done if belongs_to_output(outcome) else undone
        into += result_line(batch, outcome, answer)
    return bytes(done), bytes(undone)
