"""What is written, read with the official client's own types."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.openai.events import TextAnswer
from gateway.openai.types import Finish, Piece, Style, TextAsked, Usage

NASTY = 'line\nbreak\r\n\u2028 "quoted" \\ \x00 wörld 🚰 data: [DONE]'
PIECES = (Piece("a"), Piece(""), Piece(NASTY), Piece("z", Finish.LENGTH, Usage(3, 4)))


def answer(style: Style, *, usage: bool = False) -> TextAnswer:
    return TextAnswer(style, TextAsked('m"1', "p", stream=True, include_usage=usage), "id-1", 7)


def events(written: bytes) -> list[Any]:
    *chunks, end, rest = written.split(b"\n\n")
    assert (end, rest) == (b"data: [DONE]", b"")
    return [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]


@pytest.mark.parametrize("usage", [False, True])
def test_a_chat_in_chunks(usage: bool) -> None:
    one = answer(Style.CHAT, usage=usage)
    seen = events(one.first() + one.events(PIECES))
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in seen]
    assert {(c.id, c.object, c.created, c.model) for c in chunks} == {("id-1", "chat.completion.chunk", 7, 'm"1')}
    told = [c.choices[0] for c in chunks if c.choices]
    assert [c.delta.role for c in told] == ["assistant", None, None, None, None]
    assert [c.delta.content for c in told] == ["", "a", NASTY, "z", None]
    assert [c.finish_reason for c in told] == [None, None, None, None, "length"]
    if usage:
        assert all(event["usage"] is None for event in seen[:-1])
        assert seen[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        assert seen[-1]["choices"] == []
    else:
        assert not [event for event in seen if "usage" in event]


def test_a_completion_in_chunks() -> None:
    one = answer(Style.COMPLETION)
    told = [event["choices"][0] for event in events(one.first() + one.events(PIECES))]
    assert [choice["text"] for choice in told] == ["a", NASTY, "z", ""]
    assert [choice["finish_reason"] for choice in told] == [None, None, None, "length"]


def test_in_one() -> None:
    chat = ChatCompletion.model_validate_json(answer(Style.CHAT).whole(NASTY, Finish.STOP, Usage(1, 2)), strict=True)
    assert chat.choices[0].message.content == NASTY
    assert chat.choices[0].finish_reason == "stop"
    assert chat.usage is not None
    assert chat.usage.total_tokens == 3
    text = Completion.model_validate_json(answer(Style.COMPLETION).whole(NASTY, Finish.LENGTH, Usage()), strict=True)
    assert (text.object, text.choices[0].text, text.choices[0].finish_reason) == ("text_completion", NASTY, "length")
