"""What is written piece by piece, read with the official client's own types."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from gateway.openai.events import TextEvents, Title
from gateway.openai.pieces import Finish, Logprob, Piece, TokenLogprob, ToolCallPart, Usage
from gateway.openai.types import Style, TextAsked

NASTY = 'line\nbreak\r\n\u2028 "quoted" \\ \x00 wörld 🚰 data: [DONE]'
PIECES = (Piece("a"), Piece(""), Piece(NASTY), Piece("z", Finish.LENGTH, Usage(3, 4)))


def answer(style: Style, **asked: Any) -> TextEvents:
    fields = {"prompts": ("p",), "stream": True, **asked}
    return TextEvents(style, TextAsked('m"1', **fields), Title("id-1", 7, 'm"1'))


def events(written: bytes) -> list[Any]:
    *chunks, end, rest = written.split(b"\n\n")
    assert (end, rest) == (b"data: [DONE]", b"")
    return [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]


@pytest.mark.parametrize("usage", [False, True])
def test_a_chat_in_chunks(usage: bool) -> None:
    one = answer(Style.CHAT, include_usage=usage)
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


@pytest.mark.parametrize("style", Style)
@given(cuts=st.lists(st.lists(st.text(max_size=5), min_size=1, max_size=4), min_size=2, max_size=4), data=st.data())
def test_however_choices_mix_each_reads_as_it_was_given(style: Style, cuts: list[list[str]], data: st.DataObject) -> None:
    left = {choice: list(texts) for choice, texts in enumerate(cuts)}
    one = answer(style, n=len(cuts), include_usage=True)
    written = one.first()
    while left:
        choice = data.draw(st.sampled_from(sorted(left)))
        text = left[choice].pop(0)
        finish = None if left[choice] else Finish.STOP
        written += one.events([Piece(text, finish, Usage(2 * (choice == 0), 1) if finish else Usage(), choice)])
        if finish:
            del left[choice]
    seen = events(written)
    assert seen[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": len(cuts), "total_tokens": 2 + len(cuts)}
    read: dict[int, str] = dict.fromkeys(range(len(cuts)), "")
    for event in seen[:-1]:
        (told,) = event["choices"]
        read[told["index"]] += told["text"] if style is Style.COMPLETION else told["delta"].get("content", "")
    assert read == {choice: "".join(texts) for choice, texts in enumerate(cuts)}
    assert sum(event["choices"][0]["finish_reason"] == "stop" for event in seen[:-1]) == len(cuts)


def test_tool_calls_in_parts() -> None:
    parts = (ToolCallPart(0, "c1", "add"), ToolCallPart(0, arguments='{"a":1}'), ToolCallPart(1, "c2", "now", "{}"))
    one = answer(Style.CHAT)
    pieces = [Piece("", tool_calls=parts[:1]), Piece("so", tool_calls=parts[1:]), Piece("", Finish.TOOL_CALLS)]
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events(one.first() + one.events(pieces))]
    told = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(call.index, call.id, call.type) for call in told] == [
        *((0, "c1", "function"), (0, None, None)),
        (1, "c2", "function"),
    ]
    assert [call.function and call.function.arguments for call in told] == ["", '{"a":1}', "{}"]
    assert [call.function and call.function.name for call in told] == ["add", None, "now"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "so"
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_log_probabilities_of_a_chat() -> None:
    half = TokenLogprob(Logprob("ö".encode()[:1], -0.5), (Logprob(b"o", -1.0), Logprob(b"", float("-inf"))))
    one = answer(Style.CHAT, top_logprobs=2)
    written = one.events(
        [Piece("", logprobs=(half,)), Piece("ö", Finish.STOP, logprobs=(TokenLogprob(Logprob(b"\xb6", 0.0)),))]
    )
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events(written)]
    told = [token for chunk in chunks if (found := chunk.choices[0].logprobs) for token in found.content or ()]
    assert b"".join(bytes(token.bytes or ()) for token in told) == "ö".encode()
    assert [(top.token, top.logprob) for top in told[0].top_logprobs] == [("o", -1.0), ("", -9999.0)]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "ö", None]


@given(st.text(max_size=12), st.text(max_size=3), st.data())
def test_offsets_of_a_completions_tokens_tell_where_they_begin(text: str, prompt: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=6))) if raw else []
    bounds = [0, *(cut for cut in cuts if cut < len(raw)), len(raw)]
    tokens = [raw[begins:ends] for begins, ends in pairwise(bounds) if begins < ends]
    one = answer(Style.COMPLETION, prompts=(prompt,), top_logprobs=1)
    logprobs = [TokenLogprob(Logprob(token, -1.0), (Logprob(token, -1.0), Logprob(token + b"!", -2.0))) for token in tokens]
    written = one.events([*(Piece("", logprobs=(each,)) for each in logprobs), Piece(text, Finish.STOP)])
    told = [found for event in events(written) if (found := event["choices"][0]["logprobs"])]
    offsets = [offset for each in told for offset in each["text_offset"]]
    assert len(offsets) == len(tokens)
    for offset, begins in zip(offsets, bounds, strict=False):
        whole = raw[:begins].decode(errors="ignore")
        assert offset == len(prompt) + len(whole), "a token within a letter begins where that letter does"
    assert all(len(top) == 2 for each in told for top in each["top_logprobs"]), "tokens that differ have names that differ"
