"""Floods of HTTP/2 frames at both doors: whoever floods is cut off or costs little, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from itertools import repeat

import pytest
import pytest_asyncio

from gateway.xds.types import Endpoint
from tests.harm.front import Front
from tests.support.raw_http2 import (
    PREFACE,
    block_of,
    continuation_frame,
    data_frame,
    headers_frame,
    http2_connection,
    integer,
    ping_frame,
    request_head,
    reset_frame,
    settings_frame,
    window_frame,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROWTH_MIB = 400
"""What either process may hold more after a flood than before: gRPC keeps the room of all calls that were ever open at once.

A bomb that went off would be five gigabytes.
"""

ATTACKERS = 4
DOORS = ("http", "grpc")
_HTTP = request_head("/v1/models")
_GRPC = request_head(
    "/inference.GRPCInferenceService/ServerLive",
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
    method="POST",
)
HEADS = {"http": block_of(_HTTP), "grpc": block_of(_GRPC)}

_TABLE_BYTES = 4096
"""Of HPACK's table as it begins, and 32 of each entry are overhead. Source: RFC 7541, sections 4.1 and 4.2."""


def bomb(door: str) -> Iterator[bytes]:
    """One header as large as the table takes, named by one byte sixteen thousand times: 64 MiB in a frame of 16 KiB."""
    value = b"x" * (_TABLE_BYTES - 32 - 3)
    planted = b"\x40" + integer(3, 7) + b"x-b" + integer(len(value), 7) + value
    yield headers_frame(1, HEADS[door] + planted)
    for stream in range(3, 43, 2):
        yield headers_frame(stream, HEADS[door] + bytes([0xBE]) * (16_000 - len(HEADS[door])))


def long_list(door: str) -> Iterator[bytes]:
    """More headers than are taken, in one list."""
    for stream in range(1, 41, 2):
        yield headers_frame(stream, HEADS[door] + block_of([(b"x-%d" % number, b"y" * 50) for number in range(200)]))


def continuations(door: str) -> Iterator[bytes]:
    """A list of headers that goes on in frame after frame and has no end (CVE-2024-27316 and its kin)."""
    part = block_of([(b"x-%d" % number, b"y" * 100) for number in range(100)])
    yield headers_frame(1, HEADS[door], "END_STREAM")
    yield from repeat(continuation_frame(1, part), 3_000)


def empty_continuations(door: str) -> Iterator[bytes]:
    yield headers_frame(1, HEADS[door], "END_STREAM")
    yield from repeat(continuation_frame(1, b"") * 100, 1_000)


def resets(door: str) -> Iterator[bytes]:
    """Streams that are opened only to be reset (CVE-2023-44487)."""
    for stream in range(1, 20_001, 2):
        yield headers_frame(stream, HEADS[door], "END_HEADERS") + reset_frame(stream)


def pings(door: str) -> Iterator[bytes]:
    yield from repeat(ping_frame() * 100, 1_000)


def settings(door: str) -> Iterator[bytes]:
    yield from repeat(settings_frame(header_table_size=65_536, initial_window_size=65_535) * 100, 1_000)


def empty_settings(door: str) -> Iterator[bytes]:
    yield from repeat(settings_frame() * 100, 1_000)


def priorities(door: str) -> Iterator[bytes]:
    frames = b"".join(b"\x00\x00\x05\x02\x00" + stream.to_bytes(4) + b"\x00\x00\x00\x00\x10" for stream in range(1, 201, 2))
    yield from repeat(frames, 1_000)


def windows(door: str) -> Iterator[bytes]:
    yield from repeat(window_frame(0, 1) * 100, 1_000)


def a_window_too_wide(door: str) -> Iterator[bytes]:
    yield from repeat(window_frame(0, 2**31 - 1), 10)


def empty_data(door: str) -> Iterator[bytes]:
    """A body of no bytes that never ends."""
    yield headers_frame(1, HEADS[door], "END_HEADERS")
    yield from repeat(data_frame(1, b"") * 100, 1_000)


def unknown_frames(door: str) -> Iterator[bytes]:
    yield from repeat((b"\x00\x40\x00\xbb\x00\x00\x00\x00\x00" + bytes(16_384)), 500)


def endless_table(door: str) -> Iterator[bytes]:
    """Settings that ask for as large a table as the number takes, and headers that fill it."""
    yield settings_frame(header_table_size=2**32 - 1)
    for stream in range(1, 401, 2):
        planted = b"".join(b"\x40" + integer(4, 7) + b"x-%02d" % (n % 100) + integer(100, 7) + b"z" * 100 for n in range(50))
        yield headers_frame(stream, HEADS[door] + planted)


FLOODS: Mapping[str, Callable[[str], Iterator[bytes]]] = {
    "an HPACK bomb": bomb,
    "headers beyond the limit": long_list,
    "headers without an end": continuations,
    "headers that go on with nothing": empty_continuations,
    "ten thousand resets": resets,
    "a hundred thousand pings": pings,
    "a hundred thousand settings": settings,
    "a hundred thousand settings of nothing": empty_settings,
    "a hundred thousand priorities": priorities,
    "a hundred thousand windows": windows,
    "a window beyond 31 bits": a_window_too_wide,
    "a hundred thousand parts of nothing": empty_data,
    "frames nobody knows": unknown_frames,
    "a table without bound": endless_table,
}


async def flooded(at: Endpoint, frames: Iterator[bytes], *, reads: bool = True) -> None:
    """All of them, or until it is hung up on. `reads`: what the other side says meanwhile."""
    async with http2_connection(at) as connection:
        reading = asyncio.create_task(_read_on(connection.reader)) if reads else None
        try:
            async with asyncio.timeout(30):
                for part in frames:
                    if connection.writer.transport.is_closing() or (reading is not None and reading.done()):
                        break
                    await connection.send(part)
        except TimeoutError:  # nobody takes more: that is an answer, too
            pass
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)


async def _read_on(reader: asyncio.StreamReader) -> None:
    while await reader.read(65_536):
        pass


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def warmed(front: Front) -> AsyncIterator[None]:
    """What grows with the first requests alone has grown."""
    await asyncio.gather(*(front.chat() for _ in range(50)), *(front.infer() for _ in range(50)))
    yield


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_is_borne(front: Front, door: str, name: str) -> None:
    async with front.holding_no_more_than(GROWTH_MIB), front.innocents():
        await asyncio.gather(*(flooded(getattr(front, door), FLOODS[name](door)) for _ in range(ATTACKERS)))
    await front.is_well()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["a hundred thousand pings", "a hundred thousand settings", "ten thousand resets"])
async def test_one_who_floods_and_does_not_read(front: Front, door: str, name: str) -> None:
    """Each frame wants an answer, and the answers are not taken."""
    async with front.holding_no_more_than(GROWTH_MIB), front.innocents():
        at = getattr(front, door)
        tasks = [asyncio.create_task(flooded(at, FLOODS[name](door), reads=False)) for _ in range(ATTACKERS)]
        await asyncio.wait(tasks, timeout=5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await front.is_well()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("part", [b"", PREFACE[:1], PREFACE[:12], PREFACE, PREFACE + settings_frame()[:5]])
async def test_beginnings_without_an_end(front: Front, door: str, part: bytes) -> None:
    async def begun(number: int) -> asyncio.StreamWriter:
        at: Endpoint = getattr(front, door)
        _, writer = await asyncio.open_connection(at.host, at.port)
        writer.write(part)
        return writer

    async with front.holding_no_more_than(GROWTH_MIB), front.innocents():
        writers = await asyncio.gather(*(begun(number) for number in range(200)))
        await front.is_well()
        for writer in writers:
            writer.close()
