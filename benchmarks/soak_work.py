"""The work of a soak: small requests, streams that are cancelled on the way, models loaded and unloaded.

Each kind of work keeps a bounded number under way and counts what came of it. Knows the worker by its address only; what the
work does to the worker's process is measured elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as rpc

UNARY_AT_ONCE, STREAMS, WINDOW, CANCELLED_AT_ONCE = 16, 4, 16, 16
_SERVICE = "/inference.GRPCInferenceService"
_UNLOADED_S = 20.0


@dataclass(slots=True)
class Tally:
    """How far a kind of work is, and what failed by sentence."""

    done: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def failed(self, sentence: str) -> None:
        self.failures[sentence[:120]] += 1


Work = Callable[[grpc.aio.Channel, int, Tally], Awaitable[None]]


class NotOffered(Exception):
    """The worker does not do this kind of work; says why."""


def digits_request() -> bytes:
    """One row for `digits`: FP32 [1, 1, 8, 8]."""
    pixels = np.random.default_rng(7).random((1, 1, 8, 8), dtype=np.float32)
    request = pb.ModelInferRequest(model_name="digits")
    request.inputs.add(name="image", datatype="FP32", shape=pixels.shape)
    request.raw_input_contents.append(pixels.tobytes())
    return request.SerializeToString()


async def small_requests(channel: grpc.aio.Channel, count: int, tally: Tally) -> None:
    """Half as calls of their own, half over a few streams with a window each."""
    payload = digits_request()
    turns = iter(range(count))
    unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{_SERVICE}/ModelInfer")
    stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"{_SERVICE}/ModelStreamInfer")

    async def calls() -> None:
        for _ in turns:
            try:
                await unary(payload, timeout=60)
            except grpc.aio.AioRpcError as failure:
                tally.failed(f"{failure.code().name}: {failure.details()}")
            tally.done += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(UNARY_AT_ONCE):
            tasks.create_task(calls())
        for _ in range(STREAMS):
            tasks.create_task(_windowed(stream, payload, turns, tally))


async def _windowed(
    open_stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes], payload: bytes, turns: Iterator[int], tally: Tally
) -> None:
    """One stream with a window of requests unanswered."""
    stream = open_stream()
    waiting = 0
    for _ in turns:
        await stream.write(payload)
        waiting += 1
        if waiting >= WINDOW:
            await _answered(stream, tally)
            waiting -= 1
    await stream.done_writing()
    for _ in range(waiting):
        await _answered(stream, tally)


async def _answered(stream: grpc.aio.StreamStreamCall[bytes, bytes], tally: Tally) -> None:
    answer = await stream.read()
    if not isinstance(answer, bytes):
        raise RuntimeError(f"the stream ended early: {await stream.code()}")
    if sentence := pb.ModelStreamInferResponse.FromString(answer).error_message:
        tally.failed(sentence)
    tally.done += 1


async def cancelled_streams(channel: grpc.aio.Channel, count: int, tally: Tally) -> None:
    """Generations left at once, after the first pieces, or with requests of other models under way."""
    text = pb.ModelInferRequest(model_name="alphabet")
    text.inputs.add(name="text_input", datatype="BYTES", shape=(1,)).contents.bytes_contents.append(b"0")
    text_payload, digits_payload = text.SerializeToString(), digits_request()
    open_stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"{_SERVICE}/ModelStreamInfer")
    turns, dice = iter(range(count)), random.Random(5)

    async def one(number: int) -> None:
        stream = open_stream()
        await stream.write(text_payload)
        if number % 4 == 3:
            await stream.write(digits_payload)
        for _ in range(number % 3):
            answer = await stream.read()
            if not isinstance(answer, bytes) or pb.ModelStreamInferResponse.FromString(answer).error_message:
                tally.failed("a stream ended, or failed, before it was cancelled")
                break
        if dice.random() < 0.2:
            await asyncio.sleep(0.002)
        stream.cancel()
        if await stream.code() is not grpc.StatusCode.CANCELLED:
            tally.failed(f"ended with {await stream.code()}")

    async def many() -> None:
        for number in turns:
            await one(number)
            tally.done += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CANCELLED_AT_ONCE):
            tasks.create_task(many())


async def load_cycles(channel: grpc.aio.Channel, count: int, tally: Tally) -> None:
    """`digits` out and in again, with requests before each time and some still under way as it goes."""
    stub, payload = rpc.GRPCInferenceServiceStub(channel), digits_request()
    infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{_SERVICE}/ModelInfer")

    async def request(*, may_fail: bool) -> None:
        try:
            await infer(payload, timeout=60)
        except grpc.aio.AioRpcError as failure:
            if not may_fail:
                tally.failed(f"{failure.code().name}: {failure.details()}")

    for _ in range(count):
        await asyncio.gather(*(request(may_fail=False) for _ in range(4)))
        leaving = [asyncio.ensure_future(request(may_fail=True)) for _ in range(4)]
        try:
            await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="digits"), timeout=60)
        except grpc.aio.AioRpcError as failure:
            await asyncio.gather(*leaving)
            if failure.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise NotOffered(f"this worker does not unload: {failure.details()}") from failure
            raise
        await asyncio.gather(*leaving)
        await _until_unloaded(stub)
        await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="digits"), timeout=60)
        tally.done += 1


async def _until_unloaded(stub: Any) -> None:
    """Unloading may be answered before what is under way has ended."""
    async with asyncio.timeout(_UNLOADED_S):
        for turn in itertools.count():
            index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
            states = {model.state for model in index.models if model.name == "digits"}
            if not states & {"READY", "UNLOADING", "LOADING"}:
                return
            await asyncio.sleep(0.001 * min(turn, 20))
