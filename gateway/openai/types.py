"""The nouns of the OpenAI door, and what it asks of the gateway behind it."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from inference.grpc_service_pb2 import ModelMetadataResponse

from gateway.admission import KeyFacts
from gateway.callers import Caller, Context
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


@dataclass(frozen=True, slots=True)
class Sampling:
    """None = the model's own default; temperature 0 = the most likely token."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class TextAsked:
    """A request for text, checked."""

    model: str
    prompt: str | tuple[Turn, ...]
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


class Finish(enum.Enum):
    """Why a generation ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """What one answer of the worker added. The last one has a finish."""

    text: str
    finish: Finish | None = None
    usage: Usage = Usage()


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


class Router(Protocol):
    """Takes a request to a worker: gateway.routing.Router."""

    async def infer(self, request: Request, payload: bytes, call: CallContext) -> bytes: ...

    async def warm(self, request: Request, call: CallContext) -> None: ...

    def stream(
        self,
        method: Method,
        request: Request,
        payload: bytes,
        call: CallContext,
        on_granted: Callable[[ModelVersion], None] | None = None,
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


class Metrics(Protocol):
    """What is counted: gateway.metrics.GatewayMetrics."""

    def answered(self, method: str, model: str, elapsed_s: float) -> None: ...

    def failed(self, method: str, model: str, code: str) -> None: ...


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
    def router(self) -> Router: ...

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

    @property
    def metrics(self) -> Metrics: ...
