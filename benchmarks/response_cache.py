"""What the response cache costs at the gateway, in CPU: a hit, a miss on top of the worker's way, and a model without a cache.

    python -m benchmarks.response_cache

One process, no network: the way to a worker is a coroutine that answers at once, so that what is left is the cache's own.
Rounds of all cases take turns, so that a machine that slows down slows all of them; the least of the rounds is shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

from inference import grpc_service_pb2 as kserve
from penstock.worker.v1 import worker_pb2
from prometheus_client import CollectorRegistry

from gateway.cache.response_cache import ResponseCache
from gateway.cache.types import CacheSettings
from gateway.dispatch import Dispatch
from gateway.exchange import Exchange
from gateway.fleet import Fleet
from gateway.links.types import CallContext, Method
from gateway.metrics import GatewayMetrics
from placement.types import Copy, CopyState, Request, Worker
from runtime.clock import SystemClock
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId

ROUNDS, OF_EACH = 7, 2_000
CALL = CallContext("r", "tenant")
VERSION = ModelVersion("1")
SIZES = {"256 B": 256, "16 KiB": 16 << 10, "602 KB": 3 * 224 * 224 * 4}
PIECES = 21


class AtOnce:
    """A router whose workers take no time."""

    def __init__(self, answer: bytes, messages: list[bytes]) -> None:
        self._answer, self._messages = answer, messages

    async def infer(self, request: Request, payload: bytes, call: CallContext, exchange: Exchange | None = None) -> bytes:
        if exchange is not None:
            exchange.granted("w", request.model, VERSION)
        return self._answer

    async def stream(
        self, method: Method, request: Request, payload: bytes, call: CallContext, exchange: Exchange | None = None
    ) -> AsyncGenerator[bytes, None]:
        if exchange is not None:
            exchange.granted("w", request.model, VERSION)
        for message in self._messages:
            yield message


def main() -> None:
    asyncio.run(_measure())


async def _measure() -> None:
    metrics = GatewayMetrics(CollectorRegistry())
    fleet = _fleet()
    cache = ResponseCache(fleet, metrics, CacheSettings(max_bytes=1 << 30))
    router = AtOnce(_answer(), _messages())
    plain, cached = Dispatch(router), Dispatch(router, cache=cache)  # type: ignore[arg-type]  # all that is called of a router
    cases: dict[str, Callable[[int], Awaitable[object]]] = {}
    for name, size_bytes in SIZES.items():
        payloads = _payloads(size_bytes)
        for what, dispatch, model in (("no cache", plain, "kept"), ("a model without", cached, "other")):
            cases[f"{name:>7}  {what}"] = _infer(dispatch, model, payloads[:1])
        cases[f"{name:>7}  a miss"] = _infer(cached, "kept", payloads)
        cases[f"{name:>7}  a hit"] = _infer(cached, "kept", payloads[:1])
    for what, dispatch, texts in (("no cache", plain, 1), ("a miss", cached, 1 << 40), ("a hit", cached, 1)):
        cases[f"{PIECES} pieces  {what}"] = _text(dispatch, texts)
    least_us = dict.fromkeys(cases, float("inf"))
    for _ in range(ROUNDS):
        for name, case in cases.items():
            count = OF_EACH if "602" not in name else OF_EACH // 20
            began_s = time.process_time()
            for _number in range(count):
                await case(_number)
            least_us[name] = min(least_us[name], (time.process_time() - began_s) / count * 1e6)
    for name, spent_us in least_us.items():
        print(f"{name:<32} {spent_us:9.2f} us")


def _fleet() -> Fleet:
    def no_link(_: Worker) -> None:
        raise AssertionError("nobody is asked over a link")

    fleet = Fleet(None, no_link, SystemClock())  # type: ignore[arg-type]  # told by hand
    copies = [Copy(ModelName(name), VERSION, Digest("d" * 64), CopyState.READY, task="chat") for name in ("kept", "other")]
    copies[0] = replace(copies[0], cacheable=True)
    worker = Worker(WorkerId("w"), Region("local"), "127.0.0.1:1", copies=tuple(copies), max_in_flight=8)
    fleet.view = fleet.view.with_worker(worker)
    return fleet


def _infer(dispatch: Dispatch, model: str, payloads: list[bytes]) -> Callable[[int], Awaitable[object]]:
    """Of several payloads each is looked for once, as far as they go: they are made different as they are sent."""
    request, count = Request(ModelName(model), VERSION), [0]

    async def case(_: int) -> object:
        payload = payloads[0]
        if len(payloads) > 1:
            count[0] += 1
            payload = payload + b"\x22\x0c\x0a\x01n\x12\x07\x1a\x05" + b"%05x" % count[0]  # a parameter more: n
        return await dispatch.infer(request, payload, CALL, Exchange("ModelInfer"))

    return case


def _text(dispatch: Dispatch, differ: int) -> Callable[[int], Awaitable[object]]:
    request, count = Request(ModelName("kept"), VERSION), [0]

    async def case(_: int) -> object:
        count[0] += 1
        prompt = f"Why is the sky blue? {count[0] % differ}"
        payload = worker_pb2.GenerateRequest(model="kept", prompt=prompt).SerializeToString()
        exchange = Exchange("CreateChatCompletion", streamed=True)
        return [answer async for answer in dispatch.stream(Method.GENERATE, request, payload, CALL, exchange)]

    return case


def _payloads(size_bytes: int) -> list[bytes]:
    request = kserve.ModelInferRequest(model_name="kept", raw_input_contents=[bytes(size_bytes)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, size_bytes // 4])
    return [request.SerializeToString()] * 2


def _answer() -> bytes:
    answer = kserve.ModelInferResponse(model_name="kept", model_version="1", id="r", raw_output_contents=[bytes(4000)])
    answer.outputs.add(name="y", datatype="FP32", shape=[1, 1000])
    return answer.SerializeToString()


def _messages() -> list[bytes]:
    pieces = [worker_pb2.GenerateResponse(text=" blue", token_ids=[7]) for _ in range(PIECES)]
    pieces[-1].finish_reason = worker_pb2.FINISH_REASON_STOP
    return [piece.SerializeToString() for piece in pieces]


if __name__ == "__main__":
    main()
