"""A registry an ocean away: mTLS takes several round trips, and the channel gives it the time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from penstock.registry.v1 import models_pb2, models_pb2_grpc

from runtime.channel import inner_channel
from runtime.identity import NodeIdentity, Role
from tests.registry.mesh import running_mesh

ONE_WAY_S = 0.08


async def delayed(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65_536):
            await asyncio.sleep(ONE_WAY_S)
            sink.write(data)
    sink.close()


@asynccontextmanager
async def slow_link(address: str) -> AsyncIterator[str]:
    """An address that leads there, slowly."""
    host, port = address.split(":")

    async def connected(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, forth = await asyncio.open_connection(host, int(port))
        await asyncio.gather(delayed(near, forth), delayed(far, back))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_handshake_over_a_slow_link_completes(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> None:
    async with running_mesh(tmp_path, identities) as mesh, slow_link(mesh.address) as address:
        async with inner_channel(address, identities[Role.WORKER], Role.REGISTRY) as channel:
            assert not (await models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest())).models
