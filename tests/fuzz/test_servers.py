"""The worker's ports on loopback, with messages that are nearly right: a proper status each time, a good answer afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inference import grpc_service_pb2 as pb
from penstock.worker.v1 import worker_pb2

from runtime.serving import Listen, serving
from tests.fuzz.choices import Choices
from tests.fuzz.messages import execute_request, infer_request, spoilt
from tests.fuzz.process import Worker, close_worker, good_request, worker
from worker.execute.execution import SERVICE as EXECUTE
from worker.kserve.servicer import SERVICE as KSERVE
from worker.kserve.servicer import register_inference

T = TypeVar("T")

bytes_of_choices = st.one_of(st.binary(max_size=64), st.binary(min_size=64, max_size=400))
each_input = settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))

BUGS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
_END_S = 20.0
_GOOD = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


@dataclass(frozen=True, slots=True)
class Served:
    """A worker's servicers on one port, and raw calls to them: bytes in, bytes out."""

    here: Worker
    port: int
    infer: Any
    stream: Any
    execute: Any

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        return self.here.run(main)

    async def check_unharmed(self) -> None:
        """All that was opened has ended, and a good request is answered by each door."""
        async with asyncio.timeout(_END_S):
            while self.here.execution.open_calls or self.here.inference.load.in_flight:
                await asyncio.sleep(0)
            answer = pb.ModelInferResponse.FromString(await self.infer(good_request(_GOOD)))
            assert answer.raw_output_contents[0] == _GOOD.tobytes()
            assert await self._executed() == _GOOD.tobytes()

    async def _executed(self) -> bytes:
        opened = worker_pb2.RequestOpen(method=worker_pb2.METHOD_INFER, payload=good_request(_GOOD))
        frames = [worker_pb2.RequestFrame(call_id=1, open=opened, payload_end=True)]
        call = self.execute()
        await call.write(worker_pb2.ExecuteRequest(frames=frames).SerializeToString())
        await call.done_writing()
        answers = [frame.data async for raw in call for frame in worker_pb2.ExecuteResponse.FromString(raw).frames]
        return pb.ModelInferResponse.FromString(b"".join(answers)).raw_output_contents[0]


@asynccontextmanager
async def opened() -> AsyncIterator[Served]:
    here = worker()
    registers = [here.execution.register, register_inference(here.inference, here.table, inner=False)]
    async with serving([Listen("127.0.0.1", 0)], registers, [EXECUTE, KSERVE], drain_grace_s=1.0) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            yield Served(
                here,
                running.ports[0],
                channel.unary_unary(f"/{KSERVE}/ModelInfer"),
                channel.stream_stream(f"/{KSERVE}/ModelStreamInfer"),
                channel.stream_stream(f"/{EXECUTE}/Execute"),
            )


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    opening = opened()
    here = worker()
    try:
        yield here.run(opening.__aenter__())
    finally:
        here.run(opening.__aexit__(None, None, None))
        close_worker()


@each_input
@given(data=bytes_of_choices)
def test_model_infer(served: Served, data: bytes) -> None:
    choices = Choices(data)

    async def call() -> None:
        payload = data if choices.flag(8) else spoilt(choices, infer_request(choices).SerializeToString())
        try:
            await served.infer(payload, timeout=_END_S)
        except grpc.aio.AioRpcError as failed:
            assert failed.code() not in BUGS, failed.details()
            assert failed.details()
        await served.check_unharmed()

    served.run(call())


@each_input
@given(data=bytes_of_choices)
def test_model_stream_infer(served: Served, data: bytes) -> None:
    choices = Choices(data)

    async def call() -> None:
        metadata = (("triton_grpc_error", "true"),) if choices.flag() else ()
        stream = served.stream(metadata=metadata, timeout=_END_S)
        payloads = [spoilt(choices, infer_request(choices).SerializeToString()) for _ in range(1 + choices.below(4))]
        code, answers = await _exchange(stream, payloads, choices)
        assert code not in BUGS
        for answer in answers:
            assert "internal" not in pb.ModelStreamInferResponse.FromString(answer).error_message
        await served.check_unharmed()

    served.run(call())


@each_input
@given(data=bytes_of_choices)
def test_execute(served: Served, data: bytes) -> None:
    choices = Choices(data)

    async def call() -> None:
        payloads = [spoilt(choices, execute_request(choices).SerializeToString()) for _ in range(1 + choices.below(6))]
        _, answers = await _exchange(served.execute(), payloads, choices, cancel=True)
        for answer in answers:
            for frame in worker_pb2.ExecuteResponse.FromString(answer).frames:
                assert frame.failure.code not in {code.value[0] for code in BUGS}, frame
        await served.check_unharmed()

    served.run(call())


@each_input
@given(data=bytes_of_choices, hello=st.booleans())
def test_noise_on_the_socket(served: Served, data: bytes, hello: bool) -> None:
    async def call() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if hello else b"") + data)
        with suppress(ConnectionError):
            await writer.drain()
            await reader.read(64)
        writer.close()
        await served.check_unharmed()

    served.run(call())


async def _exchange(
    stream: Any, payloads: list[bytes], choices: Choices, *, cancel: bool = False
) -> tuple[grpc.StatusCode | None, list[bytes]]:
    """Write, read some, then end it or cancel it; the server's status, if it was to give one, and its answers.

    `cancel`: always, because some calls may wait for credit.
    """
    answers: list[bytes] = []

    async def read(count: int) -> None:
        while len(answers) < count and (answer := await stream.read()) is not grpc.aio.EOF:
            answers.append(answer)

    async with asyncio.timeout(_END_S):
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the server may have ended the stream meanwhile
            for payload in payloads:
                await stream.write(payload)
            if cancel or choices.flag(3):
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await read(choices.below(4))
                stream.cancel()
                return None, answers
            await stream.done_writing()
            await read(10_000)
        code = await stream.code()
        assert isinstance(code, grpc.StatusCode)
        if await stream.details() == "Internal error from Core":
            return None, answers  # grpc.aio's own word for a write that met the stream's end, not the server's
        return code, answers
