"""What a request may ask for beyond one text, over gRPC as the edge asks it: several answers, tools, formats, probabilities."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock.worker.v1 import worker_pb2

from gateway.auto import AutoModels, Needs
from runtime.errors import Unavailable
from tests.gateway.openai.mesh import LIMITED, Served, called, piece, served, small_mesh
from tests.gateway.openai.test_servicer import ADD, CHAT, COMPLETION, EMBEDDINGS, TEXT, chat, error_of

STOP, TOOL_CALLS, FILTER = (
    *(worker_pb2.FINISH_REASON_STOP, worker_pb2.FINISH_REASON_TOOL_CALLS),
    worker_pb2.FINISH_REASON_CONTENT_FILTER,
)


@pytest.fixture
async def service() -> AsyncIterator[Served]:
    async with served() as running:
        yield running


def completion(**fields: Any) -> bytes:
    return json.dumps({"model": "words", "prompt": "hi", **fields}).encode()


def events_of(text: str) -> list[Any]:
    *events, last, rest = text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def test_several_answers_are_made_at_once_and_each_has_a_seed_of_its_own(service: Served) -> None:
    body = json.loads((await service.post(CHAT, chat(n=3, seed=2**63 - 1, max_tokens=9))).text)
    assert [each["index"] for each in body["choices"]] == [0, 1, 2]
    assert {each["message"]["content"] for each in body["choices"]} == {TEXT}
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
    seeds = sorted(asked.sampling.seed for asked in service.mesh.router.asked)
    assert seeds == [2**63 - 1, 2**63, 2**63 + 1]
    assert len({request.prefix for request in service.mesh.router.requests}) == 1


async def test_without_a_seed_none_is_made_up(service: Served) -> None:
    await service.post(CHAT, chat(n=2))
    assert not any(asked.sampling.HasField("seed") for asked in service.mesh.router.asked)


@given(prompts=st.integers(1, 4), n=st.integers(1, 4), stream=st.booleans())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_every_prompt_gets_its_answers_in_their_places(service: Served, prompts: int, n: int, stream: bool) -> None:
    service.mesh.router.asked.clear()
    fields = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answered = await service.post(COMPLETION, completion(prompt=[f"p{each}" for each in range(prompts)], n=n, **fields))
    assert sorted(asked.prompt for asked in service.mesh.router.asked) == sorted(
        f"p{each}" for each in range(prompts) for _ in range(n)
    )
    texts: dict[int, str] = {}
    if stream:
        *events, last = events_of(answered.text)
        for event in events:
            (choice,) = event["choices"]
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        usage = last["usage"]
    else:
        body = json.loads(answered.text)
        texts, usage = {each["index"]: each["text"] for each in body["choices"]}, body["usage"]
    assert texts == dict.fromkeys(range(prompts * n), TEXT)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7 * prompts, 3 * prompts * n)


@pytest.mark.parametrize("stream", [True, False])
async def test_when_one_of_several_fails_all_do(service: Served, stream: bool) -> None:
    service.mesh.router.answers = (Unavailable("lost"),)
    answered = await service.post(CHAT, chat(n=4, stream=stream))
    assert (answered.status, error_of(answered.text)[2]) == (503, "unavailable")


async def test_a_client_that_leaves_ends_all_of_them(service: Served) -> None:
    router = service.mesh.router
    router.answers, router.hang = (piece("first"),), True
    tasks = len(asyncio.all_tasks())
    call = service.begin(CHAT, chat(n=4, stream=True))
    await call.read()
    call.cancel()
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > tasks:
            await asyncio.sleep(0.01)


async def test_tools_go_to_the_model_and_their_calls_come_back(service: Served) -> None:
    router = service.mesh.router
    router.answers = (called(0, "c1", "add"), called(0, arguments='{"a":1}'), piece("", TOOL_CALLS, 4, 5))
    body = json.loads((await service.post(CHAT, chat("able", tools=[ADD], tool_choice="required"))).text)
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    assert body["choices"][0]["message"] == {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    asked = router.asked[0]
    assert (json.loads(asked.tools_json), asked.tool_choice_json) == ([ADD], '"required"')
    assert not asked.HasField("parallel_tool_calls")
    events = events_of((await service.post(CHAT, chat("able", tools=[ADD], stream=True))).text)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[1]["tool_calls"] == [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}
    ]
    assert deltas[2]["tool_calls"] == [{"index": 0, "function": {"arguments": '{"a":1}'}}]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_conversation_with_tools_goes_to_a_model_that_has_them(service: Served) -> None:
    called = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    refused = await service.post(CHAT, json.dumps({"model": "sums", "messages": turns}).encode())
    assert error_of(refused.text)[1:] == ("messages[1]", "unsupported_parameter")
    assert "'tools'" in json.loads(refused.text)["error"]["message"]
    await service.post(CHAT, json.dumps({"model": "able", "messages": turns}).encode())
    asked = service.mesh.router.asked[0].chat.messages
    assert json.loads(asked[1].tool_calls_json) == [called]
    assert (asked[2].role, asked[2].tool_call_id, asked[2].content) == ("tool", "c1", "2")


async def test_formats_penalties_and_biases_go_to_the_model(service: Served) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    body = chat("able", response_format=schema, frequency_penalty=0.5, logit_bias={"7": -1}, logprobs=True, top_logprobs=2)
    assert (await service.post(CHAT, body)).status == 200
    asked = service.mesh.router.asked[0]
    assert json.loads(asked.response_format_json) == schema
    assert (asked.sampling.frequency_penalty, asked.sampling.HasField("presence_penalty")) == (0.5, False)
    assert (dict(asked.logit_bias), asked.top_logprobs) == ({7: -1.0}, 2)


async def test_log_probabilities_come_back(service: Served) -> None:
    chosen = worker_pb2.Logprob(token=b"a", logprob=-0.5)
    answer = worker_pb2.GenerateResponse(text="a", logprobs=[worker_pb2.TokenLogprob(chosen=chosen, top=[chosen])])
    service.mesh.router.answers = (answer.SerializeToString(), piece("", STOP, 1, 1))
    told = {"token": "a", "logprob": -0.5, "bytes": [97]}
    whole = json.loads((await service.post(CHAT, chat("able", logprobs=True, top_logprobs=1))).text)
    assert whole["choices"][0]["logprobs"] == {"content": [{**told, "top_logprobs": [told]}], "refusal": None}
    events = events_of((await service.post(COMPLETION, completion(model="able", logprobs=1, stream=True))).text)
    assert events[0]["choices"][0]["logprobs"] == {
        "tokens": ["a"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"a": -0.5}],
        "text_offset": [2],
    }


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_a_filter_ended_is_an_answer(service: Served, stream: bool) -> None:
    service.mesh.router.answers = (piece("half"), piece("", FILTER, 1, 1))
    answered = await service.post(CHAT, chat(stream=stream))
    assert answered.status == 200
    assert '"content_filter"' in answered.text


@pytest.mark.parametrize("stream", [True, False])
async def test_who_answers_in_anothers_place_is_told(service: Served, stream: bool) -> None:
    answered = await service.post(CHAT, chat(stream=stream))
    assert "x-penstock-model" not in answered.metadata
    assert '"sums"' in answered.text
    service.mesh.router.answering = "able"
    answered = await service.post(CHAT, chat(stream=stream))
    assert answered.metadata["x-penstock-model"] == "able"
    assert '"able"' in answered.text
    assert '"sums"' not in answered.text


class Choosing(AutoModels):
    """Chooses one model, and remembers what was needed."""

    def __init__(self) -> None:
        self.needs: list[Needs] = []

    def chosen(self, key: Any, model: str, needs: Needs) -> str:
        if model != "auto":
            return model
        self.needs.append(needs)
        return "able"


async def test_a_model_is_chosen_by_what_is_needed() -> None:
    mesh = small_mesh()
    mesh.auto = choosing = Choosing()
    async with served(mesh) as service:
        body = {"model": "auto", "messages": [{"role": "user", "content": "x" * 400}], "tools": [ADD], "max_tokens": 9}
        answered = await service.post(CHAT, json.dumps(body).encode())
        assert (answered.status, json.loads(answered.text)["model"]) == (200, "able")
        assert answered.metadata["x-penstock-model"] == "able"
        assert choosing.needs == [Needs(("chat",), frozenset({"tools"}), 100, 9)]
        assert (mesh.router.asked[0].model, mesh.router.requests[0].model) == ("able", "able")


async def test_how_long_it_took_and_whose_doing_that_was(service: Served) -> None:
    answered = await service.post(CHAT, chat())
    assert int(answered.metadata["openai-processing-ms"]) >= 0
    assert float(answered.metadata["x-penstock-overhead-ms"]) >= 0
    assert float(answered.metadata["x-penstock-overhead-ms"]) <= float(answered.metadata["openai-processing-ms"]) + 1
    streamed = await service.post(CHAT, chat(stream=True))
    assert "openai-processing-ms" in streamed.metadata
    assert "x-penstock-overhead-ms" not in streamed.metadata
    embedded = await service.post(EMBEDDINGS, b'{"model":"vectors","input":"a"}')
    assert "x-penstock-overhead-ms" in embedded.metadata


async def test_every_answer_names_its_request(service: Served) -> None:
    for body, secret in ((b"{", "sk-good"), (chat(), "sk-wrong"), (chat(), "")):
        answered = await service.post(CHAT, body, ("x-request-id", "mine"), secret=secret)
        assert (answered.status >= 400, answered.metadata["x-request-id"]) == (True, "mine")


async def test_limits_are_told_what_a_request_may_come_to_and_what_it_did(service: Served) -> None:
    limiter = service.mesh.limiter
    body = {"model": "words", "prompt": ["x" * 40, "x" * 20], "n": 2, "max_tokens": 10}
    answered = await service.post(COMPLETION, json.dumps(body).encode(), secret=LIMITED)
    assert limiter.thought == [15 + 40]
    assert limiter.came_to == [(14, 12)]
    assert answered.metadata["x-ratelimit-remaining-requests"] == "0"


async def test_asking_for_nothing_of_a_model_counts_as_a_request(service: Served) -> None:
    assert (await service.ask("ListModels", secret=LIMITED)).status == 200
    refused = await service.ask("ListModels", secret=LIMITED)
    assert (refused.status, error_of(refused.text)[2]) == (429, "rate_limit_exceeded")
    assert int(refused.metadata["retry-after"]) >= 1
