"""gRPC-Web from a browser, byte by byte, through Envoy to the mesh: unary inference, a streamed chat, and their refusals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import httpx
import numpy as np
import pytest
from google.api.httpbody_pb2 import HttpBody
from inference import grpc_service_pb2 as kserve

from tests.support.mesh import RunningMesh

INFER = "/inference.GRPCInferenceService/ModelInfer"
CHAT = "/penstock.gateway.v1.OpenAIService/CreateChatCompletion"
KIND = "application/grpc-web+proto"
_TRAILERS = 0x80


@pytest.fixture
async def browser(mesh: RunningMesh) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"content-type": KIND, "accept": KIND, "x-grpc-web": "1", "authorization": f"Bearer {mesh.api_key}"}
    async with httpx.AsyncClient(base_url=mesh.http_url, headers=headers, timeout=30) as made:
        yield made


def framed(message: bytes) -> bytes:
    return b"\x00" + len(message).to_bytes(4, "big") + message


def frames(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Flag and content of each frame; the last one's flag is that of trailers. Source: grpc/doc/PROTOCOL-WEB.md."""
    at = 0
    while at < len(content):
        size = int.from_bytes(content[at + 1 : at + 5], "big")
        yield content[at], content[at + 5 : at + 5 + size]
        at += 5 + size


async def test_unary_inference(browser: httpx.AsyncClient) -> None:
    request = kserve.ModelInferRequest(model_name="digits", id="web")
    request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
    request.raw_input_contents.append(np.zeros(64, "<f4").tobytes())
    answer = await browser.post(INFER, content=framed(request.SerializeToString()))
    (_, message), (flag, trailers) = frames(answer.content)
    assert (answer.status_code, answer.headers["content-type"]) == (200, KIND)
    assert kserve.ModelInferResponse.FromString(message).id == "web"
    assert (flag, b"grpc-status:0" in trailers) == (_TRAILERS, True)


async def test_a_streamed_chat_comes_piece_by_piece(browser: httpx.AsyncClient) -> None:
    asked = {"model": "sums", "stream": True, "messages": [{"role": "user", "content": "12+34"}]}
    body = HttpBody(content_type="application/json", data=json.dumps(asked).encode())
    answer = await browser.post(CHAT, content=framed(body.SerializeToString()))
    *messages, (flag, trailers) = frames(answer.content)
    assert (flag, b"grpc-status:0" in trailers) == (_TRAILERS, True)
    events = b"".join(HttpBody.FromString(message).data for _, message in messages).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events[:-2]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "12 + 34 = 46"


async def test_a_refusal_is_a_status_and_not_a_page(browser: httpx.AsyncClient) -> None:
    request = kserve.ModelInferRequest(model_name="nothing")
    answer = await browser.post(INFER, content=framed(request.SerializeToString()))
    told = {**answer.headers, **dict(_trailers(answer.content))}
    assert (answer.status_code, told["grpc-status"]) == (200, "5")
    assert "unknown model" in told["grpc-message"].replace("%20", " ")


def _trailers(content: bytes) -> Iterator[tuple[str, str]]:
    for flag, lines in frames(content):
        if flag & _TRAILERS:
            for line in lines.decode().splitlines():
                name, _, value = line.partition(":")
                yield name, value
