"""Triton's generate extension: a text in, a text out, whole or as events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.gateway.rest.door import Door, TextLink, door


@pytest.fixture
async def rest() -> AsyncIterator[Door]:
    async with door() as made:
        yield made


async def test_generation_in_one_piece(rest: Door) -> None:
    link = rest.gateway.links["t"]
    assert isinstance(link, TextLink)
    body = {"id": "g", "text_input": "hi", "max_tokens": 9, "parameters": {"temperature": 0, "stop": ["x", ""], "seed": 2**63}}
    answer = await rest.ask("Generate", body, model="chat")
    assert answer.json() == {
        "id": "g",
        "model_name": "chat",
        "model_version": "1",
        "text_output": "abc",
        "finish_reason": "length",
        "prompt_tokens": 3,
        "completion_tokens": 2,
    }
    asked = link.asked
    assert [(turn.role, turn.content) for turn in asked.chat.messages] == [("user", "hi")]
    assert (asked.max_tokens, asked.sampling.temperature, asked.sampling.seed, list(asked.stop)) == (9, 0.0, 2**63, ["x"])
    assert not asked.sampling.HasField("top_p")
    await rest.ask("Generate", {"text_input": "hi", "chat_template": False, "logprobs": 2}, model="chat")
    assert (link.asked.prompt, link.asked.top_logprobs) == ("hi", 2)


async def test_generation_as_events(rest: Door) -> None:
    answer = await rest.ask("GenerateStream", {"text_input": "hi", "stream": True}, model="chat")
    assert (answer.status, answer.content_type, answer.headers["cache-control"]) == (200, "text/event-stream", "no-cache")
    events = [json.loads(event.removeprefix(b"data: ")) for event in answer.content.split(b"\n\n") if event]
    assert [event["text_output"] for event in events] == ["a", "b", "c"]
    assert [event.get("finish_reason") for event in events] == [None, None, "length"]


async def test_events_that_fail_end_with_the_reason(rest: Door) -> None:
    link = rest.gateway.links["t"]
    assert isinstance(link, TextLink)
    link.fails = True
    answer = await rest.ask("GenerateStream", {"text_input": "hi"}, model="chat")
    assert answer.content.endswith(b'data: {"error": "too long by now"}\n\n')
    assert (await rest.ask("Generate", {"text_input": "hi"}, model="chat")).status == 400


REFUSED_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"text_input": 7}, "'text_input' is an integer"),
    ({"text_input": "x", "max_tokens": -1}, "'max_tokens'"),
    ({"text_input": "x", "max_tokens": 1.5}, "'max_tokens'"),
    ({"text_input": "x", "temperature": True}, "'temperature'"),
    ({"text_input": "x", "nonsense": 1}, "'nonsense' means nothing"),
    ({"text_input": "x", "stop": [1]}, "'stop'"),
    ({"text_input": "x", "stop": ["a"] * 17}, "17 stop words"),
    ({"text_input": "x", "bad_words": "b"}, "'bad_words'"),
    ({"text_input": "x", "parameters": 1}, "'parameters'"),
    ({"text_input": "x", "stream": True}, "generate_stream"),
    ({"text_input": "\ud800"}, "surrogate"),
]


@pytest.mark.parametrize(("body", "says"), REFUSED_TEXT, ids=[says for _, says in REFUSED_TEXT])
async def test_what_a_generation_cannot_do_is_refused(rest: Door, body: dict[str, Any], says: str) -> None:
    answer = await rest.ask("Generate", body, model="chat")
    assert (answer.status, says in answer.error) == (400, True), answer.error


async def test_what_asks_for_nothing_is_let_through(rest: Door) -> None:
    body = {
        "text_input": "x",
        "bad_words": "",
        "stop_words": "",
        "stream": False,
        "exclude_input_in_output": True,
        "seed": None,
    }
    assert (await rest.ask("Generate", body, model="chat")).status == 200
