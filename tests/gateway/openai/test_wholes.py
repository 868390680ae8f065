"""Whole answers, read with the official client's own types."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion

from gateway.openai.events import Title
from gateway.openai.pieces import Finish, Logprob, Piece, TokenLogprob, ToolCallPart, Usage
from gateway.openai.types import Style, TextAsked
from gateway.openai.wholes import Gathered
from tests.gateway.openai.test_events import NASTY


def rendered(style: Style, *pieces: Piece, **asked: Any) -> bytes:
    gathered = Gathered(style, TextAsked("m", **{"prompts": ("p",), **asked}))
    for piece in pieces:
        assert not gathered.whole
        gathered.take(piece)
    assert gathered.whole
    return gathered.rendered(Title("id-1", 7, "m"))


def chat(*pieces: Piece, **asked: Any) -> ChatCompletion:
    return ChatCompletion.model_validate_json(rendered(Style.CHAT, *pieces, **asked), strict=True)


def test_a_chat() -> None:
    answer = chat(Piece(NASTY), Piece("", Finish.STOP, Usage(1, 2)))
    assert answer.choices[0].message.content == NASTY
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert answer.usage.total_tokens == 3


def test_a_completion() -> None:
    text = Completion.model_validate_json(rendered(Style.COMPLETION, Piece(NASTY, Finish.LENGTH)), strict=True)
    assert (text.object, text.choices[0].text, text.choices[0].finish_reason) == ("text_completion", NASTY, "length")


@given(st.permutations([(choice, part) for choice in range(4) for part in range(3)]))
def test_choices_stand_in_their_order_however_they_came(order: list[tuple[int, int]]) -> None:
    sent: dict[int, int] = {}
    pieces = []
    for choice, _ in order:
        part = sent.get(choice, 0)
        sent[choice] = part + 1
        last = part == 2
        usage = Usage(5 if choice % 2 == 0 else 0, 3) if last else Usage()
        pieces.append(Piece(f"{choice}.{part} ", Finish.STOP if last else None, usage, choice))
    body = json.loads(rendered(Style.COMPLETION, *pieces, prompts=("a", "b"), n=2))
    assert [each["index"] for each in body["choices"]] == [0, 1, 2, 3]
    assert [each["text"] for each in body["choices"]] == [f"{choice}.0 {choice}.1 {choice}.2 " for choice in range(4)]
    assert body["usage"] == {"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22}


def test_tool_calls_are_put_together() -> None:
    parts = (ToolCallPart(1, "c2", "now", "{}"), ToolCallPart(0, "c1", "add", '{"a"'), ToolCallPart(0, arguments=":1}"))
    answer = chat(*(Piece("", tool_calls=(part,)) for part in parts), Piece("", Finish.TOOL_CALLS))
    message = answer.choices[0].message
    assert message.content is None
    told = [call for call in message.tool_calls or () if call.type == "function"]
    assert [(call.id, call.function.name, call.function.arguments) for call in told] == [
        ("c1", "add", '{"a":1}'),
        ("c2", "now", "{}"),
    ]
    assert answer.choices[0].finish_reason == "tool_calls"


def test_an_answer_that_a_filter_ended() -> None:
    assert chat(Piece("half", Finish.CONTENT_FILTER)).choices[0].finish_reason == "content_filter"


def test_log_probabilities() -> None:
    tokens = (
        TokenLogprob(Logprob(b"a", -0.5), (Logprob(b"a", -0.5), Logprob(b"b", -1.0))),
        TokenLogprob(Logprob(b"\xff", -9.0)),
    )
    told = chat(Piece("a\ufffd", Finish.STOP, logprobs=tokens), top_logprobs=2).choices[0].logprobs
    assert told is not None
    assert [(each.token, each.bytes, each.logprob) for each in told.content or ()] == [
        ("a", [97], -0.5),
        ("\ufffd", [255], -9.0),
    ]
    text = json.loads(rendered(Style.COMPLETION, Piece("a\ufffd", Finish.STOP, logprobs=tokens), top_logprobs=2))
    assert text["choices"][0]["logprobs"] == {
        "tokens": ["a", "bytes:\\xff"],
        "token_logprobs": [-0.5, -9.0],
        "top_logprobs": [{"a": -0.5, "b": -1.0}, None],
        "text_offset": [1, 2],
    }
