"""The nouns of a link: what a call carries, how busy the worker said it is, how a link fails."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from runtime.errors import Code, PenstockError


class Method(enum.Enum):
    """How a call is answered."""

    INFER = "infer"
    """One answer: ModelInferRequest → ModelInferResponse."""
    STREAM_INFER = "stream_infer"
    """ModelInferRequest → ModelStreamInferResponse …"""
    GENERATE = "generate"
    """GenerateRequest → GenerateResponse …"""


@dataclass(frozen=True, slots=True)
class CallContext:
    """What travels with a call besides its payload."""

    request_id: str = ""
    tenant: str = ""
    priority: int = 0
    deadline_s: float | None = None
    """On the event loop's clock; None = none was set."""
    traceparent: str = ""
    hold_id: str = ""
    """The place at the worker that is kept for this call; empty: it takes one of its own."""


@dataclass(frozen=True, slots=True)
class LinkLoad:
    """How busy the worker was when it last wrote on this link."""

    in_flight: int = 0
    queued_rows: int = 0
    draining: bool = False


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How one link behaves. Times in seconds."""

    streams: int = 1
    """Execute streams per worker; they share one connection. Measured in docs/decisions/0005: a second one saves nothing."""
    connect_timeout_s: float = 3.0
    """From the start of an attempt to the worker's first message."""
    backoff_initial_s: float = 0.05
    backoff_max_s: float = 2.0
    calls_per_stream: int = 1024
    answer_bytes: int = 64 * 1024 * 1024
    """One answer message at most."""
    silent_after_s: float = 1.0
    """A worker with open calls that said nothing for so long is passed over by new requests. It writes twice as often."""
    lost_after_s: float = 3.0
    """After so long its calls go to others that have the model. Longer than engines keep a worker's loop from running."""
    credit: int = 32
    """Answer messages of one streaming call that may wait here unread; half of them read grants as many anew."""


class Others(Protocol):
    """The other workers, as far as a link asks for them: gateway.others.OtherWorkers."""

    def pass_over(self, silent_s: float) -> None:
        """This link's worker has been silent for so long: new requests should go to others."""
        ...

    def have(self, model: str, version: str) -> bool:
        """Whether another worker can answer for this version now."""
        ...

    def took_over(self, calls: int) -> None:
        """So many calls of this link's worker were given up for others to take."""
        ...


class LinkLost(PenstockError, code=Code.UNAVAILABLE, reason="LINK_LOST"):
    """The stream that carried the call broke, or there was none. Nobody knows whether the worker did the work.

    `started`: an answer had reached the caller's side, so the call cannot simply be sent elsewhere. A unary answer
    arrives whole or not at all: for it this is never so.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, started: bool = False) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.started = started


class LinkFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="LINK_FULL"):
    """As many calls are open to this worker as a link holds."""


class WorkerBusy(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="WORKER_BUSY"):
    """The worker has no place for this call now. Unlike a batching queue that is full by its model's own policy, it is worth
    waiting for one."""
