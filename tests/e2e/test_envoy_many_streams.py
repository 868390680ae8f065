"""Two thousand answers under way at once through the real Envoy: none fails, and newcomers are served (llm-d#1582)."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from xds import discovery_pb2_grpc

from gateway.openai.peers import BatchesClient, FilesClient
from gateway.openai.servicer import SERVICE, OpenAIServicer
from gateway.xds.servicer import SERVICE as DISCOVERY
from gateway.xds.types import Endpoint
from runtime.serving import Listen, Register, serving
from tests.gateway.jobs.scheduler import MemoryScheduler, kept_by
from tests.gateway.openai.mesh import SECRET, SmallMesh, small_mesh
from tests.support.edge import EdgeUnderTest, edge_under_test
from tests.support.envoy import LOOPBACK

STREAMS = 2_000
_FILES_NEEDED = 2 * STREAMS + 500
_BODY = json.dumps({"model": "sums", "stream": True, "messages": [{"role": "user", "content": "2 + 2?"}]}).encode()
_HEAD = (
    f"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {SECRET}\r\ncontent-type: application/json\r\n"
    f"content-length: {len(_BODY)}\r\n\r\n"
).encode()

pytestmark = pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[0] < _FILES_NEEDED, reason=f"needs {_FILES_NEEDED} open files (ulimit -n)"
)


@asynccontextmanager
async def small_edge(folder: Path, mesh: SmallMesh) -> AsyncIterator[EdgeUnderTest]:
    """The real service behind the real Envoy, workers whose answers the test chooses."""
    async with kept_by(MemoryScheduler()) as schedulers, edge_under_test(folder) as made:
        registers: list[Register] = [
            OpenAIServicer(mesh, FilesClient(schedulers), BatchesClient(schedulers)).register,
            partial(discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server, made.discovery),
        ]
        listen = Listen(LOOPBACK, 0, made.identity)
        running = await made.stack.enter_async_context(serving([listen], registers, (SERVICE, DISCOVERY), drain_grace_s=0.2))
        gateway = Endpoint(LOOPBACK, running.ports[0])
        made.publish(gateway)
        await (await made.envoy(gateway)).until_listening(made.edge.listen)
        await made.settled()
        yield made


async def first_words(listen: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask, and return once the answer has begun."""
    reader, writer = await asyncio.open_connection(listen.host, listen.port)
    writer.write(_HEAD + _BODY)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    await reader.readuntil(b"Hel")
    return reader, writer


@pytest.mark.timeout(240)
async def test_two_thousand_open_streams(tmp_path: Path) -> None:
    mesh = small_mesh()
    mesh.router.hang = True
    async with small_edge(tmp_path, mesh) as edge:
        listen, open_now, at_once = edge.edge.listen, [], asyncio.Semaphore(64)

        async def begin() -> None:
            async with at_once:
                open_now.append(await first_words(listen))

        try:
            async with asyncio.timeout(180), asyncio.TaskGroup() as tasks:
                for _ in range(STREAMS):
                    tasks.create_task(begin())
            assert len(mesh.router.asked) == STREAMS
            ended = [reader for reader, _ in open_now if reader.at_eof()]
            assert ended == []
            mesh.router.hang = False
            reader, writer = await first_words(listen)
            assert b"[DONE]" in await asyncio.wait_for(reader.readuntil(b"[DONE]"), 30)
            writer.close()
        finally:
            for _, writer in open_now:
                writer.close()
            for _, writer in open_now:
                with suppress(OSError):
                    await writer.wait_closed()
