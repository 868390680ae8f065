"""What leaves: whole answers as JSON, streamed ones as server-sent events.

An answer's events differ in little but their text, so all around it is rendered once for each answer. Pure: id and time are
arguments. Source: OpenAI's API reference, "the chat completion chunk object" and "the completion object".
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from gateway.openai.types import Finish, Piece, Style, TextAsked, Usage

JSON_TYPE = "application/json"
EVENTS_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"


class TextAnswer:
    """One answer being written."""

    __slots__ = ("_after", "_around", "_asked", "_before", "_created_s", "_id", "_style", "_usage_after")

    def __init__(self, style: Style, asked: TextAsked, answer_id: str, created_s: int) -> None:
        self._style, self._asked = style, asked
        self._id, self._created_s = answer_id, created_s
        kind = "chat.completion.chunk" if style is Style.CHAT else "text_completion"
        head = json.dumps(self._head(kind), separators=(",", ":")).encode()
        self._around = b"data: " + head[:-1] + b',"choices":'
        self._usage_after = b',"usage":null}\n\n' if asked.include_usage else b"}\n\n"
        opening = b'[{"index":0,"delta":{"content":' if style is Style.CHAT else b'[{"index":0,"text":'
        closing = (
            b'},"logprobs":null,"finish_reason":null}]' if style is Style.CHAT else b',"logprobs":null,"finish_reason":null}]'
        )
        self._before, self._after = self._around + opening, closing + self._usage_after

    def first(self) -> bytes:
        """What comes before any text: in a chat, who speaks."""
        if self._style is not Style.CHAT:
            return b""
        role = b'[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}]'
        return self._around + role + self._usage_after

    def events(self, pieces: Iterable[Piece]) -> bytes:
        """Everything these pieces say, the end of the answer included where they hold it."""
        written: list[bytes] = []
        for piece in pieces:
            if piece.text:
                written += (self._before, json.dumps(piece.text).encode(), self._after)
            if piece.finish is not None:
                written.append(self._last(piece.finish, piece.usage))
        return b"".join(written)

    def whole(self, text: str, finish: Finish, usage: Usage) -> bytes:
        """The answer in one."""
        choice: dict[str, object] = {"index": 0}
        if self._style is Style.CHAT:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": finish.value}
        kind = "chat.completion" if self._style is Style.CHAT else "text_completion"
        return json.dumps({**self._head(kind), "choices": [choice], "usage": _usage(usage)}).encode()

    def _last(self, finish: Finish, usage: Usage) -> bytes:
        nothing = b'"delta":{}' if self._style is Style.CHAT else b'"text":""'
        choice = b'[{"index":0,%b,"logprobs":null,"finish_reason":"%b"}]' % (nothing, finish.value.encode())
        events = self._around + choice + self._usage_after
        if self._asked.include_usage:
            events += self._around + b'[],"usage":' + json.dumps(_usage(usage), separators=(",", ":")).encode() + b"}\n\n"
        return events + DONE

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": self._id, "object": kind, "created": self._created_s, "model": self._asked.name}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
