"""The nouns of the OpenAI door, and what it asks of the gateway behind it."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from inference.grpc_service_pb2 import ModelMetadataResponse

from gateway.admission import KeyFacts
from gateway.auto import AutoModels
from gateway.callers import Caller, Context
from gateway.exchange import Exchange, Exchanges
from gateway.links.types import CallContext, Method
from gateway.types import PublishedVersion
from placement.copies.wishes import Placement
from placement.types import Copy, Request, Worker
from placement.view import FleetView
from runtime.ids import KeyId, ModelVersion, Region


class Style(enum.Enum):
    """The two ways to ask for text: a conversation, or a prompt taken as it is."""

    CHAT = "chat"
    COMPLETION = "completion"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation, its text parts already one text."""

    role: str
    content: str
    name: str = ""
    tool_calls_json: str = ""
    """Of an assistant's turn: what it called, as it came; empty: nothing."""
    tool_call_id: str = ""
    """Of a tool's turn: which call it answers."""


Prompt = str | tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """None = the model's own default; temperature 0 = the most likely token."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Which tools a model may call, and what its answer is to look like: JSON as it came, empty where nothing was said."""

    tools_json: str = ""
    choice_json: str = ""
    parallel: bool | None = None
    response_format_json: str = ""


@dataclass(frozen=True, slots=True)
class TextAsked:
    """A request for text, checked."""

    model: str
    prompts: tuple[Prompt, ...]
    """At least one. Only completions have several."""
    sampling: Sampling = Sampling()
    max_tokens: int = 0
    """0 = up to the model's limit."""
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    session_key: str = ""
    """Requests of one key prefer the worker that has their beginning in memory."""
    wanted: str = ""
    """The version that was asked for: a number or an alias; empty: none."""
    n: int = 1
    """Answers to each prompt."""
    top_logprobs: int | None = None
    """Of how many likeliest tokens at each place; 0 = of the chosen ones alone; None: none are asked for."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    tool_use: ToolUse = ToolUse()
    needs: Mapping[str, str] = field(default_factory=dict)
    """What a model has to be able to do for it, by capability: the parameter that asks for it."""

    @property
    def choices(self) -> int:
        """Answers in all. Those to one prompt stand together."""
        return self.n * len(self.prompts)

    @property
    def name(self) -> str:
        """The model as the caller called it."""
        return f"{self.model}@{self.wanted}" if self.wanted else self.model


@dataclass(frozen=True, slots=True)
class VectorsAsked:
    """A request for embeddings, checked. `texts` or `token_ids` is empty."""

    model: str
    texts: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    base64: bool = False
    dimensions: int | None = None
    wanted: str = ""
    """As in TextAsked."""

    @property
    def name(self) -> str:
        return f"{self.model}@{self.wanted}" if self.wanted else self.model


@dataclass(frozen=True, slots=True)
class TensorShape:
    """One input or output of a model, with the batch dimension; -1 = variable."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives."""

    inputs: tuple[TensorShape, ...]
    outputs: tuple[TensorShape, ...]


class Dispatch(Protocol):
    """Takes a request to its answer: gateway.dispatch.Dispatch."""

    async def infer(self, request: Request, payload: bytes, call: CallContext, exchange: Exchange) -> bytes: ...

    async def warm(self, request: Request, call: CallContext) -> None: ...

    def stream(
        self,
        method: Method,
        request: Request,
        payload: bytes,
        call: CallContext,
        exchange: Exchange,
    ) -> AsyncGenerator[bytes, None]: ...


class Targets(Protocol):
    """What a caller's words mean, and whether it may have that: gateway.targets.Targets."""

    async def found(
        self, key: KeyFacts, model: str, wanted: str = "", session_key: str = "", deadline_s: float | None = None
    ) -> ModelVersion: ...

    def sees(self, key: KeyFacts, model: str) -> bool: ...

    def pinned(self, key: KeyFacts, model: str, wanted: str) -> ModelVersion: ...


class Fleet(Protocol):
    """Who serves what: gateway.fleet.Fleet."""

    @property
    def synced(self) -> bool: ...

    @property
    def view(self) -> FleetView: ...

    def copies(self, model: str, version: str = "") -> tuple[tuple[Worker, Copy], ...]: ...

    def placed(self, model: str, version: str = "") -> bool: ...

    def regions_with(self, model: str) -> list[Region]: ...

    def wanted(self) -> Iterator[Placement]: ...


class Regions(Protocol):
    """Where requests are from: gateway.regions.Regions."""

    def of(self, headers: Mapping[str, str | bytes], address: str = "") -> Region: ...


class Door(Protocol):
    """Lets calls in: gateway.callers.Callers."""

    async def enter(self, context: Context) -> Caller: ...

    async def stands(self, key_id: KeyId) -> bool | None: ...


class Copies(Protocol):
    """Knows what a model takes and gives: gateway.kserve.copies.CopyInquiry."""

    async def metadata(self, name: str, version: str) -> ModelMetadataResponse: ...

    def chosen(self, model: str, version: str) -> ModelVersion: ...


class Registry(Protocol):
    """Knows what was published: gateway.peers.RegistryClient."""

    async def published(self) -> Sequence[PublishedVersion]: ...


class Mesh(Protocol):
    """What is behind the API: gateway.mesh.Mesh."""

    @property
    def callers(self) -> Door: ...

    @property
    def exchanges(self) -> Exchanges: ...

    @property
    def dispatch(self) -> Dispatch: ...

    @property
    def auto(self) -> AutoModels: ...

    @property
    def targets(self) -> Targets: ...

    @property
    def fleet(self) -> Fleet: ...

    @property
    def copies(self) -> Copies: ...

    @property
    def registry(self) -> Registry: ...

    @property
    def regions(self) -> Regions: ...
