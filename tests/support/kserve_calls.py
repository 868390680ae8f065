"""KServe calls of a mesh's gateway, as an application makes them, to models of `tests.support.adding`."""

from __future__ import annotations

import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio
from inference import grpc_service_pb2 as kserve
from inference import grpc_service_pb2_grpc

from tests.support.mesh import RunningMesh

_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    added: float
    version: str


@dataclass(frozen=True, slots=True)
class Gateway:
    """What is asked with one key."""

    stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub
    key: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.key}"),)

    def with_key(self, key: str) -> Gateway:
        return Gateway(self.stub, key)

    async def ask(self, model: str, version: str = "", *, timeout_s: float = _TIMEOUT_S) -> Answer:
        """What the model adds to 1. Raises AioRpcError."""
        request = kserve.ModelInferRequest(model_name=model, model_version=version)
        request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
        request.raw_input_contents.append(struct.pack("<f", 1.0))
        answer = await self.stub.ModelInfer(request, metadata=self.metadata, timeout=timeout_s)
        return Answer(struct.unpack("<f", answer.raw_output_contents[0])[0] - 1.0, answer.model_version)

    async def refusal(self, model: str, version: str = "") -> tuple[grpc.StatusCode, str]:
        """How a call fails that is to fail."""
        try:
            answer = await self.ask(model, version)
        except grpc.aio.AioRpcError as failure:
            return failure.code(), failure.details() or ""
        raise AssertionError(f"{model} {version} answered: {answer}")

    async def until_only(self, model: str, wanted: Answer) -> float:
        """Seconds until the first of twenty calls in a row that were answered so, made one after the other."""
        started_s = since_s = time.monotonic()
        in_a_row = 0
        while in_a_row < 20:
            asked_s = time.monotonic()
            assert asked_s - started_s < _TIMEOUT_S, f"{model} does not answer {wanted} alone after {_TIMEOUT_S:.0f} s"
            in_a_row, since_s = (in_a_row + 1, since_s) if await self.ask(model) == wanted else (0, time.monotonic())
        return since_s - started_s

    async def until_refused(self, model: str, version: str = "") -> float:
        """Seconds until the first call that fails, made one after the other."""
        return await self._until(model, version, answers=False)

    async def until_answered(self, model: str, version: str = "") -> float:
        """Seconds until the first call that is answered."""
        return await self._until(model, version, answers=True)

    async def _until(self, model: str, version: str, *, answers: bool) -> float:
        started_s = time.monotonic()
        while (asked_s := time.monotonic()) - started_s < _TIMEOUT_S:
            try:
                await self.ask(model, version)
                answered = True
            except grpc.aio.AioRpcError:
                answered = False
            if answered is answers:
                return asked_s - started_s
        raise AssertionError(f"{model} {version} {'does not answer' if answers else 'still answers'} after {_TIMEOUT_S:.0f} s")


@asynccontextmanager
async def gateway_of(mesh: RunningMesh) -> AsyncIterator[Gateway]:
    """With the first owner's key."""
    async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
        yield Gateway(grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel), mesh.api_key)
