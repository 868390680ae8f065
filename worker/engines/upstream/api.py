"""What an upstream's API has to tell the engine: how a call is written and how its answer is read. Pure.

One file for each API implements it. Never sends anything: `http.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.engine import Array, Piece, TextRequest

DONE = b"[DONE]"
"""The event that OpenAI's streams end with."""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request. `path` follows the base_url; without a body it is a GET."""

    path: str
    body: bytes = b""


class Reading(Protocol):
    """One streamed answer, event by event."""

    @property
    def finished(self) -> bool:
        """The model has ended; what may still come tells of tokens alone."""
        ...

    def take(self, event: bytes) -> Piece | None:
        """The text of an event, or of a whole answer. Raises Malformed, and what an error among the events means."""
        ...

    def last(self) -> Piece:
        """When no event comes any more: the piece with the finish. Raises UpstreamUnavailable for an answer cut short."""
        ...


class Api(Protocol):
    max_texts: int
    """Embedded by one call."""
    capabilities: frozenset[str]
    """What may be asked of it, where a model's manifest does not narrow that."""

    def headers(self, key: str) -> Mapping[str, str]:
        """Whatever proves who calls. `key` may be empty."""
        ...

    def generation(self, request: TextRequest) -> Call:
        """Raises InvalidArgument for what the API cannot be asked."""
        ...

    def reading(self, request: TextRequest) -> Reading: ...

    def embedding(self, texts: Sequence[str]) -> Call: ...

    def vectors(self, raw: bytes, rows: int) -> Array:
        """float32 [rows, width] of an answer. Raises Malformed."""
        ...

    def models(self) -> Call:
        """What to ask to see whether the upstream is there."""
        ...

    def has_model(self, raw: bytes) -> bool:
        """Whether that answer knows the model. Raises Malformed."""
        ...
