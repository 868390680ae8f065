"""Models of real worker processes: files from one another, a memory budget, loads that operators ask for."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest
from penstock.worker.v1 import worker_pb2, worker_pb2_grpc

from runtime.channel import inner_channel
from runtime.errors import Code
from runtime.identity import Authority, NodeIdentity, Role
from runtime.model_folder import read_model_folder
from runtime.status import error_of
from tests.integration.test_worker_life import DIGITS, READY, Fleet, digit, fleet_of, published, worker_process
from tests.registry.mesh import Mesh, enrol_all, running_mesh
from tests.support.etcd import EtcdServer, running_etcd

UNAVAILABLE, DRAINING = worker_pb2.MODEL_STATE_UNAVAILABLE, worker_pb2.MODEL_STATE_DRAINING
ONE_COPY_BYTES = 24 * 1024 * 1024
FIRST, SECOND = ("digits", "1"), ("digits", "2")


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with running_etcd() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identities")


@pytest.fixture(scope="module")
def identities(home: Path) -> dict[Role, NodeIdentity]:
    return enrol_all(home)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def published_again(registry: Mesh, version: str) -> str:
    """Another version of the digits model, with the same files."""
    return await registry.publish(read_model_folder(DIGITS), version)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def test_with_the_registry_gone_a_second_worker_gets_the_model_from_the_first(
    tmp_path: Path, etcd: EtcdServer, identities: dict[Role, NodeIdentity], home: Path, stack: AsyncExitStack
) -> None:
    first, second = identities[Role.WORKER], Authority.open(home / "authority").enrol(tmp_path / "second-id", Role.WORKER)
    fleet = await stack.enter_async_context(fleet_of(etcd, first))
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with running_mesh(tmp_path, identities) as registry:
        digest = await published(registry)
        await fleet.assign((*FIRST, digest))
        await stack.enter_async_context(worker_process(tmp_path / "one", first, etcd.endpoint, registry.address))
        await fleet.until_states({FIRST: READY})
    other = Fleet(fleet.store, second)
    await other.assign((*FIRST, digest))
    worker = await stack.enter_async_context(worker_process(tmp_path / "two", second, etcd.endpoint, registry.address))
    await other.until_states({FIRST: READY})
    address = f"127.0.0.1:{worker.ports['port']}"
    async with inner_channel(address, identities[Role.OPERATOR], Role.WORKER) as channel:
        assert len((await digit(channel)).raw_output_contents[0]) == 40
    code, log = await worker.ended(signal.SIGTERM)
    assert code == 0
    assert f"worker {first.node_id}" in log, "the log says where the file came from"


async def test_operators_load_and_unload_beside_the_scheduler_within_the_memory_there_is(
    tmp_path: Path, etcd: EtcdServer, identities: dict[Role, NodeIdentity], stack: AsyncExitStack
) -> None:
    identity = identities[Role.WORKER]
    registry = await stack.enter_async_context(running_mesh(tmp_path, identities))
    fleet = await stack.enter_async_context(fleet_of(etcd, identity))
    digests = [await published(registry), await published_again(registry, "2")]
    await fleet.assign((*FIRST, digests[0]))
    process = worker_process(tmp_path, identity, etcd.endpoint, registry.address, f"--memory-bytes={ONE_COPY_BYTES}")
    worker = await stack.enter_async_context(process)
    await fleet.until_states({FIRST: READY})
    address = f"127.0.0.1:{worker.ports['port']}"
    channel = await stack.enter_async_context(inner_channel(address, identities[Role.OPERATOR], Role.WORKER))
    stub = worker_pb2_grpc.WorkerServiceStub(channel)
    load = worker_pb2.LoadModelRequest(model="digits", version="2", digest=digests[1])
    assert (await stub.LoadModel(load)).copy.state == READY
    await fleet.until_states({FIRST: UNAVAILABLE, SECOND: READY})
    presence = await fleet.presence()
    assert presence is not None
    assert presence.models[0].reason == "unloaded to make room for model 'digits' version 2"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.UnloadModel(worker_pb2.UnloadModelRequest(model="digits", version="1"))
    assert error_of(refused.value).code is Code.FAILED_PRECONDITION
    await stub.UnloadModel(worker_pb2.UnloadModelRequest(model="digits", version="2"))
    await fleet.until_states({FIRST: READY})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.LoadModel(worker_pb2.LoadModelRequest(model="digits", version="9", digest="e" * 64))
    assert error_of(refused.value).code is Code.NOT_FOUND
    assert (await worker.ended(signal.SIGTERM))[0] == 0


async def test_a_drain_shows_at_once_and_not_at_the_next_heartbeat(
    tmp_path: Path, etcd: EtcdServer, identities: dict[Role, NodeIdentity], stack: AsyncExitStack
) -> None:
    identity = identities[Role.WORKER]
    registry = await stack.enter_async_context(running_mesh(tmp_path, identities))
    fleet = await stack.enter_async_context(fleet_of(etcd, identity))
    await fleet.assign((*FIRST, await published(registry)))
    process = worker_process(tmp_path, identity, etcd.endpoint, registry.address, "--heartbeat-s=600")
    worker = await stack.enter_async_context(process)
    await fleet.until_states({FIRST: READY})
    seen: list[dict[tuple[str, str], int] | None] = []

    async def watch() -> None:
        while not seen or seen[-1] is not None:
            seen.append(await fleet.states())

    watching = asyncio.ensure_future(watch())
    await until(lambda: bool(seen))
    address = f"127.0.0.1:{worker.ports['port']}"
    async with inner_channel(address, identities[Role.OPERATOR], Role.WORKER) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        call = stub.Execute()
        opening = worker_pb2.RequestOpen(method=worker_pb2.METHOD_INFER, payload_bytes=100)
        await call.write(worker_pb2.ExecuteRequest(frames=[worker_pb2.RequestFrame(call_id=1, open=opening)]))
        draining = asyncio.ensure_future(stub.Drain(worker_pb2.DrainRequest(grace_ms=60_000)))
        await until(lambda: {FIRST: DRAINING} in seen)
        cancel = worker_pb2.RequestFrame(call_id=1, cancel=worker_pb2.RequestCancel())
        await call.write(worker_pb2.ExecuteRequest(frames=[cancel]))
        await draining
    async with asyncio.timeout(15):
        assert await worker.process.wait() == 0
        await watching
