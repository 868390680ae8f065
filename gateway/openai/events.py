"""What leaves of an answer in pieces: server-sent events.

An answer's events differ in little but their text, so all around it is rendered once for each choice. Pure: id and time are
arguments. Source: OpenAI's API reference, "the chat completion chunk object" and "the completion object".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii

from gateway.openai.logprobs import TextLogprobs, chat_logprobs
from gateway.openai.pieces import NO_USAGE, Finish, Piece, ToolCallPart, Usage
from gateway.openai.types import Style, TextAsked

JSON_TYPE = "application/json"
EVENTS_TYPE = "text/event-stream"
DONE = "data: [DONE]\n\n"
KINDS = {Style.CHAT: "chat.completion.chunk", Style.COMPLETION: "text_completion"}


@dataclass(frozen=True, slots=True)
class Title:
    """What stands at the head of an answer."""

    answer_id: str
    created_s: int
    model: str
    """Who answers, as its caller reads it."""

    def fields(self, kind: str) -> dict[str, object]:
        return {"id": self.answer_id, "object": kind, "created": self.created_s, "model": self.model}


class TextEvents:
    """One answer being written."""

    __slots__ = ("_after", "_around", "_before", "_chats", "_choices", "_going", "_offsets", "_tells_usage", "_usage")

    def __init__(self, style: Style, asked: TextAsked, title: Title) -> None:
        self._chats, self._choices, self._tells_usage = style is Style.CHAT, asked.choices, asked.include_usage
        self._going, self._usage = asked.choices, NO_USAGE
        self._around = f'data: {_json(title.fields(KINDS[style]))[:-1]},"choices":'
        inner = '"delta":{"content":' if self._chats else '"text":'
        self._before = [f'{self._around}[{{"index":{choice},{inner}' for choice in range(asked.choices)]
        self._after = f'{"}" if self._chats else ""},"logprobs":null,"finish_reason":null}}]{self._end}'
        self._offsets = (
            [TextLogprobs(len(prompt)) for prompt in asked.prompts for _ in range(asked.n)]
            if not self._chats and asked.top_logprobs is not None
            else []
        )

    @property
    def _end(self) -> str:
        return ',"usage":null}\n\n' if self._tells_usage else "}\n\n"

    def first(self) -> bytes:
        """What comes before any text: in a chat, who speaks."""
        if not self._chats:
            return b""
        role = '"delta":{"role":"assistant","content":"","refusal":null}'
        return "".join(self._event(choice, role) for choice in range(self._choices)).encode()

    def events(self, pieces: Iterable[Piece]) -> bytes:
        """Everything these pieces say, the end of the answer included where they hold it."""
        written: list[str] = []
        before, after = self._before, self._after
        for piece in pieces:
            if piece.logprobs or piece.tool_calls:
                self._rich(written, piece)
            elif piece.text:
                written += (before[piece.choice], encode_basestring_ascii(piece.text), after)
            if piece.finish is not None:
                self._finish(written, piece, piece.finish)
        return "".join(written).encode()

    def _rich(self, written: list[str], piece: Piece) -> None:
        """A piece that holds more than text."""
        text, logprobs = encode_basestring_ascii(piece.text), "null"
        if piece.logprobs:
            told = chat_logprobs(piece.logprobs) if self._chats else self._offsets[piece.choice].told(piece.logprobs)
            logprobs = _json(told)
        if piece.text or piece.logprobs:
            said = f'"delta":{{"content":{text}}}' if self._chats else f'"text":{text}'
            written.append(self._event(piece.choice, said, logprobs))
        if piece.tool_calls and self._chats:
            calls = _json([_call(part) for part in piece.tool_calls])
            written.append(self._event(piece.choice, f'"delta":{{"tool_calls":{calls}}}'))

    def _finish(self, written: list[str], piece: Piece, finish: Finish) -> None:
        written.append(self._event(piece.choice, '"delta":{}' if self._chats else '"text":""', finish=f'"{finish.value}"'))
        self._usage += piece.usage
        self._going -= 1
        if self._going:
            return
        if self._tells_usage:
            written.append(f'{self._around}[],"usage":{_json(usage_told(self._usage))}}}\n\n')
        written.append(DONE)

    def _event(self, choice: int, said: str, logprobs: str = "null", finish: str = "null") -> str:
        return f'{self._around}[{{"index":{choice},{said},"logprobs":{logprobs},"finish_reason":{finish}}}]{self._end}'


def usage_told(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _call(part: ToolCallPart) -> dict[str, object]:
    """The first part of a call says which one it is and what kind."""
    if not part.call_id and not part.name:
        return {"index": part.place, "function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {"index": part.place, "id": part.call_id, "type": "function", "function": function}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
