"""What leaves of an answer in one: JSON, put together of its pieces.

Pure but for what it has gathered. Source: OpenAI's API reference, "the chat completion object" and "the completion object".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from gateway.openai.events import Title, usage_told
from gateway.openai.logprobs import TextLogprobs, chat_logprobs
from gateway.openai.pieces import NO_USAGE, Finish, Piece, TokenLogprob, ToolCallPart, Usage
from gateway.openai.types import Style, TextAsked

KINDS = {Style.CHAT: "chat.completion", Style.COMPLETION: "text_completion"}


@dataclass(slots=True)
class _Choice:
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    calls: dict[int, list[ToolCallPart]] = field(default_factory=dict)
    finish: Finish | None = None
    usage: Usage = NO_USAGE


class Gathered:
    """An answer's pieces, choice by choice."""

    def __init__(self, style: Style, asked: TextAsked) -> None:
        self._style, self._asked = style, asked
        self._choices = [_Choice() for _ in range(asked.choices)]
        self._going = asked.choices

    @property
    def whole(self) -> bool:
        """Every choice has come to its end."""
        return not self._going

    def take(self, piece: Piece) -> None:
        choice = self._choices[piece.choice]
        if piece.text:
            choice.texts.append(piece.text)
        choice.logprobs += piece.logprobs
        for part in piece.tool_calls:
            choice.calls.setdefault(part.place, []).append(part)
        if piece.finish is not None:
            choice.finish, choice.usage = piece.finish, piece.usage
            self._going -= 1

    def rendered(self, title: Title) -> bytes:
        usage = NO_USAGE
        for choice in self._choices:
            usage += choice.usage
        choices = [self._told(place, choice) for place, choice in enumerate(self._choices)]
        return json.dumps({**title.fields(KINDS[self._style]), "choices": choices, "usage": usage_told(usage)}).encode()

    def _told(self, place: int, choice: _Choice) -> dict[str, object]:
        text, finish = "".join(choice.texts), None if choice.finish is None else choice.finish.value
        said: dict[str, object]
        if self._style is Style.CHAT:
            said = {"message": _message(text, choice)}
            logprobs = chat_logprobs(choice.logprobs) if choice.logprobs else None
        else:
            said = {"text": text}
            prompt = self._asked.prompts[place // self._asked.n]
            logprobs = TextLogprobs(len(prompt)).told(choice.logprobs) if choice.logprobs else None
        return {"index": place, **said, "logprobs": logprobs, "finish_reason": finish}


def _message(text: str, choice: _Choice) -> dict[str, object]:
    message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
    if choice.calls:
        message["tool_calls"] = [_call(choice.calls[place]) for place in sorted(choice.calls)]
        if not text:
            message["content"] = None
    return message


def _call(parts: list[ToolCallPart]) -> dict[str, object]:
    first = replace(parts[0], arguments="".join(part.arguments for part in parts))
    return {"id": first.call_id, "type": "function", "function": {"name": first.name, "arguments": first.arguments}}
