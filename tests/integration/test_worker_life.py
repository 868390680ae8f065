"""A worker's life in a mesh: a real worker process, a real etcd, a real registry, orders as the scheduler writes them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
from inference import grpc_service_pb2, grpc_service_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2
from penstock.worker.v1 import presence_pb2, worker_pb2, worker_pb2_grpc

from runtime.channel import inner_channel
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import NodeIdentity, Role
from runtime.ids import ModelName, ModelVersion, Region, WorkerId, assignment_key, model_key, presence_key
from runtime.model_folder import hash_file, read_model_folder
from runtime.records import RecordVerifier
from tests.registry.mesh import PUBLISHER, Mesh, enrol_all, running_mesh
from tests.support.etcd import EtcdServer, running_etcd

DIGITS = Path(__file__).parents[2] / "cli" / "demo" / "digits"
HERE = Region("here")
READY = worker_pb2.MODEL_STATE_READY


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with running_etcd() as server:
        yield server


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, NodeIdentity]:
    return enrol_all(tmp_path_factory.mktemp("identities"))


async def published(registry: Mesh, version: str = "1") -> str:
    """The digits model in the registry; its digest."""
    return await registry.publish(read_model_folder(DIGITS), version)


@dataclass(slots=True)
class Fleet:
    """What others see of the worker, and what the scheduler tells it."""

    store: EtcdStore
    identity: NodeIdentity

    @property
    def worker_id(self) -> WorkerId:
        return WorkerId(self.identity.node_id)

    async def assign(self, *models: tuple[str, str, str], generation: int = 1) -> None:
        message = scheduler_pb2.Assignment(
            models=[
                scheduler_pb2.AssignedModel(model=model, version=version, digest=digest, generation=generation)
                for model, version, digest in models
            ]
        )
        await self.store.put(assignment_key(HERE, self.worker_id), message.SerializeToString())

    async def presence(self) -> presence_pb2.Presence | None:
        item = await self.store.get(presence_key(HERE, self.worker_id))
        if item is None:
            return None
        record = RecordVerifier(self.identity.authority_pem).open(item.value, now_wall_s=time.time())
        assert record.signer.role is Role.WORKER
        return presence_pb2.Presence.FromString(record.payload)

    async def states(self) -> dict[tuple[str, str], int] | None:
        presence = await self.presence()
        return None if presence is None else {(copy.model, copy.version): copy.state for copy in presence.models}

    async def until_states(self, wanted: dict[tuple[str, str], int] | None) -> None:
        async with asyncio.timeout(30):
            while await self.states() != wanted:
                await asyncio.sleep(0.02)


@dataclass(slots=True)
class Running:
    process: asyncio.subprocess.Process
    ports: dict[str, int]

    async def ended(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


@asynccontextmanager
async def worker_process(folder: Path, identity: NodeIdentity, etcd: str, registry: str, *more: str) -> AsyncIterator[Running]:
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    (folder / "trusted").write_text(f"{bytes(PUBLISHER.verify_key).hex()}\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker"),
        *(f"--identity-dir={identity.folder}", f"--region={HERE}", f"--etcd-endpoints={etcd}"),
        *(f"--registry-address={registry}", f"--trusted-signers={folder / 'trusted'}", f"--cache-dir={folder / 'cache'}"),
        *(f"--ready-file={ready}", "--metrics-port=0", *more),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            while not ready.exists():
                assert process.returncode is None, await process.communicate()
                await asyncio.sleep(0.02)
        yield Running(process, json.loads(ready.read_text()))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def fleet_of(etcd: EtcdServer, identity: NodeIdentity) -> AsyncIterator[Fleet]:
    async with EtcdStore(EtcdSettings.at(etcd.endpoint)) as store:
        await store.delete_prefix("/penstock/")
        yield Fleet(store, identity)


def request() -> grpc_service_pb2.ModelInferRequest:
    image = grpc_service_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=[1, 1, 8, 8])
    return grpc_service_pb2.ModelInferRequest(
        model_name="digits", id="7", inputs=[image], raw_input_contents=[struct.pack("<64f", *[0.5] * 64)]
    )


async def digit(channel: grpc.aio.Channel) -> grpc_service_pb2.ModelInferResponse:
    return await grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request())


async def test_it_joins_loads_what_it_is_told_to_answers_and_leaves(
    tmp_path: Path, etcd: EtcdServer, identities: dict[Role, NodeIdentity]
) -> None:
    identity = identities[Role.WORKER]
    async with running_mesh(tmp_path, identities) as registry, fleet_of(etcd, identity) as fleet:
        digest = await published(registry)
        await fleet.assign(("digits", "1", digest))
        async with worker_process(tmp_path, identity, etcd.endpoint, registry.address) as worker:
            await fleet.until_states({("digits", "1"): READY})
            presence = await fleet.presence()
            assert presence is not None
            assert presence.address == f"127.0.0.1:{worker.ports['port']}"
            assert presence.x25519_public_key == identity.x25519_public_key
            assert presence.hardware.cpu_cores >= 1
            key = model_key(ModelName("digits"), ModelVersion("1"), HERE, fleet.worker_id)
            held = await fleet.store.get(key)
            assert held is not None
            assert held.lease_id != 0
            async with inner_channel(f"127.0.0.1:{worker.ports['port']}", identities[Role.OPERATOR], Role.WORKER) as channel:
                answer = await digit(channel)
                assert len(answer.raw_output_contents[0]) == 40
                status = await worker_pb2_grpc.WorkerServiceStub(channel).Status(worker_pb2.StatusRequest())
                assert [(copy.model, copy.state, copy.task) for copy in status.models] == [("digits", READY, "tensor")]
                await fleet.assign()
                await fleet.until_states({})
                assert await fleet.store.get(key) is None
                with pytest.raises(grpc.aio.AioRpcError) as unknown:
                    await digit(channel)
                assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
            code, _ = await worker.ended(signal.SIGTERM)
            assert code == 0
            assert await fleet.presence() is None, "the lease was revoked, not left to expire"


async def test_after_a_kill_it_comes_back_and_loads_from_its_disk_without_the_registry(
    tmp_path: Path, etcd: EtcdServer, identities: dict[Role, NodeIdentity]
) -> None:
    identity = identities[Role.WORKER]
    async with fleet_of(etcd, identity) as fleet:
        async with running_mesh(tmp_path, identities) as registry:
            await fleet.assign(("digits", "1", await published(registry)))
            async with worker_process(tmp_path, identity, etcd.endpoint, registry.address) as worker:
                await fleet.until_states({("digits", "1"): READY})
                before = await fleet.presence()
                await worker.ended(signal.SIGKILL)
        async with worker_process(tmp_path, identity, etcd.endpoint, registry.address) as worker:
            async with asyncio.timeout(30):
                while True:
                    after = await fleet.presence()
                    if (
                        after
                        and after.address == f"127.0.0.1:{worker.ports['port']}"
                        and [copy.state for copy in after.models] == [READY]
                    ):
                        break
                    await asyncio.sleep(0.02)
            assert before is not None
            assert after.sequence > before.sequence


async def test_a_file_altered_on_its_disk_is_fetched_anew_before_it_is_loaded(
    tmp_path: Path, etcd: EtcdServer, identities: dict[Role, NodeIdentity]
) -> None:
    identity = identities[Role.WORKER]
    async with running_mesh(tmp_path, identities) as registry, fleet_of(etcd, identity) as fleet:
        digest = await published(registry)
        (file,) = read_model_folder(DIGITS).files
        content = file.file.read_bytes()
        altered = tmp_path / "cache" / "files" / hash_file(file.file)
        altered.parent.mkdir(parents=True)
        altered.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        await fleet.assign(("digits", "1", digest))
        async with worker_process(tmp_path, identity, etcd.endpoint, registry.address):
            await fleet.until_states({("digits", "1"): READY})
            assert altered.read_bytes() == content


async def test_models_of_a_signer_it_does_not_trust_fail_with_the_reason_in_its_presence(
    tmp_path: Path, etcd: EtcdServer, identities: dict[Role, NodeIdentity]
) -> None:
    identity = identities[Role.WORKER]
    async with running_mesh(tmp_path, identities) as registry, fleet_of(etcd, identity) as fleet:
        digest = await published(registry)
        async with worker_process(tmp_path, identity, etcd.endpoint, registry.address) as worker:
            (tmp_path / "trusted").write_text("# nobody any more\n")
            await fleet.assign(("digits", "1", digest), ("digits", "9", "e" * 64))
            failed = worker_pb2.MODEL_STATE_FAILED
            await fleet.until_states({("digits", "1"): failed, ("digits", "9"): failed})
            presence = await fleet.presence()
            assert presence is not None
            reasons = [copy.reason for copy in presence.models]
            assert "not trusted here" in reasons[0]
            assert "e" * 64 in reasons[1]
            (tmp_path / "trusted").write_text(f"{bytes(PUBLISHER.verify_key).hex()}\n")
            await fleet.assign(("digits", "1", digest), generation=2)
            await fleet.until_states({("digits", "1"): READY})
            assert (await worker.ended(signal.SIGTERM))[0] == 0


async def test_an_etcd_that_comes_back_empty_ends_nothing_and_finds_the_worker_again(
    tmp_path: Path, identities: dict[Role, NodeIdentity]
) -> None:
    identity = identities[Role.WORKER]
    with running_etcd() as etcd:
        async with running_mesh(tmp_path, identities) as registry, fleet_of(etcd, identity) as fleet:
            await fleet.assign(("digits", "1", await published(registry)))
            async with worker_process(tmp_path, identity, etcd.endpoint, registry.address) as worker:
                await fleet.until_states({("digits", "1"): READY})
                address = f"127.0.0.1:{worker.ports['port']}"
                async with inner_channel(address, identities[Role.OPERATOR], Role.WORKER) as channel:
                    await etcd.akill()
                    etcd.empty()
                    assert (await digit(channel)).id == "7"
                    await etcd.astart()
                    await fleet.until_states({("digits", "1"): READY})
                    assert (await digit(channel)).id == "7"
                    assert worker.process.returncode is None


async def test_told_to_drain_it_leaves_and_ends_by_itself(
    tmp_path: Path, etcd: EtcdServer, identities: dict[Role, NodeIdentity]
) -> None:
    identity = identities[Role.WORKER]
    async with fleet_of(etcd, identity) as fleet:
        async with worker_process(tmp_path, identity, etcd.endpoint, "127.0.0.1:1") as worker:
            await fleet.until_states({})
            address = f"127.0.0.1:{worker.ports['port']}"
            async with inner_channel(address, identities[Role.OPERATOR], Role.WORKER) as channel:
                await worker_pb2_grpc.WorkerServiceStub(channel).Drain(worker_pb2.DrainRequest(grace_ms=1000))
            async with asyncio.timeout(10):
                assert await worker.process.wait() == 0
            assert await fleet.presence() is None


async def test_a_signal_while_it_waits_for_a_registry_that_is_away_ends_it_in_order(
    tmp_path: Path, etcd: EtcdServer, identities: dict[Role, NodeIdentity]
) -> None:
    identity = identities[Role.WORKER]
    async with fleet_of(etcd, identity) as fleet:
        await fleet.assign(("digits", "1", "d" * 64))
        async with worker_process(tmp_path, identity, etcd.endpoint, "127.0.0.1:1") as worker:
            await fleet.until_states({("digits", "1"): worker_pb2.MODEL_STATE_LOADING})
            async with asyncio.timeout(10):
                code, log = await worker.ended(signal.SIGTERM)
            assert code == 0
            assert "Traceback" not in log
            assert await fleet.presence() is None


async def test_with_etcd_away_it_starts_and_ends(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> None:
    async with worker_process(tmp_path, identities[Role.WORKER], "127.0.0.1:1", "127.0.0.1:1") as worker:
        async with asyncio.timeout(15):
            code, log = await worker.ended(signal.SIGTERM)
        assert code == 0
        assert "Traceback" not in log


async def started(folder: Path, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", "worker", *words),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_alone_it_serves_folders_in_plaintext_without_a_mesh(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    process = await started(
        tmp_path, "--standalone", "--model-folder", str(DIGITS), "--kserve-port", "0", "--ready-file", str(ready)
    )
    try:
        async with asyncio.timeout(30):
            while not ready.exists():
                assert process.returncode is None, await process.communicate()
                await asyncio.sleep(0.02)
        ports = json.loads(ready.read_text())
        assert ports.keys() == {"kserve_port"}
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['kserve_port']}") as channel:
            assert len((await digit(channel)).raw_output_contents[0]) == 40
            stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert (await stub.ServerReady(grpc_service_pb2.ServerReadyRequest())).ready
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_inner_port_is_for_this_meshs_gateways_and_operators(
    tmp_path: Path, etcd: EtcdServer, identities: dict[Role, NodeIdentity]
) -> None:
    identity = identities[Role.WORKER]
    async with worker_process(tmp_path, identity, etcd.endpoint, "127.0.0.1:1", "--kserve-port=0") as worker:
        address = f"127.0.0.1:{worker.ports['port']}"
        async with inner_channel(address, identities[Role.SCHEDULER], Role.WORKER) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await digit(channel)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request(), timeout=5)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.insecure_channel(f"127.0.0.1:{worker.ports['kserve_port']}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await worker_pb2_grpc.WorkerServiceStub(channel).Status(worker_pb2.StatusRequest())
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_what_keeps_it_from_starting_is_one_clear_line(tmp_path: Path) -> None:
    process = await started(tmp_path, "--standalone", "--kserve-port=0", f"--model-folder={tmp_path}")
    output, errors = await process.communicate()
    assert (process.returncode, output) == (1, b"")
    (line,) = [line for line in errors.decode().splitlines() if not line.startswith("{")]
    assert line.startswith("penstock: ")
    assert "holds no model.toml" in line
