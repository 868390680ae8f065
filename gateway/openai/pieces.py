"""An answer's pieces, as a worker gives them and the door writes them."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Finish(enum.Enum):
    """Why a generation ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Logprob:
    token: bytes
    """Its own bytes, which need not be whole characters."""
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    chosen: Logprob
    top: tuple[Logprob, ...] = ()
    """Likeliest first."""


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A part of a tool call. Parts of one call have its place; id and name come with the first."""

    place: int
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    """The next piece of their JSON."""


@dataclass(slots=True)
class Piece:
    """What one answer of the worker added. The last one of a choice has a finish. Not frozen: there is one for each token."""

    text: str
    finish: Finish | None = None
    usage: Usage = NO_USAGE
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallPart, ...] = ()
