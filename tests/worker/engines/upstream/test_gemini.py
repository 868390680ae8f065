"""Google's Gemini API: what a request becomes there, and what its answers become here."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from runtime.errors import InvalidArgument, UpstreamBusy, UpstreamUnavailable
from tests.support.upstream_server import gemini_chunk
from tests.worker.upstreams import chat, end_of, text_of
from worker.engine import Finish, Logprob, Message, Piece, Sampling, TextRequest, TokenLogprob, ToolCallPart, ToolUse
from worker.engines.upstream.config import UpstreamConfig
from worker.engines.upstream.errors import UpstreamWithheld
from worker.engines.upstream.gemini import Gemini, GeminiReading
from worker.engines.upstream.json import Malformed

CONFIG = UpstreamConfig(api="gemini", base_url="https://generativelanguage.googleapis.com/v1beta", model="gemini-2.5-flash")
GEMINI = Gemini(CONFIG)


def asked(request: TextRequest) -> Any:
    return json.loads(GEMINI.generation(request).body)


def read(*contents: object) -> list[Piece]:
    reading = GeminiReading()
    taken = [reading.take(json.dumps(content).encode()) for content in contents]
    return [piece for piece in taken if piece is not None] + [reading.last()]


def test_a_conversation() -> None:
    turns = (
        *(Message("system", "be brief"), Message("developer", "be kind"), Message("user", "a"), Message("user", "b")),
        *(Message("assistant", "c"), Message("user", "d")),
    )
    body = asked(TextRequest(turns))
    assert body == {
        "systemInstruction": {"parts": [{"text": "be brief"}, {"text": "be kind"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
            {"role": "model", "parts": [{"text": "c"}]},
            {"role": "user", "parts": [{"text": "d"}]},
        ],
    }
    assert GEMINI.generation(chat("a")).path == "/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    assert asked(TextRequest("as it is"))["contents"] == [{"role": "user", "parts": [{"text": "as it is"}]}]


def test_settings() -> None:
    sampling = Sampling(0.0, 0.9, 40, 2**40 + 5, 0.1, -0.2)
    body = asked(chat("a", sampling=sampling, max_tokens=7, stop=("x", "y"), top_logprobs=3))
    assert body["generationConfig"] == {
        "temperature": 0.0,
        "topP": 0.9,
        "topK": 40,
        "seed": 5,
        "maxOutputTokens": 7,
        "stopSequences": ["x", "y"],
        "frequencyPenalty": 0.1,
        "presencePenalty": -0.2,
        "responseLogprobs": True,
        "logprobs": 3,
    }


@pytest.mark.parametrize(
    "request_",
    [
        TextRequest((Message("system", "alone"),)),
        TextRequest((Message("tool", "a"),)),
        TextRequest((Message("user", "a"), Message("tool", "2", tool_call_id="c9"))),
        TextRequest((Message("assistant", "", tool_calls_json='[{"function":{"name":"f","arguments":"["}}]'),)),
        chat("a", sampling=Sampling(repetition_penalty=1.1)),
        chat("a", logit_bias={1: 2.0}),
        chat("a", tool_use=ToolUse("{}")),
        chat("a", tool_use=ToolUse("[]", parallel=False)),
        chat("a", tool_use=ToolUse(response_format_json="[]")),
    ],
)
def test_what_gemini_cannot_be_asked(request_: TextRequest) -> None:
    with pytest.raises(InvalidArgument):
        GEMINI.generation(request_)


def test_an_answer() -> None:
    thought = {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}, {"text": "a"}]}}]}
    pieces = read(
        thought,
        gemini_chunk("b", promptTokenCount=4, candidatesTokenCount=2, thoughtsTokenCount=3),
        {"candidates": [{"finishReason": "MAX_TOKENS"}], "usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 2}},
    )
    assert text_of(pieces) == "ab"
    assert end_of(pieces) == (Finish.LENGTH, 4, 2)
    assert end_of(read(gemini_chunk("ab", "STOP"))) == (Finish.STOP, 0, 1), "without usage, events are counted"


ADD = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        ("", None),
        ('"auto"', {"mode": "AUTO"}),
        ('"none"', {"mode": "NONE"}),
        ('"required"', {"mode": "ANY"}),
        ('{"type":"function","function":{"name":"add"}}', {"mode": "ANY", "allowedFunctionNames": ["add"]}),
    ],
)
def test_tools(choice: str, config: object) -> None:
    body = asked(chat("1 + 1?", tool_use=ToolUse(json.dumps([ADD]), choice)))
    declared = {"name": "add", "description": "adds", "parametersJsonSchema": {"type": "object"}}
    assert body["tools"] == [{"functionDeclarations": [declared]}]
    assert body.get("toolConfig") == (config and {"functionCallingConfig": config})


def test_turns_of_tools() -> None:
    calls = '[{"id":"c1","function":{"name":"add","arguments":"{\\"a\\":1}"}}]'
    turns = (
        *(Message("user", "?"), Message("assistant", "", tool_calls_json=calls)),
        *(Message("tool", "two", tool_call_id="c1"), Message("tool", '{"sum":2}', tool_call_id="c1")),
    )
    assert asked(TextRequest(turns))["contents"][1:] == [
        {"role": "model", "parts": [{"functionCall": {"name": "add", "args": {"a": 1}}}]},
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "add", "response": {"result": "two"}}},
                {"functionResponse": {"name": "add", "response": {"sum": 2}}},
            ],
        },
    ]


def test_calls_of_an_answer() -> None:
    parts = [{"text": "so"}, {"functionCall": {"name": "add", "args": {"a": "ä"}}}, {"functionCall": {"name": "now"}}]
    first, last = read({"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]})
    assert first.text == "so"
    assert first.tool_calls == (ToolCallPart(0, "call_0_add", "add", '{"a": "ä"}'), ToolCallPart(1, "call_1_now", "now", "{}"))
    assert last.finish is Finish.TOOL_CALLS


def test_an_answer_that_is_json() -> None:
    plain = asked(chat("a", tool_use=ToolUse(response_format_json='{"type":"json_object"}')))
    assert plain["generationConfig"] == {"responseMimeType": "application/json"}
    schema = '{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object"}}}'
    described = asked(chat("a", tool_use=ToolUse(response_format_json=schema)))
    assert described["generationConfig"]["responseJsonSchema"] == {"type": "object"}


def test_log_probabilities() -> None:
    result = {
        "chosenCandidates": [{"token": "a", "tokenId": 7, "logProbability": -0.5}],
        "topCandidates": [{"candidates": [{"token": "a", "logProbability": -0.5}, {"token": "b", "logProbability": -1}]}],
    }
    chunk = {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP", "logprobsResult": result}]}
    chosen, other = Logprob(0, b"a", -0.5), Logprob(0, b"b", -1.0)
    assert read(chunk)[0].logprobs == (TokenLogprob(chosen, (chosen, other)),)


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "PROHIBITED_CONTENT", "SPII", "BLOCKLIST"])
def test_an_answer_that_a_filter_ended_says_so(reason: str) -> None:
    pieces = read(gemini_chunk("half", reason))
    assert text_of(pieces) == "half"
    assert pieces[-1].finish is Finish.CONTENT_FILTER


@pytest.mark.parametrize("reason", ["OTHER", "MALFORMED_FUNCTION_CALL", "SOMETHING_NEW"])
def test_an_answer_that_was_withheld_is_no_whole_one(reason: str) -> None:
    with pytest.raises(UpstreamWithheld, match=reason):
        read(gemini_chunk("half", reason))


def test_a_prompt_that_was_blocked() -> None:
    with pytest.raises(UpstreamWithheld, match=r"blocked the prompt \(SAFETY\)"):
        read({"promptFeedback": {"blockReason": "SAFETY"}})


def test_an_answer_without_an_end_and_an_error_in_one() -> None:
    with pytest.raises(UpstreamUnavailable, match="before its end was said"):
        read(gemini_chunk("a"))
    with pytest.raises(UpstreamBusy):
        read({"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED"}})


def test_embeddings() -> None:
    sized = Gemini(UpstreamConfig(api="gemini", base_url="https://a", model="tunedModels/mine", dimensions=2))
    call = sized.embedding(["a"])
    assert call.path == "/tunedModels/mine:batchEmbedContents"
    request = {"model": "tunedModels/mine", "content": {"parts": [{"text": "a"}]}, "outputDimensionality": 2}
    assert json.loads(call.body) == {"requests": [request]}
    vectors = GEMINI.vectors(json.dumps({"embeddings": [{"values": [1, 2.5]}, {"values": [3, 4]}]}).encode(), 2)
    np.testing.assert_array_equal(vectors, np.array([[1, 2.5], [3, 4]], np.float32))
    for garbled in ('{"embeddings": []}', '{"embeddings": [{}, {}]}', '{"embeddings": [{"values": [[1]]}, {"values": [[1]]}]}'):
        with pytest.raises(Malformed):
            GEMINI.vectors(garbled.encode(), 2)
