"""The nouns of the HTTP door of the inference protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.wire import RequestHead

Part = bytes | memoryview
"""A piece of a body. Pieces are put together once, into the message that leaves."""

JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"
EVENTS_TYPE = "text/event-stream"
HEADER_LENGTH = "inference-header-content-length"
"""How many bytes of a body are JSON; tensors follow them. Source: Triton's protocol/extension_binary_data.md."""


@dataclass(frozen=True, slots=True)
class RestAsked:
    """What the path names, and the body as it came. Empty where the path names nothing."""

    model: str = ""
    version: str = ""
    region: str = ""
    """Of shared memory."""
    repository: str = ""
    body: memoryview = field(default_factory=lambda: memoryview(b""))


@dataclass(frozen=True, slots=True)
class Came:
    """A request that was not looked at yet."""

    size_bytes: int
    read: Callable[[], RestAsked]
    """Raises EnvelopeMalformed."""


@dataclass(frozen=True, slots=True)
class Body:
    """What is answered."""

    parts: Sequence[Part]
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()
    status: int = 200

    @property
    def data(self) -> bytes:
        """All of it, as HTTP carries it."""
        return b"".join(self.parts)


@dataclass(frozen=True, slots=True)
class TensorShape:
    """An input as its model describes it; -1 = variable."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InferAsked:
    """An inference, checked as far as it can be without its model."""

    head: RequestHead
    payload: bytes
    """A serialised inference.ModelInferRequest."""
    binary: Mapping[str, bool]
    """By output: whether it is wanted as bytes, where its request says so."""
    all_binary: bool
    """Whether the others are."""
