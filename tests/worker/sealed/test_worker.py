"""The sealed port of a real worker: a real model, real places, and how it closes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from inference import grpc_service_pb2 as pb
from penstock.worker.v1 import worker_pb2
from penstock.worker.v1.worker_pb2_grpc import WorkerServiceStub

from runtime.errors import InvalidArgument, PenstockError
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import ModelVersion, Region, WorkerId
from runtime.sealed_client import ReservedWorker, worker_channel
from runtime.sealing import SealedPlace, reservation_id, token_sha256_of
from tests.worker.markov import language_spec, markov
from tests.worker.onnx_models import identity as identity_model
from tests.worker.onnx_models import spec
from worker.config import WorkerSettings
from worker.copies import open_model
from worker.execute.execution import Execution
from worker.front import Ports, opened_front
from worker.holds import Hold, HoldId
from worker.inference import TableInference
from worker.models import ModelTable
from worker.quota import QuotaPolicy, WorkerFull
from worker.types import CallContext

TOKEN = b"t" * 32
PIXELS = np.asarray([[1.5, -2.5]], dtype=np.float32)


@dataclass(slots=True)
class Worker:
    identity: NodeIdentity
    inference: TableInference
    ports: Ports
    stack: AsyncExitStack

    @asynccontextmanager
    async def reserved(self, model: str) -> AsyncIterator[ReservedWorker]:
        hold_id = HoldId(secrets.token_hex(16))
        await self.inference.holds.hold(Hold(hold_id, model, "1", "acme", 60.0, token_sha256_of(TOKEN)), wait_s=0)
        worker_id = WorkerId(self.identity.node_id)
        place = SealedPlace(worker_id, Region("here"), f"127.0.0.1:{self.ports.sealed}", self.identity.x25519_public_key)
        async with worker_channel(place, self.identity.authority_pem) as channel:
            name = reservation_id(worker_id, hold_id)
            yield ReservedWorker(name, ModelVersion("1"), 0.0, place, TOKEN, channel)
        self.inference.holds.release(hold_id)


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    node = Authority.open(tmp_path / "ca").enrol(tmp_path / "worker", Role.WORKER)
    table = ModelTable()
    table.add(await open_model(spec("echo"), identity_model(tmp_path / "echo", "FP32")))
    (tmp_path / "alphabet").mkdir()
    table.add(await open_model(language_spec(), markov(tmp_path / "alphabet")))
    inference = TableInference(table, quota=QuotaPolicy(1))
    execution = Execution(inference, WorkerId(node.node_id), asyncio.Event())
    settings = WorkerSettings(identity_dir=node.folder, sealed_port=0, leave_grace_s=0.0, drain_grace_s=5.0)
    async with AsyncExitStack() as stack:
        ports = await stack.enter_async_context(opened_front(settings, node, table, inference, execution, ()))
        yield Worker(node, inference, ports, stack)
    for loaded in list(table):
        await table.remove(loaded.spec.model, loaded.spec.version, grace_s=0)


def request(model: str = "echo") -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[PIXELS.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    return message


async def test_a_real_model_answers_on_the_reserved_place(worker: Worker) -> None:
    async with worker.reserved("echo") as client:
        for _ in range(3):
            assert (await client.infer(request())).raw_output_contents == [PIXELS.tobytes()]
        async with aclosing(client.stream_infer(request())) as answers:
            found = [answer async for answer in answers]
        assert found[-1].infer_response.raw_output_contents == [PIXELS.tobytes()]
        assert worker.inference.guard.in_flight == 1
    assert worker.inference.guard.in_flight == 0


async def test_text_is_generated_piece_by_piece(worker: Worker) -> None:
    async with worker.reserved("alphabet") as client:
        asked = worker_pb2.GenerateRequest(prompt="a", max_tokens=4)
        pieces = [piece async for piece in client.generate(asked)]
        assert sum(len(piece.token_ids) for piece in pieces) == 4
        assert pieces[-1].finish_reason == worker_pb2.FINISH_REASON_LENGTH
        with pytest.raises(InvalidArgument):
            _ = [piece async for piece in client.generate(worker_pb2.GenerateRequest())]
        assert worker.inference.guard.in_flight == 1


async def test_a_reserved_place_is_nobody_elses_also_while_it_is_idle(worker: Worker) -> None:
    async with worker.reserved("echo") as client:
        with pytest.raises(WorkerFull):
            await worker.inference.infer("echo", "1", request().SerializeToString(), CallContext())
        await client.infer(request())
        with pytest.raises(WorkerFull):
            await worker.inference.infer("echo", "1", request().SerializeToString(), CallContext(hold_id="0" * 32))
    await worker.inference.infer("echo", "1", request().SerializeToString(), CallContext())


async def test_what_the_engine_refuses_leaves_the_place_as_it_was(worker: Worker) -> None:
    async with worker.reserved("echo") as client:
        wrong = request()
        wrong.inputs[0].shape[:] = [7, 7]
        for _ in range(3):
            with pytest.raises(PenstockError):
                await client.infer(wrong)
        await client.infer(request())
        assert worker.inference.guard.in_flight == 1
    assert worker.inference.guard.in_flight == 0


async def test_the_inner_service_is_not_on_the_sealed_port(worker: Worker) -> None:
    async with worker.reserved("echo") as client, worker_channel(client.place, worker.identity.authority_pem) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await WorkerServiceStub(channel).Status(worker_pb2.StatusRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_worker_that_leaves_takes_no_sealed_calls(worker: Worker) -> None:
    async with worker.reserved("echo") as client:
        await client.infer(request())
        await worker.stack.aclose()
        with pytest.raises(PenstockError):
            await client.infer(request(), timeout_s=2)
