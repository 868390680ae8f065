"""OpenAI's API as others speak it, and what they leave out."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidArgument, PenstockError
from tests.support.upstream_server import (
    Asked,
    Reply,
    chat_chunk,
    running_upstream,
)
from tests.worker.upstreams import (
    chat,
    end_of,
    events,
    opened,
    said,
    text_of,
)
from worker.engine import Finish, Logprob, Message, Piece, TextRequest, TokenLogprob, ToolCallPart, ToolUse
from worker.engines.upstream.api import Call
from worker.engines.upstream.config import UpstreamConfig
from worker.engines.upstream.errors import error_object
from worker.engines.upstream.gemini import GeminiReading
from worker.engines.upstream.json import Malformed
from worker.engines.upstream.openai import OpenAi, OpenAiReading
from worker.types import Task

FINISHED = chat_chunk(None, "stop")
DEVIATIONS = {
    "no usage": (events(chat_chunk("a"), chat_chunk("b"), FINISHED, b"data: [DONE]\n\n"), (Finish.STOP, 0, 2)),
    "no end": (events(chat_chunk("a"), chat_chunk("b"), FINISHED), (Finish.STOP, 0, 2)),
    "no finish": (events(chat_chunk("ab"), b"data: [DONE]\n\n"), (Finish.STOP, 0, 1)),
    "finish with the last text": (events(chat_chunk("ab", "length"), b"data: [DONE]\n\n"), (Finish.LENGTH, 0, 1)),
    "an unknown finish": (events(chat_chunk("ab", "vanished")), (Finish.STOP, 0, 1)),
    "a role first": (
        events({"choices": [{"delta": {"role": "assistant"}}]}, chat_chunk("ab"), FINISHED),
        (Finish.STOP, 0, 1),
    ),
    "null content": (
        events({"choices": [{"delta": {"content": None, "role": "assistant"}}]}, chat_chunk("ab"), FINISHED),
        (Finish.STOP, 0, 1),
    ),
    "no delta": (events(chat_chunk("ab"), {"choices": [{"index": 0, "finish_reason": "stop"}]}), (Finish.STOP, 0, 1)),
    "usage all along": (
        events(
            chat_chunk("a", usage={"prompt_tokens": 9, "completion_tokens": 1}),
            chat_chunk("b", "stop", usage={"prompt_tokens": 9, "completion_tokens": 2}),
        ),
        (Finish.STOP, 9, 2),
    ),
    "null usage": (events(chat_chunk("ab", usage=None), FINISHED), (Finish.STOP, 0, 1)),
    "comments": (events(b": OPENROUTER PROCESSING\n\n", chat_chunk("ab"), b":\n\n", FINISHED), (Finish.STOP, 0, 1)),
    "thoughts": (
        events({"choices": [{"delta": {"reasoning_content": "hm"}}]}, chat_chunk("ab"), FINISHED),
        (Finish.STOP, 0, 1),
    ),
    "no usage and a connection left open": (
        events(chat_chunk("ab"), FINISHED, b"data: [DONE]\n\n", end=False),
        (Finish.STOP, 0, 1),
    ),
}


@pytest.mark.parametrize("name", DEVIATIONS)
async def test_deviations_are_tolerated(tmp_path: Path, name: str) -> None:
    answer, end = DEVIATIONS[name]
    async with running_upstream(answer) as upstream, opened(tmp_path, upstream.url) as engine:
        pieces = await said(engine, chat("a"))
        assert text_of(pieces) == "ab"
        assert end_of(pieces) == end


async def test_a_break_after_the_finish_costs_the_count_alone(tmp_path: Path) -> None:
    async def breaks(asked: Asked, reply: Reply) -> None:
        await reply.begin_events()
        await reply.event(chat_chunk("ab"))
        await reply.event(FINISHED)
        await asyncio.sleep(0)
        reply.break_off()

    async with running_upstream(breaks) as upstream, opened(tmp_path, upstream.url) as engine:
        assert end_of(await said(engine, chat("a"))) == (Finish.STOP, 0, 1)


FIELDS = ("choices", "delta", "content", "text", "usage", "error", "logprobs", "finish_reason", "message", "code", "candidates")
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(FIELDS), inner),
)
CONFIG = UpstreamConfig(api="openai", base_url="https://api.openai.com/v1", model="gpt")


def body_of(call: Call) -> Any:
    return json.loads(call.body)


def test_what_the_limit_of_tokens_is_called() -> None:
    newer = OpenAi(replace(CONFIG, token_limit="max_completion_tokens", include_usage=False), Task.CHAT)
    body = body_of(newer.generation(chat("a", max_tokens=9)))
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body
    assert "stream_options" not in body
    assert body_of(newer.generation(TextRequest("a", max_tokens=9)))["max_tokens"] == 9, "completions know the older name alone"


def test_text_that_no_json_can_hold() -> None:
    assert body_of(OpenAi(CONFIG, Task.CHAT).generation(chat("a\ud800")))["messages"][0]["content"] == "a?"


def reading_of(*contents: object, chat: bool = True) -> list[Piece]:
    reading = OpenAiReading(chat=chat)
    taken = [reading.take(json.dumps(content).encode()) for content in contents]
    return [piece for piece in taken if piece is not None] + [reading.last()]


def test_log_probabilities_of_a_chat() -> None:
    first = {"token": "é", "bytes": [195, 169], "logprob": -0.5, "top_logprobs": [{"token": "e", "logprob": -1, "bytes": None}]}
    second = {"token": "b", "logprob": -9999.0}
    chunk = {"choices": [{"delta": {"content": "éb"}, "logprobs": {"content": [first, second]}, "finish_reason": "stop"}]}
    piece, last = reading_of(chunk)
    assert piece.logprobs == (
        TokenLogprob(Logprob(0, "é".encode(), -0.5), (Logprob(0, b"e", -1.0),)),
        TokenLogprob(Logprob(0, b"b", -9999.0)),
    )
    assert last.completion_tokens == 2, "where no usage comes, log probabilities count better than chunks"


def test_log_probabilities_of_a_completion() -> None:
    table = {"b": -2.0, "a": -0.5}
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-0.5, -1.0], "top_logprobs": [table, None], "text_offset": [0, 1]}
    piece, _ = reading_of({"choices": [{"text": "ab", "logprobs": logprobs, "finish_reason": "length"}]}, chat=False)
    assert [each.chosen for each in piece.logprobs] == [Logprob(0, b"a", -0.5), Logprob(0, b"b", -1.0)]
    assert piece.logprobs[0].top == (Logprob(0, b"a", -0.5), Logprob(0, b"b", -2.0)), "likeliest first"
    call = OpenAi(CONFIG, Task.COMPLETION).generation(TextRequest("a", top_logprobs=0))
    assert body_of(call)["logprobs"] == 0


def test_an_answer_that_a_filter_ended_says_so() -> None:
    pieces = reading_of(chat_chunk("half"), chat_chunk(None, "content_filter"))
    assert (text_of(pieces), pieces[-1].finish) == ("half", Finish.CONTENT_FILTER)


TOOLS_JSON = '[{"type":"function","function":{"name":"add","parameters":{"type":"object"}}}]'


def test_tools_and_formats_go_as_they_came() -> None:
    use = ToolUse(TOOLS_JSON, '{"type":"function","function":{"name":"add"}}', False, '{"type":"json_object"}')
    calls = '[{"id":"c1","type":"function","function":{"name":"add","arguments":"{}"}}]'
    turns = (
        Message("user", "1 + 1?", "eve"),
        Message("assistant", "", tool_calls_json=calls),
        Message("tool", "2", "", "", "c1"),
    )
    body = body_of(OpenAi(CONFIG, Task.CHAT).generation(TextRequest(turns, tool_use=use, logit_bias={7: -100.0})))
    assert body["messages"] == [
        {"role": "user", "content": "1 + 1?", "name": "eve"},
        {"role": "assistant", "content": None, "tool_calls": json.loads(calls)},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ]
    assert body["tools"] == json.loads(TOOLS_JSON)
    assert body["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert body["parallel_tool_calls"] is False
    assert body["response_format"] == {"type": "json_object"}
    assert body["logit_bias"] == {"7": -100.0}
    assert "n" not in body


def test_what_is_not_said_is_not_sent() -> None:
    body = body_of(OpenAi(CONFIG, Task.CHAT).generation(chat("a")))
    assert body.keys() == {"model", "stream", "stream_options", "messages"}


@pytest.mark.parametrize("use", [ToolUse("{"), ToolUse("[]", "{"), ToolUse(response_format_json="\x00")])
def test_tools_that_are_no_json_are_the_callers(use: ToolUse) -> None:
    with pytest.raises(InvalidArgument, match="as OpenAI's API has it"):
        OpenAi(CONFIG, Task.CHAT).generation(chat("a", tool_use=use))


def called(index: int, arguments: str, **named: str) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": named["name"]} if named else {})}
    return {"index": index, **({"id": named["id"], "type": "function"} if named else {}), "function": function}


def test_tool_calls_in_parts() -> None:
    chunks = [
        {"choices": [{"delta": {"role": "assistant", "content": None, "tool_calls": [called(0, "", id="c1", name="add")]}}]},
        {"choices": [{"delta": {"tool_calls": [called(0, '{"a":'), called(1, "", id="c2", name="sub")]}}]},
        {"choices": [{"delta": {"tool_calls": [called(0, "1}")]}}]},
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
    ]
    pieces = reading_of(*chunks)
    assert [part for piece in pieces for part in piece.tool_calls] == [
        ToolCallPart(0, "c1", "add", ""),
        ToolCallPart(0, arguments='{"a":'),
        ToolCallPart(1, "c2", "sub", ""),
        ToolCallPart(0, arguments="1}"),
    ]
    assert pieces[-1].finish is Finish.TOOL_CALLS
    # Ollama and some others send whole calls without an index.
    whole = {"id": "c", "function": {"name": "add", "arguments": "{}"}}
    first, _ = reading_of({"choices": [{"delta": {"tool_calls": [whole, whole]}, "finish_reason": "tool_calls"}]})
    assert [part.place for part in first.tool_calls] == [0, 1]


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": {}},
        {"choices": [1]},
        {"choices": [{"delta": "a"}]},
        {"choices": [{"delta": {}, "finish_reason": 1}]},
        {"choices": [{"delta": {"tool_calls": {}}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 128}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": {}}}]}}]},
        {"choices": [{"delta": {}, "logprobs": {"content": [{"token": "a", "bytes": [300], "logprob": 0}]}}]},
        {"choices": [{"delta": {}, "logprobs": {"content": [{"token": "a"}]}}]},
        {"usage": {"completion_tokens": "many"}},
        {"usage": []},
    ],
)
def test_chunks_of_another_kind(chunk: object) -> None:
    with pytest.raises(Malformed):
        reading_of(chunk)


@given(JSON)
@settings(deadline=None)
def test_whatever_json_comes_is_read_or_refused_as_ours(content: object) -> None:
    for chat_style in (True, False):
        with suppress(Malformed, PenstockError):
            OpenAiReading(chat=chat_style).take(json.dumps(content).encode())
    with suppress(Malformed, PenstockError):
        GeminiReading().take(json.dumps(content).encode())
    error_object(json.dumps(content).encode())


def test_models_by_name_and_by_ollamas_name() -> None:
    listed = json.dumps({"data": [{"id": "gpt"}, {"id": "llama3:latest"}]}).encode()
    assert OpenAi(CONFIG, Task.CHAT).has_model(listed)
    assert OpenAi(replace(CONFIG, model="llama3"), Task.CHAT).has_model(listed)
    assert not OpenAi(replace(CONFIG, model="llama"), Task.CHAT).has_model(listed)
