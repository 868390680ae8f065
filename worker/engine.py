"""What the worker asks of an engine. One file in `worker/engines/` per technology implements one of these Protocols.

An engine is called from its lanes' threads, one for each of its slots, and may block there. It never sees a request, a queue or
the loop. A remote engine is the exception: it is called on the loop and never blocks.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from runtime.errors import Code, PenstockError

Array = NDArray[Any]


class EngineFailed(PenstockError, code=Code.INTERNAL, reason="ENGINE_FAILED"):
    """The engine could not execute this; the model or the engine is at fault, or an input it alone can judge."""


class EngineUnavailable(PenstockError, code=Code.FAILED_PRECONDITION, reason="ENGINE_UNAVAILABLE"):
    """A package or a device that the model asks for is not there."""


class ModelRefused(PenstockError, code=Code.FAILED_PRECONDITION, reason="MODEL_REFUSED"):
    """The files do not hold the model that the manifest describes."""


class TensorEngine(Protocol):
    """An open model that turns tensors into tensors.

    Has `slots` places where executions may run side by side. One thread serves one slot; different slots may run at once.
    """

    utf8_bytes: bool
    """Elements of BYTES inputs have to be UTF-8."""
    slots: int
    """1 for an engine that runs one execution at a time."""

    def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
        """One execution. Outputs stand in the order of the spec; BF16 is uint16 bits, BYTES are object arrays of bytes.

        Input arrays may be read-only views of a request's own bytes. Outputs belong to the caller: they are not written to by
        a later run. Raises EngineFailed, InvalidArgument.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class StagingEngine(Protocol):
    """A tensor engine with memory of its own for inputs, such as pinned memory: batches are gathered straight into it."""

    def staging(self, shapes: Mapping[str, tuple[tuple[int, ...], str]], slot: int = 0) -> Mapping[str, Array] | None:
        """Arrays of exactly these shapes and datatypes (KServe's names) to gather the slot's next execution into.

        They are valid until that slot's next run. None where it has none for them: the batcher then makes its own.
        """
        ...


class Finish(enum.Enum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    """Somebody's filter kept the rest back."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    name: str = ""
    tool_calls_json: str = ""
    """What an assistant called: JSON as OpenAI's API has it; empty: nothing."""
    tool_call_id: str = ""
    """Of a tool's turn: which call it answers."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Which tools may be called, and what the answer is to look like: JSON as OpenAI's API has it; empty: nothing is said."""

    tools_json: str = ""
    choice_json: str = ""
    parallel: bool | None = None
    """Whether an answer may hold several calls; None: as the engine has it."""
    response_format_json: str = ""


NO_TOOLS = ToolUse()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; None = the model's own default, temperature 0 = the most likely one."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A generation to make. `prompt` is text, or a conversation that the model's own template turns into text."""

    prompt: str | tuple[Message, ...]
    sampling: Sampling = Sampling()
    max_tokens: int = 0
    """0 = up to the model's limit. Tokens of `resume_token_ids` count."""
    stop: tuple[str, ...] = ()
    resume_token_ids: tuple[int, ...] = ()
    top_logprobs: int | None = None
    """None: none are asked for. 0 = of the chosen tokens alone."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens, from -100 to 100."""
    tool_use: ToolUse = NO_TOOLS
    whole: bool = False
    """Nobody reads the answer before its end: it may be made in one piece."""


@dataclass(frozen=True, slots=True)
class Logprob:
    token_id: int
    token: bytes
    """The token's own bytes, which need not be whole characters."""
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


@dataclass(frozen=True, slots=True)
class Piece:
    """What one or more steps added. The last one has a finish."""

    text: str
    token_ids: tuple[int, ...]
    finish: Finish | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of token_ids where they were asked for."""
    tool_calls: tuple[ToolCallPart, ...] = ()


class Generation(Protocol):
    """One generation, as its engine's `begin` made it."""

    def close(self) -> None:
        """Free what it holds. Called by the thread that steps; safe to call twice."""
        ...


@runtime_checkable
class TextEngine(Protocol):
    """An open model that turns text into text, for several generations at once. They join and leave between any two steps."""

    slots: int
    """Generations that may be stepped and not closed at once."""

    def begin(self, request: TextRequest) -> Generation:
        """Check it and turn its prompt into tokens; takes no slot and computes nothing, so a refusal waits for nobody.

        Called by one thread at a time, which need not be the one that steps. Raises InvalidArgument for what exceeds the
        model's limits.
        """
        ...

    def step(self, generations: Sequence[Generation]) -> Sequence[Piece | PenstockError | None]:
        """One step of the batch: each of these, all from this engine's `begin`, goes on by one token or a part of its prompt.

        An answer for each, in their order; None while there is no text to show. After an error or a piece with a finish a
        generation is not given again. Between steps it may pause, its slot kept. Called by one thread.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class SkilledEngine(Protocol):
    """A text or remote engine that knows what may be asked of it."""

    capabilities: frozenset[str]
    """Of `runtime.model_traits.CAPABILITIES`."""
    context_tokens: int
    """Prompt and answer together; 0 = unknown."""


@runtime_checkable
class RemoteEngine(Protocol):
    """A model that runs behind somebody else's API. Called on the loop; waits instead of blocking."""

    def generate(self, request: TextRequest, *, deadline_s: float | None = None) -> AsyncGenerator[Piece, None]:
        """Pieces as they come, the last one with a finish. Closing it ends the call upstream.

        `deadline_s` is on the loop's clock. Raises what the upstream's answer means, as our own classes.
        """
        ...

    async def embed(self, texts: Sequence[str], *, deadline_s: float | None = None) -> Array:
        """float32 [texts, width]."""
        ...

    async def aclose(self) -> None: ...
