"""The JSON of requests: what is taken, what is refused, and how the refusal names the place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.openai.errors import BodyTooLarge, RequestRefused
from gateway.openai.fields import MAX_BODY_BYTES
from gateway.openai.requests import text_asked, vectors_asked
from gateway.openai.types import Sampling, Style, TextAsked, Turn, VectorsAsked

CHAT: Mapping[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: Mapping[str, Any] = {"model": "m", "prompt": "hi"}
TURN = Turn("user", "hi")
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def chat(**changes: Any) -> TextAsked:
    return text_asked(Style.CHAT, json.dumps({**CHAT, **changes}).encode())


def completion(**changes: Any) -> TextAsked:
    return text_asked(Style.COMPLETION, json.dumps({**COMPLETION, **changes}).encode())


def vectors(**fields: Any) -> VectorsAsked:
    return vectors_asked(json.dumps({"model": "m", **fields}).encode())


def test_the_least() -> None:
    assert chat() == TextAsked("m", ((TURN,),))
    assert completion() == TextAsked("m", ("hi",), max_tokens=16)


def test_everything() -> None:
    asked = chat(
        messages=[
            {"role": "developer", "content": "be brief", "name": "boss"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "tool_calls": None, "refusal": None, "annotations": []},
        ],
        max_completion_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        seed=-1,
        stop=["x", "y"],
        stream=True,
        stream_options={"include_usage": True},
        user="u",
        metadata={"a": "b"},
        prompt_cache_key="talk-7",
    )
    turns = (Turn("system", "be brief", "boss"), Turn("user", "a\nb"), Turn("assistant", "c"))
    sampling = Sampling(0.5, 0.9, 3, 2**64 - 1)
    assert asked == TextAsked("m", (turns,), sampling, 5, ("x", "y"), True, True, "talk-7")


def test_what_needs_a_model_that_can() -> None:
    asked = chat(
        tools=[ADD],
        tool_choice={"type": "function", "function": {"name": "add"}},
        parallel_tool_calls=False,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        logprobs=True,
        top_logprobs=3,
        logit_bias={"7": -100, "3": 1.5},
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        n=3,
    )
    assert asked.needs == {
        "logprobs": "logprobs",
        "penalties": "frequency_penalty",
        "logit_bias": "logit_bias",
        "tools": "tools",
        "json_schema": "response_format",
    }
    assert (json.loads(asked.tool_use.tools_json), asked.tool_use.parallel) == ([ADD], False)
    assert (asked.top_logprobs, asked.logit_bias, asked.n) == (3, ((3, 1.5), (7, -100.0)), 3)
    assert (asked.sampling.frequency_penalty, asked.sampling.presence_penalty) == (0.5, -0.5)
    assert chat(response_format={"type": "json_object"}).needs == {"json": "response_format"}
    assert chat(logprobs=True).top_logprobs == 0
    assert completion(logprobs=0).top_logprobs == 0


def test_turns_of_tools() -> None:
    turns = [*CHAT["messages"], {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    asked = chat(messages=[*turns, {"role": "tool", "tool_call_id": "c1", "content": "2"}])
    called = json.dumps([CALL], separators=(",", ":"))
    assert asked.prompts == ((TURN, Turn("assistant", "", tool_calls_json=called), Turn("tool", "2", tool_call_id="c1")),)
    assert asked.needs == {"tools": "messages[1]"}


def test_answers_in_all_are_bounded() -> None:
    assert completion(prompt=["a"] * 8, n=16).choices == 128
    with pytest.raises(RequestRefused, match="144 answers; at most 128"):
        completion(prompt=["a"] * 9, n=16)
    assert completion(n=3, best_of=3).n == 3


def test_the_smallest_nucleus_is_the_likeliest_token() -> None:
    assert chat(top_p=0, temperature=1).sampling == Sampling(temperature=0.0)


@pytest.mark.parametrize(
    "harmless",
    [
        {"n": 1},
        {"presence_penalty": 0, "frequency_penalty": 0.0},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "functions": None},
        {"response_format": {"type": "text"}},
        {"logprobs": False, "top_logprobs": None},
        {"logit_bias": {}, "store": False, "service_tier": "auto", "modalities": ["text"]},
        {"stop": None, "max_tokens": None, "temperature": None, "stream": None, "stream_options": None},
        {"stop": []},
        {"max_tokens": 5.0},
    ],
)
def test_what_asks_for_nothing_is_let_pass(harmless: Mapping[str, Any]) -> None:
    asked = chat(**harmless)
    assert (asked.prompts, asked.needs) == (((TURN,),), {})


@pytest.mark.parametrize(
    ("changes", "param", "fault"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 3}, "model", "invalid_type"),
        ({"model": ""}, "model", "invalid_value"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "function", "content": "hi"}]}, "messages[0].role", "unsupported_value"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
        (
            {"messages": [{"role": "user", "content": "hi", "tool_call_id": "c"}]},
            "messages[0].tool_call_id",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "unsupported_value",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].id",
            "missing_required_parameter",
        ),
        ({"messages": [{"role": "user", "content": "a", "mood": 1}]}, "messages[0].mood", "unknown_parameter"),
        ({"n": 17}, "n", "out_of_range"),
        ({"n": 0}, "n", "out_of_range"),
        ({"n": True}, "n", "invalid_type"),
        ({"tools": {}}, "tools", "invalid_type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "unsupported_value"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": "x"}}]},
            "tools[0].function.parameters",
            "invalid_type",
        ),
        ({"tools": [ADD] * 129}, "tools", "array_above_max_length"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "always"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}, "tools": [ADD]}, "tool_choice", "invalid_value"),
        ({"tools": [ADD], "parallel_tool_calls": "no"}, "parallel_tool_calls", "invalid_type"),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "out_of_range"),
        ({"logit_bias": {"a": 2}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "out_of_range"),
        ({"logit_bias": {str(each): 1 for each in range(1025)}}, "logit_bias", "invalid_value"),
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "unsupported_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": []}}},
            "response_format.json_schema.schema",
            "invalid_type",
        ),
        ({"presence_penalty": 2.1}, "presence_penalty", "out_of_range"),
        ({"functions": [{}]}, "functions", "unsupported_parameter"),
        ({"audio": {}}, "audio", "unsupported_parameter"),
        ({"prompt": "hi"}, "prompt", "unknown_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "out_of_range"),
        ({"top_p": -0.1}, "top_p", "out_of_range"),
        ({"max_tokens": 0}, "max_tokens", "out_of_range"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": 10**400}, "max_tokens", "out_of_range"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"seed": 2**63}, "seed", "out_of_range"),
        ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"stop": 1}, "stop", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
        ({"stream": True, "stream_options": {"loud": 1}}, "stream_options.loud", "unknown_parameter"),
    ],
)
def test_refused(changes: Mapping[str, Any], param: str, fault: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        chat(**changes)
    assert (refused.value.param, refused.value.fault) == (param, fault)
    assert param in refused.value.message


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        (["a", 1], "invalid_type"),
        ([1, 2], "unsupported_value"),
        ([[1], [2]], "unsupported_value"),
        ([], "empty_array"),
        (["a"] * 129, "array_above_max_length"),
        (7, "invalid_type"),
    ],
)
def test_prompts(prompt: Any, fault: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        completion(prompt=prompt)
    assert refused.value.fault == fault
    assert (refused.value.param or "").partition("[")[0] == "prompt"
    assert completion(prompt=["a", "b"]).prompts == ("a", "b")


@pytest.mark.parametrize(
    "changes",
    [{"best_of": 2}, {"best_of": True}, {"echo": True}, {"logprobs": 21}, {"suffix": "x"}, {"messages": []}, {"tools": []}],
)
def test_what_completions_do_not_do(changes: Mapping[str, Any]) -> None:
    with pytest.raises(RequestRefused) as refused:
        completion(**changes)
    assert refused.value.param == next(iter(changes))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b"null", b'{"model": NaN}', b"\xff", b"[" * 200_000, b'{"a":' * 100_000, b"9" * 5000]
)
def test_no_json_object(body: bytes) -> None:
    with pytest.raises(RequestRefused) as refused:
        text_asked(Style.CHAT, body)
    assert (refused.value.param, refused.value.fault) == (None, "invalid_json")


def test_a_body_too_large_is_not_parsed() -> None:
    with pytest.raises(BodyTooLarge, match=str(MAX_BODY_BYTES)):
        text_asked(Style.CHAT, b" " * (MAX_BODY_BYTES + 1))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_NAMES = [
    "messages",
    "model",
    "prompt",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "max_tokens",
    "seed",
    "n",
    "tools",
    "tool_choice",
    "response_format",
    "logit_bias",
    "logprobs",
    "input",
]


@given(st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=4), _JSON, max_size=5), st.sampled_from(list(Style)))
def test_whatever_comes_is_taken_or_refused(fields: dict[str, Any], style: Style) -> None:
    body = json.dumps({"model": "m", **fields}).encode()
    for parse in (lambda: text_asked(style, body), lambda: vectors_asked(body)):
        try:
            parse()
        except RequestRefused as refused:
            assert refused.message


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", VectorsAsked("m", ("a",))),
        (["a", "b"], VectorsAsked("m", ("a", "b"))),
        ([1, 2], VectorsAsked("m", token_ids=((1, 2),))),
        ([[1], [2, 3]], VectorsAsked("m", token_ids=((1,), (2, 3)))),
    ],
)
def test_embedding_inputs(given: Any, expected: VectorsAsked) -> None:
    assert vectors(input=given) == expected


def test_embedding_options() -> None:
    assert vectors(input="a", encoding_format="base64", dimensions=3, user="u") == VectorsAsked("m", ("a",), (), True, 3)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [""]}, "input[0]"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [True]}, "input[0]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [[1], "a"]}, "input[1]"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [[1] * 500_001] * 2}, "input"),
        ({"input": [1] * 1_000_001}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "stream": True}, "stream"),
    ],
)
def test_embeddings_refused(fields: Mapping[str, Any], param: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        vectors(**fields)
    assert refused.value.param == param
