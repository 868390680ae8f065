"""One request at each of a mesh's doors, and what became of it in words that all doors share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import httpx
from inference import grpc_service_pb2 as kserve
from inference import grpc_service_pb2_grpc

from runtime.status import error_of
from tests.support.mesh import RunningMesh
from tests.support.steady_load import digit_request

REQUEST_S = 40.0
OK, LIMITED = "ok", "limited"
_PIXELS = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}


@dataclass(frozen=True, slots=True)
class Told:
    """How one request ended."""

    outcome: str
    """OK, LIMITED, or what went wrong."""
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None
    """By RetryInfo over gRPC, by the header over HTTP."""
    message: str = ""
    text: str = ""
    """What a text model said."""

    def left(self, unit: str = "requests") -> int:
        return int(self.headers[f"x-ratelimit-remaining-{unit}"])


@dataclass(slots=True)
class Doors:
    """Of one mesh, for one key. `outcomes` counts what was asked by `counted`."""

    http: httpx.AsyncClient
    stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub
    secret: str
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.secret}"),)

    async def grpc(self, request: kserve.ModelInferRequest | None = None) -> Told:
        call = self.stub.ModelInfer(request or digit_request(), metadata=self.metadata, timeout=REQUEST_S)
        try:
            await call
        except grpc.aio.AioRpcError as failure:
            error, limited = error_of(failure), failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            outcome = LIMITED if limited else f"{failure.code().name}: {failure.details()}"
            headers = _text([*(failure.initial_metadata() or ()), *(failure.trailing_metadata() or ())])
            return Told(outcome, headers, error.retry_after_s, error.message)
        return Told(OK, _text(await call.initial_metadata() or ()))

    async def grpc_stream(self) -> Told:
        call = self.stub.ModelStreamInfer(metadata=self.metadata, timeout=REQUEST_S)
        await call.write(digit_request())
        await call.done_writing()
        answers = [answer async for answer in call]
        if answers[0].error_message:
            limited = "wait" in answers[0].error_message
            return Told(LIMITED if limited else answers[0].error_message, message=answers[0].error_message)
        return Told(OK)

    async def rest(self, model: str = "digits") -> Told:
        return await self.asked(f"/v2/models/{model}/infer", {"inputs": [_PIXELS]})

    async def rest_stream(self, text: str = "12+34") -> Told:
        return await self.asked("/v2/models/sums/generate_stream", {"text_input": text})

    async def chat(self, model: str = "sums", text: str = "12+34", **more: object) -> Told:
        return await self.asked("/v1/chat/completions", {"model": model, "messages": [_said(text)], "temperature": 0, **more})

    async def chat_stream(self, model: str = "sums", text: str = "12+34") -> Told:
        return await self.chat(model, text, stream=True)

    async def asked(self, path: str, body: object) -> Told:
        """POST it. Transport failures are told like any other."""
        try:
            answer = await self.http.post(path, json=body, headers=dict(self.metadata))
        except httpx.HTTPError as error:
            return Told(repr(error))
        headers, retry_after = dict(answer.headers), answer.headers.get("retry-after")
        if answer.status_code == 200:
            return Told(OK, headers, text=answer.text)
        outcome = LIMITED if answer.status_code == 429 else f"{answer.status_code} {answer.text[-300:]}"
        return Told(outcome, headers, None if retry_after is None else float(retry_after), _message(answer))


@asynccontextmanager
async def doors_of(mesh: RunningMesh, secret: str) -> AsyncIterator[Doors]:
    """Through Envoy by HTTP, and at the gateway's own port by gRPC."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=mesh.http_url, timeout=REQUEST_S))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(mesh.grpc_address, options=_OWN))
        yield Doors(http, grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel), secret)


_OWN = (("grpc.use_local_subchannel_pool", 1),)
"""A connection of its own: the kernel gives it to one of the gateway's processes."""


def _said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _message(answer: httpx.Response) -> str:
    error = json.loads(answer.text)["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def _text(metadata: object) -> dict[str, str]:
    return {key: value for key, value in metadata if isinstance(value, str)}  # type: ignore[attr-defined]
