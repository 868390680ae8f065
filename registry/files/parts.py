"""One part of a file on its way into the store and out of it: sealed as it comes, opened to be verified, read a little ahead.

Keeps one sealed part, or two reads, in memory, whatever the file's size.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass

from registry.files.errors import UploadRefused
from registry.files.layout import Layout
from registry.files.objects import Objects
from registry.files.types import ObjectId, part_key
from registry.threads import in_thread
from runtime.sealed_chunks import CHUNK_BYTES, open_chunk, seal_chunk


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring chunks of one part, and where their sealed bytes lie in it."""

    part: int
    chunks: range
    start_byte: int
    size_bytes: int


async def sealed_part(
    data_key: bytes, object_id: ObjectId, layout: Layout, number: int, pieces: AsyncIterator[bytes]
) -> bytearray:
    """The part as it is stored, out of plain pieces of any size. Raises UploadRefused where there are more or fewer bytes."""
    sealed, place = bytearray(layout.sealed_part_size(number)), 0
    indexes, got_bytes = iter(layout.chunks_of(number)), 0
    index, chunk, filled = next(indexes), bytearray(CHUNK_BYTES), 0

    def seal(index: int, size_bytes: int, place: int) -> int:
        box = seal_chunk(data_key, object_id, index, layout.size_bytes, bytes(memoryview(chunk)[:size_bytes]))
        sealed[place : place + len(box)] = box
        return place + len(box)

    async for piece in pieces:
        got_bytes += len(piece)
        if got_bytes > layout.part_size(number):
            raise UploadRefused(f"part {number} has {layout.part_size(number)} bytes; {got_bytes} came")
        rest = memoryview(piece)
        while rest:
            taken = rest[: layout.chunk_size(index) - filled]
            chunk[filled : filled + len(taken)] = taken
            filled, rest = filled + len(taken), rest[len(taken) :]
            if filled == layout.chunk_size(index):
                place = await in_thread(seal, index, filled, place)
                index, filled = next(indexes, index), 0
    if got_bytes < layout.part_size(number):
        raise UploadRefused(f"part {number} has {layout.part_size(number)} bytes; the sender ended after {got_bytes}")
    return sealed


def runs(layout: Layout, first_chunk: int, chunks_at_once: int) -> Iterator[Run]:
    """From this chunk to the file's end, in runs of so many chunks at most."""
    chunk = first_chunk
    while chunk < layout.chunk_count:
        number = layout.part_of(chunk)
        end = min(chunk + chunks_at_once, layout.chunks_of(number).stop)
        size_bytes = sum(layout.sealed_chunk_size(index) for index in range(chunk, end))
        yield Run(number, range(chunk, end), layout.sealed_offset(chunk), size_bytes)
        chunk = end


async def read_runs(
    objects: Objects, object_id: ObjectId, layout: Layout, first_chunk: int, chunks_at_once: int
) -> AsyncGenerator[tuple[Run, bytes], None]:
    """The sealed bytes of each run; the next one is read while the caller works on this. The caller closes the generator.

    Raises ObjectMissing and what else the store raises.
    """
    coming = runs(layout, first_chunk, chunks_at_once)
    run = next(coming, None)
    reading = None if run is None else _reading(objects, object_id, run)
    try:
        while run is not None and reading is not None:
            data = await reading
            read, run = run, next(coming, None)
            reading = None if run is None else _reading(objects, object_id, run)
            yield read, data
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.exception()  # taken note of: nobody is there to be told


def sealed_chunks(layout: Layout, run: Run, data: bytes) -> Iterator[tuple[int, bytes]]:
    """The run's chunks, each with its index."""
    place = 0
    for index in run.chunks:
        size_bytes = layout.sealed_chunk_size(index)
        yield index, data[place : place + size_bytes]
        place += size_bytes


def opened_run(data_key: bytes, object_id: ObjectId, layout: Layout, run: Run, data: bytes) -> Iterator[bytes]:
    """The run's plain chunks. Blocking. Raises ChunkAltered."""
    for index, sealed in sealed_chunks(layout, run, data):
        yield open_chunk(data_key, object_id, index, layout.size_bytes, sealed)


def _reading(objects: Objects, object_id: ObjectId, run: Run) -> asyncio.Task[bytes]:
    async def read() -> bytes:
        return await objects.get(part_key(object_id, run.part), run.start_byte, run.size_bytes)

    return asyncio.create_task(read())
