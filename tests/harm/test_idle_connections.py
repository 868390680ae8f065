"""Ten thousand who connect and say nothing, or not enough: everybody else is served, and each of them costs little."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.gateway.openai.mesh import SECRET
from tests.harm.front import Front, raise_file_limit
from tests.support.mesh import ROOT, environment
from tests.support.raw_http2 import PREFACE, settings_frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

WANTED, AT_LEAST, SPARE_FILES = 10_000, 4_000, 3_000
KIB_EACH = 64
"""Of either process, at most; Envoy takes about 20 and gRPC about 10."""

_OPENED_S = 90.0
_GET = f"GET /v1/models HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {SECRET}\r\n\r\n".encode()


@asynccontextmanager
async def idlers(host: str, port: int, count: int, beginning: bytes) -> AsyncIterator[None]:
    """So many connections of a process of its own; all of them are still open when this is left."""
    words = (sys.executable, "-m", "tests.harm.idlers", host, str(port), str(count), beginning.hex())
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, cwd=ROOT, env=environment(), stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_OPENED_S):
            assert await process.stdout.readline() == b"%d\n" % count
        yield
        told, _ = await asyncio.wait_for(process.communicate(b""), _OPENED_S)
        assert told == b"0\n", "the other side closed so many"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("door", "beginning"),
    [
        ("http", b""),
        ("http", _GET),
        ("http", PREFACE + settings_frame()),
        ("grpc", b""),
        ("grpc", PREFACE + settings_frame()),
    ],
    ids=["http silent", "http after a request", "http h2", "grpc silent", "grpc h2"],
)
async def test_ten_thousand_idle_connections(front: Front, door: str, beginning: bytes) -> None:
    at, count = getattr(front, door), min(WANTED, raise_file_limit() - SPARE_FILES)
    if count < AT_LEAST:
        pytest.skip(f"needs {AT_LEAST + SPARE_FILES} open files (ulimit -Hn)")
    if beginning == _GET:
        count //= 5  # what is measured is connections, not requests
    await front.is_well()
    before = front.rss_bytes()
    async with front.innocents(), idlers(at.host, at.port, count, beginning):
        await asyncio.gather(*(front.chat() for _ in range(20)), *(front.infer() for _ in range(20)))
        kib_each = [(now - then) / 1024 / count for now, then in zip(front.rss_bytes(), before, strict=True)]
        print(f"\n{count} connections: gateway {kib_each[0]:.1f} KiB, Envoy {kib_each[1]:.1f} KiB each")  # noqa: T201
        assert max(kib_each) < KIB_EACH
    await front.is_well()
