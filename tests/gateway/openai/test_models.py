"""name@alias, name@version and whose model it is, at the OpenAI door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.api.httpbody_pb2 import HttpBody
from penstock.gateway.v1.gateway_pb2 import GetModelRequest

from runtime.notices import STABLE, NoticeBoard
from tests.gateway.fakes import notice_of
from tests.gateway.openai.mesh import SECRET, Served, served, small_mesh
from tests.gateway.openai.test_servicer import CHAT, COMPLETION, EMBEDDINGS, chat, error_of

VERSION = "x-penstock-model-version"


@pytest.fixture
def board() -> NoticeBoard:
    board = NoticeBoard()
    board.synced = True
    for model in ("words", "digits", "vectors", "late", "coming"):
        board.hear_model(notice_of(model, "acme"))
    board.hear_model(notice_of("sums", "acme", aliases={STABLE: ("1", 0), "canary": ("7", 0)}))
    return board


@pytest.fixture
async def service(board: NoticeBoard) -> AsyncIterator[Served]:
    async with served(small_mesh(board=board)) as running:
        yield running


@pytest.mark.parametrize("name", ["sums", "sums@stable", "sums@1"])
@pytest.mark.parametrize("stream", [True, False])
async def test_the_answer_names_the_version(service: Served, name: str, stream: bool) -> None:
    answered = await service.post(CHAT, chat(name, stream=stream))
    assert (answered.status, answered.metadata[VERSION]) == (200, "1")
    assert f'"model":"{name}"' in answered.text.replace(": ", ":")
    assert service.mesh.router.asked[0].model == "sums"
    assert service.mesh.router.requests[0].version == "1"


async def test_the_newest_is_named_too(service: Served) -> None:
    answered = await service.post(COMPLETION, b'{"model":"words","prompt":"a"}')
    assert answered.metadata[VERSION] == "1"


async def test_embeddings_come_from_one_version(service: Served) -> None:
    answered = await service.post(EMBEDDINGS, b'{"model":"vectors@1","input":["a","b"]}')
    assert (answered.status, answered.metadata[VERSION], json.loads(answered.text)["model"]) == (200, "1", "vectors@1")


@pytest.mark.parametrize("name", ["@canary", "sums@", "@"])
async def test_names_that_are_none(service: Served, name: str) -> None:
    answered = await service.post(CHAT, chat(name))
    assert (answered.status, error_of(answered.text)[1]) == (400, "model")


async def test_what_was_withdrawn_is_not_found(service: Served, board: NoticeBoard) -> None:
    board.hear_model(notice_of("sums", "acme", withdrawn=["1"], generation=2))
    answered = await service.post(CHAT, chat("sums@1"))
    assert (answered.status, error_of(answered.text)[1:]) == (404, ("model", "model_not_found"))
    assert "withdrawn" in answered.text
    assert await _model(service, "sums@1") == "model_not_found"


async def test_another_tenants_model(service: Served, board: NoticeBoard) -> None:
    board.hear_model(notice_of("sums", "globex", generation=2))
    answered = await service.post(CHAT, chat("sums"))
    assert (answered.status, error_of(answered.text)[2]) == (404, "model_not_found")
    assert await _model(service, "sums") == "model_not_found"
    assert "sums" not in await _listed(service)
    board.hear_model(notice_of("sums", "globex", shared_with=["*"], generation=3))
    assert (await service.post(CHAT, chat("sums"))).status == 200
    assert "sums" in await _listed(service)


async def test_one_model_by_its_alias(service: Served) -> None:
    assert await _model(service, "sums@stable") == "sums@stable"
    assert await _model(service, "sums@canary") == "model_not_found", "none of its copies is ready"
    assert await _model(service, "sums@nobody") == "model_not_found"


async def test_a_model_not_told_of_yet() -> None:
    async with served(small_mesh(board=_only("words"))) as fresh:
        answered = await fresh.post(CHAT, chat("sums"))
    assert (answered.status, error_of(answered.text)[2]) == (503, "unavailable")
    assert answered.metadata["retry-after"] == "1"


def _only(model: str) -> NoticeBoard:
    board = NoticeBoard()
    board.synced = True
    board.hear_model(notice_of(model, "acme"))
    return board


async def _listed(service: Served) -> list[str]:
    ask: Any = service.channel.unary_unary(
        "/penstock.gateway.v1.OpenAIService/ListModels",
        request_serializer=lambda _: b"",
        response_deserializer=HttpBody.FromString,
    )
    body = json.loads((await ask(None, metadata=(("authorization", f"Bearer {SECRET}"),))).data)
    return [each["id"] for each in body["data"]]


async def _model(service: Served, name: str) -> str:
    """Its id, or the code of the refusal."""
    ask: Any = service.channel.unary_unary(
        "/penstock.gateway.v1.OpenAIService/GetModel",
        request_serializer=GetModelRequest.SerializeToString,
        response_deserializer=HttpBody.FromString,
    )
    body = json.loads((await ask(GetModelRequest(model=name), metadata=(("authorization", f"Bearer {SECRET}"),))).data)
    found: str = body["id"] if "id" in body else body["error"]["code"]
    return found
