"""The nouns that the worker's parts share, and the seams between them.

Execution streams and the KServe servicer call an `Inference`; the lifecycle puts models in and takes them out.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from runtime.ids import Digest, ModelName, ModelVersion


class Task(enum.Enum):
    """What a model is for: which front doors lead to it."""

    TENSOR = "tensor"
    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. `shape` leaves out the batch dimension where the model has one; -1 = variable."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True)
class BatchingSpec:
    max_queue_delay_us: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_size: int = 0
    """Requests that may wait; 0 = the worker's default."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model version as its signed manifest describes it."""

    model: ModelName
    version: ModelVersion
    digest: Digest
    engine: str
    task: Task
    max_batch_size: int
    """Rows in one execution; 0 = the model has no batch dimension."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batching: BatchingSpec = field(default_factory=BatchingSpec)
    parameters: Mapping[str, str] = field(default_factory=dict)
    decoupled: bool = False


class CopyState(enum.Enum):
    """Where a copy of a model is in its life; the transitions are in `worker/lifecycle.py`."""

    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    UNLOADING = "UNLOADING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class CallContext:
    """What travels with a request besides its payload."""

    request_id: str = ""
    tenant: str = ""
    priority: int = 0
    deadline_s: float | None = None
    """On the event loop's clock; None = none was set."""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the worker is, for those who choose among workers."""

    in_flight: int
    queued_rows: int


class Inference(Protocol):
    """Answers requests. Payloads and answers are serialised messages of package `inference` or penstock.worker.v1.

    Cancelling the awaiting task (or closing the iterator) cancels the request: its queue place or engine slot is freed.
    An empty model means the payload's own model_name; an empty version the newest ready one.
    """

    async def infer(self, model: str, version: str, payload: bytes, call: CallContext) -> bytes:
        """inference.ModelInferRequest → inference.ModelInferResponse."""
        ...

    def stream_infer(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        """inference.ModelInferRequest → inference.ModelStreamInferResponse … Raises what stops it."""
        ...

    def generate(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        """penstock.worker.v1.GenerateRequest → GenerateResponse …"""
        ...

    @property
    def load(self) -> Load: ...
