"""The nouns that the worker's parts share, and the seams between them.

Execution streams and the KServe servicer call an `Inference`; the lifecycle puts models in and takes them out.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from runtime.ids import Digest, ModelName, ModelVersion
from worker.traits import NO_TRAITS, Traits

if TYPE_CHECKING:  # it brings generated messages, which a model's own process does without
    from runtime.load_overrides import LoadOverride
    from worker.quota import Admission


class Task(enum.Enum):
    """What a model is for: which front doors lead to it."""

    TENSOR = "tensor"
    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


class Kind(enum.Enum):
    """What an open copy takes and gives."""

    TENSORS = "tensors"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. `shape` leaves out the batch dimension where the model has one; -1 = variable."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()
    optional: bool = False


class TimeoutAction(enum.Enum):
    """What becomes of a request that waited too long."""

    REJECT = "reject"
    DELAY = "delay"
    """It runs when nothing that is in time waits."""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How one priority's requests wait; Triton's ModelQueuePolicy."""

    timeout_action: TimeoutAction = TimeoutAction.REJECT
    default_timeout_s: float | None = None
    allow_timeout_override: bool = True
    """Whether a request's own timeout counts. It can shorten the default, not lengthen it."""
    max_queue_size: int = 0
    """0 = as many as the whole queue takes."""


@dataclass(frozen=True, slots=True)
class BatchingSpec:
    max_queue_delay_us: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_size: int = 0
    """Requests that may wait; 0 = the worker's default."""
    priority_levels: int = 0
    """Requests have a priority from 1 (most urgent) to this; 0 = all are alike."""
    default_priority_level: int = 0
    """Of requests without a priority, or with one that is none of the levels."""
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policies: Mapping[int, QueuePolicy] = field(default_factory=dict)
    preserve_ordering: bool = False


class SequenceStrategy(enum.Enum):
    DIRECT = "direct"
    """A sequence keeps its row in the batch; rows without a request are there all the same, with READY false."""
    OLDEST = "oldest"
    """Requests of several sequences are batched as they come, one of each at most."""


class SequenceControlKind(enum.Enum):
    START = "start"
    END = "end"
    READY = "ready"
    CORRID = "corrid"


@dataclass(frozen=True, slots=True)
class SequenceControl:
    """An input that tells the model about the sequence; it is not among the spec's inputs."""

    input: str
    kind: SequenceControlKind
    datatype: str


@dataclass(frozen=True, slots=True)
class SequenceState:
    """An output kept for the sequence and given back as an input with its next request; zeros at the start."""

    input: str
    output: str
    datatype: str
    shape: tuple[int, ...]
    """Without the batch dimension."""


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """A model whose requests belong to sequences; Triton's ModelSequenceBatching."""

    strategy: SequenceStrategy = SequenceStrategy.DIRECT
    max_idle_s: float = 1.0
    max_sequences: int = 0
    """0 = rows of a batch times instances."""
    max_waiting_sequences: int = 0
    """0 = the worker's default."""
    controls: tuple[SequenceControl, ...] = ()
    states: tuple[SequenceState, ...] = ()


class WarmUpData(enum.Enum):
    ZEROS = "zeros"
    RANDOM = "random"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class WarmUpInput:
    name: str
    data: WarmUpData
    shape: tuple[int, ...] = ()
    """Without the batch dimension; empty = the input's own, variable sizes being 1."""
    file: str = ""


@dataclass(frozen=True, slots=True)
class WarmUpSpec:
    """Executions made when a copy is loaded, before it answers."""

    name: str
    rows: int = 0
    """0 = one, or none where the model has no batch dimension."""
    count: int = 1
    inputs: tuple[WarmUpInput, ...] = ()
    """Inputs that are not named are zeros."""


@dataclass(frozen=True, slots=True)
class CompiledFor:
    """What compiled files were made for."""

    runtime: str
    version: str
    compute_capabilities: tuple[str, ...] = ()
    """Such as 8.0, one for each architecture that the files hold code for; empty = any."""


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
    sequences: SequenceSpec | None = None
    warm_ups: tuple[WarmUpSpec, ...] = ()
    instances: int = 1
    """Executions that may run side by side."""
    memory_bytes: int = 0
    """What an open copy takes; 0 = estimated from the files."""
    compiled_for: CompiledFor | None = None
    signer: bytes = b""
    """Ed25519 public key of who signed the manifest, 32 bytes; empty for a folder that is served as it lies."""
    traits: Traits = NO_TRAITS
    """As the manifest has them; of an open copy, with what its engine says where the manifest says nothing."""


class CopyState(enum.Enum):
    """Where a copy of a model is in its life; the transitions are in `worker/life/lifecycle.py`."""

    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    UNLOADING = "UNLOADING"
    FAILED = "FAILED"


class SharedRegion(Protocol):
    """Memory that a client on this machine shares with us."""

    byte_size: int

    def read(self, offset: int, byte_size: int) -> memoryview:
        """A copy of these bytes. Raises InvalidArgument where the client took them away."""
        ...

    def write(self, offset: int, content: memoryview) -> None:
        """Put the bytes there. Raises InvalidArgument where the client took the place away."""
        ...


class SharedRegions(Protocol):
    def region(self, name: str) -> SharedRegion:
        """Stays usable while it is held, also if it is unregistered meanwhile. Raises NotFound."""
        ...


@dataclass(frozen=True, slots=True)
class CallContext:
    """What travels with a request besides its payload."""

    request_id: str = ""
    tenant: str = ""
    priority: int = 0
    deadline_s: float | None = None
    """On the event loop's clock; None = none was set."""
    traceparent: str = ""
    memory: SharedRegions | None = None
    """Where tensors may lie instead of in the payload; None: everything travels in it."""
    hold_id: str = ""
    """The place that is kept for it; empty, or of a hold that ended: it takes one of its own."""
    admission: Admission | None = None
    """It was let in already, by somebody who ends that too, as under a reservation; None: it is yet to be."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the worker is, for those who choose among workers."""

    in_flight: int
    queued_rows: int
    max_in_flight: int = 0
    """0 = not told."""


@dataclass(frozen=True, slots=True)
class RepositoryRow:
    """One model of a repository, for its index."""

    name: str
    version: str
    state: CopyState
    reason: str = ""


class Repository(Protocol):
    """Models that a client may load and unload by name; Triton's explicit model control."""

    async def load(self, name: str, override: LoadOverride | None = None) -> None:
        """Returns when it answers; one that answers already is loaded anew. Raises NotFound kinds, and why it cannot be.

        An override holds until the next load, which undoes it if it brings none.
        """
        ...

    async def unload(self, name: str) -> None:
        """Returns when it is gone."""
        ...

    def rows(self) -> Sequence[RepositoryRow]:
        """Everything there is, loaded or not."""
        ...


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
