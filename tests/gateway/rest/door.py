"""The HTTP door over real gRPC, as the edge asks it: a mirror of a model, and one that generates three letters."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from inference import grpc_service_pb2 as kserve
from penstock.gateway.v1 import rest_pb2
from penstock.worker.v1 import worker_pb2

from gateway.links.types import CallContext
from gateway.rest.servicer import SERVICE
from runtime.errors import InvalidArgument
from tests.gateway.edge import CALLER, GatewayUnderTest, gateway_under_test
from tests.gateway.fakes import FakeLink, copy_of, published, worker_of

INFER = {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, -2]}]}


def mirrored(payload: bytes) -> bytes:
    """A model whose outputs are its inputs."""
    asked = kserve.ModelInferRequest.FromString(payload)
    answer = kserve.ModelInferResponse(model_name=asked.model_name, model_version="1", id=asked.id)
    for tensor, raw in zip(asked.inputs, asked.raw_input_contents, strict=True):
        answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        answer.raw_output_contents.append(raw)
    return answer.SerializeToString()


class TextLink(FakeLink):
    """A worker that generates."""

    asked: worker_pb2.GenerateRequest
    fails: bool = False

    async def _answers(self, model: str, version: str, payload: bytes, context: CallContext) -> AsyncGenerator[bytes, None]:
        self.asked = worker_pb2.GenerateRequest.FromString(payload)
        for text in ("a", "b"):
            yield worker_pb2.GenerateResponse(text=text).SerializeToString()
        if self.fails:
            raise InvalidArgument("too long by now")
        usage = worker_pb2.TokenUsage(prompt_tokens=3, completion_tokens=2)
        reason = worker_pb2.FINISH_REASON_LENGTH
        yield worker_pb2.GenerateResponse(text="c", finish_reason=reason, usage=usage).SerializeToString()


@dataclass
class Answer:
    status: int
    headers: dict[str, Any]
    content_type: str
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> str:
        found = self.json()
        assert list(found) == ["error"]
        return str(found["error"])


@dataclass
class Door:
    gateway: GatewayUnderTest

    async def ask(self, method: str, body: Any = b"", *, secret: str = CALLER, headers: Any = (), **path: str) -> Answer:
        """`body`: bytes as they are, anything else as JSON. The answer's events are put together."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = rest_pb2.RestRequest(**path)
        request.body.data = content
        metadata = [*headers, *([("authorization", f"Bearer {secret}")] if secret else [])]
        asking: Any = self.gateway.channel.unary_stream(f"/{SERVICE}/{method}")
        call = asking(request.SerializeToString(), metadata=metadata, timeout=20)
        bodies = [HttpBody.FromString(message) async for message in call]
        told = dict(await call.initial_metadata() or ())
        status = int(told.pop("x-penstock-http-status", 200))
        return Answer(status, told, bodies[0].content_type, b"".join(each.data for each in bodies))


@asynccontextmanager
async def door(**options: Any) -> AsyncIterator[Door]:
    links = {"a": FakeLink("127.0.0.1:1", script=[mirrored]), "t": TextLink("127.0.0.1:2")}
    workers = worker_of("a", copy_of("m"), copy_of("n")), worker_of("t", copy_of("chat", task="chat"), address="127.0.0.1:2")
    async with gateway_under_test(*workers, links=links, **options) as gateway:
        gateway.repository.versions += [published("m"), published("n"), published("unloaded")]
        yield Door(gateway)
