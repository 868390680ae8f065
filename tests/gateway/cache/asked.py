"""A response cache over a fleet in memory, and the way to a worker that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from inference import grpc_service_pb2 as kserve
from penstock.worker.v1 import worker_pb2

from gateway.cache.response_cache import ResponseCache
from gateway.cache.types import CacheSettings
from gateway.exchange import Exchange
from gateway.links.types import CallContext, Method
from placement.types import Copy, Request, Worker
from runtime.errors import PenstockError
from runtime.ids import Digest, ModelName, ModelVersion
from tests.gateway.fakes import copy_of, worker_of
from tests.gateway.routed import Routed, routed
from tests.support.manual_clock import ManualClock

OURS, THEIRS = CallContext("r", "ours"), CallContext("r", "theirs")


def repeatable(model: str = "m", version: str = "1", digest: str = "d" * 64, task: str = "tensor") -> Copy:
    return replace(copy_of(model, version, task=task), cacheable=True, digest=Digest(digest))


def tensors(value: bytes = b"\0\0\0\0", request_id: str = "", priority: int = 0) -> bytes:
    request = kserve.ModelInferRequest(model_name="m", id=request_id, raw_input_contents=[value])
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    if priority:
        request.parameters["priority"].uint64_param = priority
    return request.SerializeToString(deterministic=True)


def prompt(text: str = "hi", **sampling: float) -> bytes:
    wanted = worker_pb2.Sampling(**sampling)  # type: ignore[arg-type]
    return worker_pb2.GenerateRequest(model="m", prompt=text, sampling=wanted).SerializeToString(deterministic=True)


@dataclass
class Asked:
    """What workers are asked, and what they answer: their own count, under the request's id."""

    version: str = "1"
    model: str = "m"
    gate: asyncio.Event | None = None
    errors: list[PenstockError] = field(default_factory=list)
    """Raised in turn, before any answer."""
    pieces: int = 3
    finish: worker_pb2.FinishReason.ValueType = worker_pb2.FINISH_REASON_STOP
    text: str = "a"
    cut_after: int | None = None
    """A generation ends without an end after so many messages."""
    payloads: list[bytes] = field(default_factory=list)
    under_way: int = 0

    @property
    def times(self) -> int:
        return len(self.payloads)

    async def infer(self, request: Request, payload: bytes, call: CallContext, exchange: Exchange) -> bytes:
        await self._reach(payload, exchange)
        asked = kserve.ModelInferRequest.FromString(payload)
        answer = kserve.ModelInferResponse(model_name=request.model, model_version=self.version, id=asked.id)
        answer.raw_output_contents.append(self.times.to_bytes(4, "little"))
        return answer.SerializeToString()

    async def stream(
        self, method: Method, request: Request, payload: bytes, call: CallContext, exchange: Exchange
    ) -> AsyncGenerator[bytes, None]:
        await self._reach(payload, exchange)
        number = self.times
        for place in range(self.pieces):
            if place == self.cut_after:
                return
            last = place == self.pieces - 1
            message = worker_pb2.GenerateResponse(text=f"{self.text}{number}")
            if last:
                message.finish_reason = self.finish
                message.usage.completion_tokens = self.pieces
            yield message.SerializeToString()

    async def _reach(self, payload: bytes, exchange: Exchange) -> None:
        self.payloads.append(payload)
        exchange.granted("w", self.model, self.version)
        self.under_way += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.errors:
                raise self.errors.pop(0)
        finally:
            self.under_way -= 1


@dataclass
class Cached:
    mesh: Routed
    cache: ResponseCache
    asked: Asked
    clock: ManualClock

    async def infer(
        self, payload: bytes, call: CallContext = OURS, version: str = "1", exchange: Exchange | None = None, **of: object
    ) -> int:
        """Which of the worker's answers came."""
        raw = await self.raw(payload, call, version, exchange, **of)
        return int.from_bytes(kserve.ModelInferResponse.FromString(raw).raw_output_contents[0], "little")

    async def raw(
        self, payload: bytes, call: CallContext = OURS, version: str = "1", exchange: Exchange | None = None, **of: object
    ) -> bytes:
        request = replace(Request(ModelName("m"), ModelVersion(version)), **of)  # type: ignore[arg-type]
        return await self.cache.infer(self.asked.infer, request, payload, call, exchange or Exchange("ModelInfer"))

    async def text(
        self, payload: bytes, call: CallContext = OURS, exchange: Exchange | None = None, most: int | None = None
    ) -> list[str]:
        request = Request(ModelName("m"), ModelVersion("1"))
        exchange = exchange or Exchange("CreateCompletion")
        texts: list[str] = []
        answers = self.cache.stream(self.asked.stream, Method.GENERATE, request, payload, call, exchange)
        try:
            async for answer in answers:
                texts.append(worker_pb2.GenerateResponse.FromString(answer).text)
                if len(texts) == most:
                    break
        finally:
            await answers.aclose()
        return texts


@asynccontextmanager
async def cached(*workers: Worker, settings: CacheSettings | None = None) -> AsyncIterator[Cached]:
    clock = ManualClock()
    async with routed(*(workers or (worker_of("w", repeatable()),))) as mesh:
        cache = ResponseCache(mesh.fleet, mesh.metrics, settings or CacheSettings(), clock.monotonic_s)
        yield Cached(mesh, cache, Asked(), clock)


async def until(holds: Callable[[], bool]) -> None:
    """Let others run until it is so."""
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0)
