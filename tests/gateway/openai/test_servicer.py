"""The service over gRPC, as the edge asks it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import structlog
from penstock.worker.v1 import worker_pb2

from gateway.refusals import FleetFull
from runtime.errors import DeadlineExceeded, Internal, InvalidArgument, Unavailable
from tests.gateway.openai.mesh import ABLE, ANSWER, LIMITED, NARROW, PUBLISHED_AT_S, SECRET, Served, piece, served, small_mesh

CHAT, COMPLETION, EMBEDDINGS = "CreateChatCompletion", "CreateCompletion", "CreateEmbeddings"
TEXT = 'Hello "wörld"\n'
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def chat(model: str = "sums", **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "2 + 2?"}], **fields}).encode()


def error_of(text: str) -> tuple[str, str | None, str]:
    error = json.loads(text)["error"]
    assert error["message"]
    return error["type"], error["param"], error["code"]


@pytest.fixture
async def service() -> AsyncIterator[Served]:
    async with served() as running:
        yield running


async def test_a_chat_in_one(service: Served) -> None:
    answered = await service.post(CHAT, chat(temperature=0, stop="."), ("x-request-id", "req-1"))
    assert [message.content_type for message in answered.messages] == ["application/json"]
    assert answered.metadata["x-request-id"] == "req-1"
    assert answered.status == 200
    body = json.loads(answered.text)
    assert body["choices"][0]["message"]["content"] == TEXT
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    asked, call = service.mesh.router.asked[0], service.mesh.router.calls[0]
    assert [(turn.role, turn.content) for turn in asked.chat.messages] == [("user", "2 + 2?")]
    assert (asked.model, asked.max_tokens, list(asked.stop)) == ("sums", 0, ["."])
    assert asked.sampling == worker_pb2.Sampling(temperature=0)
    assert (call.request_id, call.tenant, call.deadline_s) == ("req-1", "acme", None)
    assert service.mesh.count(CHAT, "sums", "OK") == 1


async def test_a_chat_in_events(service: Served) -> None:
    answered = await service.post(CHAT, chat(stream=True))
    assert {message.content_type for message in answered.messages} == {"text/event-stream"}
    assert len(answered.messages) == 1, "all that was there at once leaves in one write"
    assert answered.text.startswith('data: {"id":"chatcmpl-')
    assert answered.text.endswith("data: [DONE]\n\n")
    assert service.mesh.router.left.is_set()


@pytest.mark.parametrize("model", ["words", "sums"])
async def test_a_completion(service: Served, model: str) -> None:
    body = json.dumps({"model": model, "prompt": "2 + 2 ="}).encode()
    assert json.loads((await service.post(COMPLETION, body)).text)["choices"][0]["text"] == TEXT
    assert service.mesh.router.asked[0].prompt == "2 + 2 ="
    assert service.mesh.router.asked[0].max_tokens == 16


async def test_one_conversation_prefers_one_worker(service: Served) -> None:
    await service.post(CHAT, chat(prompt_cache_key="talk"))
    assert service.mesh.router.requests[0].session_key == "acme/talk"


async def test_events_leave_as_they_come(service: Served) -> None:
    router = service.mesh.router
    router.answers, router.hang = (piece("first"),), True
    call = service.begin(CHAT, chat(stream=True))
    assert b'"content":"first"' in (await call.read()).data
    call.cancel()
    await asyncio.wait_for(router.left.wait(), 5)


async def test_a_client_that_leaves_ends_the_generation(service: Served) -> None:
    service.mesh.router.hang, service.mesh.router.answers = True, ()
    for stream in (True, False):
        service.mesh.router.begun.clear()
        service.mesh.router.left.clear()
        call = service.begin(CHAT, chat(stream=stream))
        await asyncio.wait_for(service.mesh.router.begun.wait(), 5)
        call.cancel()
        await asyncio.wait_for(service.mesh.router.left.wait(), 5)
    while service.mesh.count(CHAT, "sums", "CANCELLED") + service.mesh.count(CHAT, "other", "CANCELLED") < 2:
        await asyncio.sleep(0.01)


async def test_clients_that_leave_at_any_moment_leave_nothing_behind(service: Served) -> None:
    service.mesh.router.answers = [piece("x" * 100)] * 2000 + [ANSWER[-1]]

    async def visit(reads: int) -> None:
        call = service.begin(CHAT, chat(stream=True))
        for _ in range(reads):
            await call.read()
        call.cancel()

    tasks = len(asyncio.all_tasks())
    with structlog.testing.capture_logs() as logs:
        for round_ in range(5):
            await asyncio.gather(*(visit((each + round_) % 4) for each in range(20)))
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.01)
    assert logs == []
    assert (await service.post(CHAT, chat())).status == 200


async def test_a_slow_reader_holds_the_worker_back(service: Served) -> None:
    router = service.mesh.router
    given = 0

    def endless() -> Any:
        nonlocal given
        while given < 20_000:
            given += 1
            yield piece("x" * 1000)

    router.answers = endless()
    call = service.begin(CHAT, chat(stream=True))
    await call.read()
    before = -1
    while before != given:
        before = given
        await asyncio.sleep(0.2)
    assert given < 10_000
    call.cancel()
    await asyncio.wait_for(router.left.wait(), 5)


@pytest.mark.parametrize(
    ("secret", "expected"),
    [("", (401, "missing_api_key")), ("sk-wrong", (401, "invalid_api_key")), (NARROW, (403, "model_not_allowed"))],
)
async def test_keys(service: Served, secret: str, expected: tuple[int, str]) -> None:
    for method, body in ((CHAT, chat()), (EMBEDDINGS, b'{"model":"vectors","input":"a"}')):
        answered = await service.post(method, body, secret=secret)
        assert (answered.status, error_of(answered.text)[2]) == expected
    assert not service.mesh.router.asked


async def test_a_key_is_asked_for_before_anything_is_parsed(service: Served) -> None:
    assert (await service.post(CHAT, b"{", secret="")).status == 401


async def test_a_key_that_asks_too_often(service: Served) -> None:
    assert (await service.post(CHAT, chat(), secret=LIMITED)).status == 200
    answered = await service.post(CHAT, chat(), secret=LIMITED)
    assert (answered.status, error_of(answered.text)) == (429, ("rate_limit_error", None, "rate_limit_exceeded"))
    assert answered.metadata["retry-after"] == "2"


@pytest.mark.parametrize(
    ("method", "body", "status", "param", "code"),
    [
        (CHAT, b"{", 400, None, "invalid_json"),
        (CHAT, chat(n=17), 400, "n", "out_of_range"),
        (CHAT, chat(tools=[ADD]), 400, "tools", "unsupported_parameter"),
        (CHAT, chat(response_format={"type": "json_object"}), 400, "response_format", "unsupported_parameter"),
        (CHAT, chat(logprobs=True), 400, "logprobs", "unsupported_parameter"),
        (CHAT, chat(presence_penalty=1), 400, "presence_penalty", "unsupported_parameter"),
        (CHAT, chat(logit_bias={"1": 1}), 400, "logit_bias", "unsupported_parameter"),
        (CHAT, chat("nothing"), 404, "model", "model_not_found"),
        (CHAT, chat("words"), 400, "model", "unsupported_model"),
        (CHAT, chat("digits"), 400, "model", "unsupported_model"),
        (COMPLETION, b'{"model":"vectors","prompt":"a"}', 400, "model", "unsupported_model"),
        (EMBEDDINGS, b'{"model":"sums","input":"a"}', 400, "model", "unsupported_model"),
        (EMBEDDINGS, b'{"model":"vectors","input":[1]}', 400, "input", "unsupported_value"),
        (EMBEDDINGS, b'{"model":"vectors","input":"a","dimensions":2}', 400, "dimensions", "unsupported_value"),
    ],
)
async def test_requests_refused(service: Served, method: str, body: bytes, status: int, param: str | None, code: str) -> None:
    answered = await service.post(method, body)
    assert answered.status == status
    assert error_of(answered.text)[1:] == (param, code)
    assert [message.content_type for message in answered.messages] == ["application/json"]
    assert answered.metadata["x-request-id"]


@pytest.mark.parametrize("model", ["late", "coming"])
async def test_a_model_on_its_way_is_waited_for(service: Served, model: str) -> None:
    assert (await service.post(CHAT, chat(model))).status == 200


async def test_before_the_fleet_is_known_the_router_decides(service: Served) -> None:
    service.mesh.fleet.synced = False
    assert (await service.post(CHAT, chat("nothing"))).status == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FleetFull("full", retry_after_s=0.25), 503),
        (Unavailable("away"), 503),
        (DeadlineExceeded("late"), 504),
        (InvalidArgument("too long"), 400),
        (Internal("broken"), 500),
    ],
)
async def test_failures_before_the_first_token_have_a_status(service: Served, error: Any, status: int, stream: bool) -> None:
    service.mesh.router.answers = (error,)
    answered = await service.post(CHAT, chat(stream=stream))
    assert answered.status == status
    assert json.loads(answered.text)["error"]["message"] == error.message
    assert answered.metadata.get("retry-after") == ("1" if status == 503 else None)


async def test_a_failure_after_the_first_token_is_an_event(service: Served) -> None:
    service.mesh.router.answers = (piece("Hel"), Unavailable("lost"))
    answered = await service.post(CHAT, chat(stream=True))
    *events, last, rest = answered.text.split("\n\n")
    assert rest == ""
    assert error_of(last.removeprefix("data: ")) == ("server_error", None, "unavailable")
    assert '"content":"Hel"' in events[-1]
    assert "[DONE]" not in answered.text
    assert answered.status == 200
    # In one, nothing had left: the status still tells.
    assert (await service.post(CHAT, chat())).status == 503


async def test_an_answer_without_an_end_is_a_failure(service: Served) -> None:
    service.mesh.router.answers = (piece("Hel"),)
    assert "data: [DONE]" not in (await service.post(CHAT, chat(stream=True))).text
    assert (await service.post(CHAT, chat())).status == 503


async def test_what_nobody_expected_is_not_shown(service: Served) -> None:
    service.mesh.router.embed = lambda _: 1 / 0  # type: ignore[assignment,return-value]
    with structlog.testing.capture_logs() as logs:
        answered = await service.post(EMBEDDINGS, b'{"model":"vectors","input":"hush"}')
    assert (answered.status, error_of(answered.text)[2]) == (500, "internal_error")
    assert "division" not in answered.text
    assert [line["event"] for line in logs] == ["unmapped_error"]
    assert "hush" not in repr([{key: value for key, value in line.items() if key != "exc_info"} for line in logs])


async def test_no_secret_or_prompt_in_the_log(service: Served) -> None:
    with structlog.testing.capture_logs() as logs:
        await service.post(CHAT, chat())
        await service.post(CHAT, chat(n=17))
        await service.post(CHAT, b"{", secret="sk-wrong")
    assert logs == []


async def test_deadlines_travel(service: Served) -> None:
    call = service.begin(CHAT, chat(), timeout=30)
    async for _ in call:
        pass
    deadline_s = service.mesh.router.calls[0].deadline_s
    assert deadline_s is not None
    assert 25 < deadline_s - asyncio.get_running_loop().time() < 31  # the loop remembers the time of its last turn


async def test_embeddings_in_batches_of_the_model(service: Served) -> None:
    texts = ["a", "bc", "", "wörld", "e", "f"]
    texts[2] = "x"
    answered = await service.post(EMBEDDINGS, json.dumps({"model": "vectors", "input": texts}).encode())
    body = json.loads(answered.text)
    assert [each["index"] for each in body["data"]] == [0, 1, 2, 3, 4, 5]
    assert (body["object"], body["model"]) == ("list", "vectors")
    assert body["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    inferred = service.mesh.router.inferred
    assert [list(each.inputs[0].shape) for each in inferred] == [[4, 1], [2, 1]]
    assert inferred[1].raw_input_contents[0] == b"\x01\0\0\0e\x01\0\0\0f"
    assert (inferred[0].inputs[0].datatype, inferred[0].outputs[0].name) == ("BYTES", "vector")
    as_base64 = await service.post(
        EMBEDDINGS, json.dumps({"model": "vectors", "input": texts, "encoding_format": "base64"}).encode()
    )
    raw = [base64.b64decode(each["embedding"]) for each in json.loads(as_base64.text)["data"]]
    assert [np.frombuffer(each, "<f4").tolist() for each in raw] == [each["embedding"] for each in body["data"]]


async def test_embeddings_of_token_ids() -> None:
    mesh = small_mesh()
    mesh.copies.datatype, mesh.copies.shape = "INT64", (-1, -1)
    async with served(mesh) as service:
        body = json.dumps({"model": "vectors", "input": [[1, 2, 3], [4]]}).encode()
        answered = json.loads((await service.post(EMBEDDINGS, body)).text)
        assert len(answered["data"]) == 2
        assert answered["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
        assert sorted(tuple(each.inputs[0].shape) for each in mesh.router.inferred) == [(1, 1), (1, 3)]
        refused = await service.post(EMBEDDINGS, b'{"model":"vectors","input":"a"}')
        assert (refused.status, error_of(refused.text)[1]) == (400, "input")


async def test_vectors_that_are_no_numbers(service: Served) -> None:
    service.mesh.router.embed = lambda _: np.full((1, 3), np.nan, "<f4")
    answered = await service.post(EMBEDDINGS, b'{"model":"vectors","input":"a"}')
    assert (answered.status, error_of(answered.text)[2]) == (500, "internal_error")


async def _models(service: Served, secret: str = SECRET) -> Any:
    ask: Any = service.channel.unary_unary(
        "/penstock.gateway.v1.OpenAIService/ListModels",
        request_serializer=lambda _: b"",
        response_deserializer=lambda raw: raw,
    )
    raw = await ask(None, metadata=(("authorization", f"Bearer {secret}"),))
    return json.loads(raw[raw.index(b"{") :])


async def test_models_that_are_served_and_may_be_seen(service: Served) -> None:
    listed = await _models(service)
    assert [each["id"] for each in listed["data"]] == ["able", "digits", "sums", "vectors", "words"]
    assert listed["data"][2] == {
        "id": "sums",
        "object": "model",
        "created": PUBLISHED_AT_S,
        "owned_by": "penstock",
        "task": "chat",
        "capabilities": [],
        "context_tokens": None,
    }
    assert listed["data"][0]["capabilities"] == sorted(ABLE)
    assert listed["data"][1]["created"] == 0
    assert [each["id"] for each in (await _models(service, NARROW))["data"]] == ["words"]
    assert service.mesh.registry.asked == 1


async def test_models_while_the_registry_is_away(service: Served) -> None:
    service.mesh.registry.failure = Unavailable("away")
    assert [each["id"] for each in (await _models(service))["data"]] == ["able", "digits", "sums", "vectors", "words"]


@pytest.mark.parametrize(("model", "secret"), [("sums", SECRET), ("late", SECRET), ("nothing", SECRET), ("sums", NARROW)])
async def test_one_model(service: Served, model: str, secret: str) -> None:
    from google.api.httpbody_pb2 import HttpBody
    from penstock.gateway.v1.gateway_pb2 import GetModelRequest

    ask = service.channel.unary_unary(
        "/penstock.gateway.v1.OpenAIService/GetModel",
        request_serializer=GetModelRequest.SerializeToString,
        response_deserializer=HttpBody.FromString,
    )
    call = ask(GetModelRequest(model=model), metadata=(("authorization", f"Bearer {secret}"),))
    body = json.loads((await call).data)
    status = dict(await call.initial_metadata()).get("x-penstock-http-status")
    if (model, secret) == ("sums", SECRET):
        assert (status, body["id"]) == (None, "sums")
    else:
        assert (status, body["error"]["code"], body["error"]["param"]) == ("404", "model_not_found", "model")
