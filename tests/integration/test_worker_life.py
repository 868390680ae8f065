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
from penstock.registry.v1 import models_pb2
from penstock.scheduler.v1 import scheduler_pb2
from penstock.worker.v1 import presence_pb2, worker_pb2, worker_pb2_grpc

from runtime.channel import inner_channel
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import NodeIdentity, Role
from runtime.ids import ModelName, ModelVersion, Region, WorkerId, assignment_key, model_key, presence_key
from runtime.manifests import digest_of, sign_manifest
from runtime.model_folder import complete_manifest, hash_file, read_model_folder
from runtime.records import RecordVerifier
from tests.registry.mesh import PUBLISHER, Mesh, enrol_all, running_mesh, upload
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
    folder = read_model_folder(DIGITS)
    manifest = complete_manifest(folder, version, {file.path: hash_file(file.file) for file in folder.files})
    await registry.models().CreateModel(models_pb2.CreateModelRequest(model="digits"))
    for file in folder.files:
        await upload(registry.models(), file.file.read_bytes())
    signed = sign_manifest(PUBLISHER, manifest)
    await registry.models().PublishVersion(models_pb2.PublishVersionRequest(manifest=signed))
    return digest_of(signed)


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
                answer = await grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request())
                assert len(answer.raw_output_contents[0]) == 40
                status = await worker_pb2_grpc.WorkerServiceStub(channel).Status(worker_pb2.StatusRequest())
                assert [(copy.model, copy.state, copy.task) for copy in status.models] == [("digits", READY, "tensor")]
                await fleet.assign()
                await fleet.until_states({})
                assert await fleet.store.get(key) is None
                with pytest.raises(grpc.aio.AioRpcError) as unknown:
                    await grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request())
                assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
            code, _ = await worker.ended(signal.SIGTERM)
            assert code == 0
            assert await fleet.presence() is None, "the lease was revoked, not left to expire"
