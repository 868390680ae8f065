"""LoadModel and UnloadModel on a real server: who may, what is checked, and that a failure keeps its code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from penstock.worker.v1 import worker_pb2, worker_pb2_grpc

from runtime.channel import inner_channel
from runtime.errors import Code, FailedPrecondition, PenstockError
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import Digest, ModelName, ModelVersion, WorkerId
from runtime.serving import Listen, serving
from runtime.status import error_of
from tests.worker.files.test_peers import NoInference
from worker.execute.execution import SERVICE, Execution
from worker.execute.model_service import ModelService
from worker.life.lifecycle import Copy
from worker.life.loading import MemoryShort
from worker.types import CopyState, Task

DIGEST = "d" * 64


@dataclass
class Models:
    """Loads at once, or fails with what the test says; notes what it is asked."""

    failure: PenstockError | None = None
    asked: list[tuple[str, ...]] = field(default_factory=list)

    async def load(self, model: ModelName, version: ModelVersion, digest: Digest) -> Copy:
        self.asked.append(("load", model, version, digest))
        if self.failure is not None:
            raise self.failure
        return Copy(model, version, digest, 0, CopyState.READY, task=Task.TENSOR, max_batch_size=8)

    async def unload(self, model: ModelName, version: ModelVersion) -> None:
        self.asked.append(("unload", model, version))
        if self.failure is not None:
            raise self.failure


@dataclass
class Rig:
    authority: Authority
    folder: Path
    port: int
    execution: Execution
    changes: list[bool]

    @asynccontextmanager
    async def stub(self, role: Role) -> AsyncIterator[Any]:
        identity: NodeIdentity = self.authority.enrol(self.folder / role.value, role)
        async with inner_channel(f"127.0.0.1:{self.port}", identity, Role.WORKER) as channel:
            yield worker_pb2_grpc.WorkerServiceStub(channel)


@asynccontextmanager
async def rig_of(folder: Path, models: Models | None) -> AsyncIterator[Rig]:
    authority = Authority.open(folder / "ca")
    identity = authority.enrol(folder / "worker", Role.WORKER)
    changes: list[bool] = []
    execution = Execution(
        NoInference(),
        WorkerId(identity.node_id),
        asyncio.Event(),
        models=ModelService(models),
        changed=lambda: changes.append(execution.draining),
    )
    async with serving([Listen("127.0.0.1", 0, identity)], [execution.register], [SERVICE], drain_grace_s=0.1) as running:
        yield Rig(authority, folder, running.ports[0], execution, changes)


def load(model: str = "m", version: str = "1", digest: str = DIGEST) -> worker_pb2.LoadModelRequest:
    return worker_pb2.LoadModelRequest(model=model, version=version, digest=digest)


def unload(model: str = "m", version: str = "1") -> worker_pb2.UnloadModelRequest:
    return worker_pb2.UnloadModelRequest(model=model, version=version)


async def failure(call: Any) -> PenstockError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return error_of(refused.value)


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.SCHEDULER])
async def test_operators_and_schedulers_load_and_unload(tmp_path: Path, role: Role) -> None:
    models = Models()
    async with rig_of(tmp_path, models) as rig, rig.stub(role) as stub:
        answer = await stub.LoadModel(load())
        assert (answer.copy.model, answer.copy.state, answer.copy.task) == ("m", worker_pb2.MODEL_STATE_READY, "tensor")
        await stub.UnloadModel(unload())
    assert models.asked == [("load", "m", "1", DIGEST), ("unload", "m", "1")]


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.WORKER, Role.REGISTRY])
async def test_nobody_else_does(tmp_path: Path, role: Role) -> None:
    models = Models()
    async with rig_of(tmp_path, models) as rig, rig.stub(role) as stub:
        assert (await failure(stub.LoadModel(load()))).code is Code.PERMISSION_DENIED
        assert (await failure(stub.UnloadModel(unload()))).code is Code.PERMISSION_DENIED
    assert models.asked == []


async def test_fields_that_name_no_version_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    async with rig_of(tmp_path, Models()) as rig, rig.stub(Role.OPERATOR) as stub:
        for request in (
            load(model=""),
            load(version=""),
            load(version="0"),
            load(version="x"),
            load(digest=""),
            load(digest="D"),
        ):
            assert (await failure(stub.LoadModel(request))).code is Code.INVALID_ARGUMENT
        assert (await failure(stub.UnloadModel(unload(version="latest")))).code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("error", [MemoryShort("needs 5 of 4"), FailedPrecondition("the scheduler orders it")])
async def test_a_failure_keeps_its_class_and_sentence(tmp_path: Path, error: PenstockError) -> None:
    async with rig_of(tmp_path, Models(error)) as rig, rig.stub(Role.OPERATOR) as stub:
        for call in (stub.LoadModel(load()), stub.UnloadModel(unload())):
            came = await failure(call)
            assert (type(came), came.message) == (type(error), error.message)


async def test_a_worker_that_drains_loads_nothing_and_tells_of_its_drain_at_once(tmp_path: Path) -> None:
    models = Models()
    async with rig_of(tmp_path, models) as rig, rig.stub(Role.OPERATOR) as stub:
        await rig.execution.drain(0.0)
        assert rig.changes == [True]
        assert (await failure(stub.LoadModel(load()))).code is Code.UNAVAILABLE
    assert models.asked == []


async def test_one_that_serves_alone_says_what_to_call_instead(tmp_path: Path) -> None:
    async with rig_of(tmp_path, None) as rig:
        async with rig.stub(Role.OPERATOR) as stub:
            assert "RepositoryModelLoad" in (await failure(stub.LoadModel(load()))).message
        async with rig.stub(Role.WORKER) as stub:
            with pytest.raises(grpc.aio.AioRpcError, match="shares no files"):
                _ = [part async for part in stub.ReadArtifact(worker_pb2.ReadArtifactRequest(sha256=DIGEST))]
