"""Open copies of models that run behind somebody else's API: one that generates text, one that embeds it.

Owns what opening made and frees it. Who may run when is `admissions.py`'s; how the upstream is spoken to is the engine's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import ClassVar, Literal, Protocol, runtime_checkable

import structlog
from inference import grpc_service_pb2

from runtime.errors import InvalidArgument, PenstockError
from worker.engine import EngineFailed, ModelRefused, Piece, RemoteEngine, TextRequest
from worker.generation.capabilities import check_capabilities
from worker.kserve.codec import RequestCodec
from worker.remote.admissions import Admissions
from worker.statistics import CopyStatistics, Failure
from worker.tensors import element_count
from worker.types import CallContext, Kind, ModelSpec, Task

DEFAULT_RUNNING = 32
"""Requests at an upstream at once, where its engine does not say."""

_log = structlog.get_logger("penstock.models")


@runtime_checkable
class ConfiguredEngine(Protocol):
    """A remote engine that knows its bounds, and can ask whether its upstream is there."""

    max_concurrency: int

    async def check(self) -> None:
        """Raises what keeps the upstream from answering, where the model's files ask for this to be known."""
        ...


class _RemoteModel:
    """What both kinds of copies share."""

    _closing: ClassVar[set[asyncio.Task[None]]] = set()
    """Engines that end. Kept here because the loop keeps tasks by weak references only."""

    def __init__(self, spec: ModelSpec, engine: RemoteEngine) -> None:
        self.spec = spec
        self.statistics = CopyStatistics()
        self.codec = RequestCodec(spec, utf8_bytes=True)
        self._engine = engine
        running = engine.max_concurrency if isinstance(engine, ConfiguredEngine) else DEFAULT_RUNNING
        self._admissions = Admissions(spec, self.statistics, running)

    @property
    def queued_rows(self) -> int:
        return self._admissions.queued_rows

    @property
    def pending_requests(self) -> int:
        return self._admissions.pending_requests

    @property
    def busy(self) -> bool:
        return self._admissions.busy

    async def drained(self) -> None:
        await self._admissions.drained()

    def close(self) -> None:
        """Refuses what waits at once; what runs ends as soon as the engine has let go of its connections."""
        self._admissions.close()
        closing = asyncio.get_running_loop().create_task(self._aclose(), name=f"close {self.spec.model}")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _aclose(self) -> None:
        try:
            await self._engine.aclose()
        except Exception as error:
            _log.error("close_broke", model=self.spec.model, version=self.spec.version, exc_info=error)


class RemoteTextModel(_RemoteModel):
    """A `TextCopy` of an upstream's model."""

    kind: Literal[Kind.TEXT] = Kind.TEXT

    async def generate(
        self, request: TextRequest, call: CallContext, *, priority: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Pieces as they come; none is asked for before the one before it was taken. Closing ends the call upstream at once."""
        try:
            check_capabilities(self.spec, request)
        except PenstockError:
            self.statistics.failed(Failure.OTHER, 0)
            raise
        admissions = self._admissions
        async with admissions.place(
            priority=priority or call.priority, deadline_s=call.deadline_s, queue_timeout_s=timeout_s
        ) as visit:
            async with aclosing(self._engine.generate(request, deadline_s=call.deadline_s)) as pieces:
                async for piece in pieces:
                    admissions.responded(visit)
                    if piece.finish is not None:
                        admissions.answered(visit, prompt_tokens=piece.prompt_tokens, completion_tokens=piece.completion_tokens)
                    yield piece


class RemoteEmbeddingModel(_RemoteModel):
    """A `TensorCopy` of an upstream's embeddings: texts in the first input, float32 [rows, width] in the first output."""

    kind: Literal[Kind.TENSORS] = Kind.TENSORS

    def __init__(self, spec: ModelSpec, engine: RemoteEngine) -> None:
        check_embedding(spec)
        super().__init__(spec, engine)
        self._input, self._width = spec.inputs[0].name, spec.outputs[0].shape[-1]

    async def infer(
        self, request: grpc_service_pb2.ModelInferRequest, call: CallContext
    ) -> grpc_service_pb2.ModelInferResponse:
        """One answer; all rows go to the upstream together, as far as its API takes them."""
        try:
            decoded = self.codec.decode(request, call.memory)
            if not decoded.inputs[self._input].size:
                raise InvalidArgument(f"input {self._input!r} holds no texts; there is nothing to embed")
        except PenstockError:
            self.statistics.failed(Failure.OTHER, 0)
            raise
        parameters = decoded.parameters
        texts = [bytes(element).decode() for element in decoded.inputs[self._input].reshape(-1)]
        admissions = self._admissions
        async with admissions.place(
            len(texts),
            priority=parameters.priority or call.priority,
            deadline_s=call.deadline_s,
            queue_timeout_s=parameters.timeout_s,
        ) as visit:
            vectors = await self._engine.embed(texts, deadline_s=call.deadline_s)
            if self._width not in (-1, vectors.shape[1]):
                raise EngineFailed(
                    f"the upstream gives embeddings of {vectors.shape[1]} numbers; the manifest of {self.spec.model!r} says"
                    f" {self._width}"
                )
            response = self.codec.response(decoded.request_id, decoded.outputs, [vectors])
            admissions.answered(visit, rows=len(texts))
        return response


async def open_remote(spec: ModelSpec, engine: RemoteEngine) -> RemoteTextModel | RemoteEmbeddingModel:
    """A copy of an engine that was opened. Raises ModelRefused, and where it is to be asked what keeps it from answering."""
    try:
        if isinstance(engine, ConfiguredEngine):
            await engine.check()
        if spec.task is Task.EMBEDDING:
            return RemoteEmbeddingModel(spec, engine)
        if not any(tensor.datatype == "BYTES" for tensor in spec.inputs):
            raise ModelRefused(f"model {spec.model!r} generates text; its manifest needs an input of BYTES for the prompt")
        return RemoteTextModel(spec, engine)
    except BaseException:
        await engine.aclose()
        raise


def check_embedding(spec: ModelSpec) -> None:
    """Raises ModelRefused where the manifest describes something else than texts in, a vector for each out."""
    text = spec.inputs[0] if len(spec.inputs) == 1 else None
    own = () if text is None else text.shape if spec.max_batch_size else text.shape[1:]
    if text is None or text.datatype != "BYTES" or element_count(own) != 1:
        raise ModelRefused(
            f"model {spec.model!r} embeds texts; its manifest needs one input, BYTES with one text for each row: shape [1] with"
            " a max_batch_size, or [-1] without"
        )
    vector = spec.outputs[0]
    if len(spec.outputs) != 1 or vector.datatype != "FP32" or len(vector.shape) != (1 if spec.max_batch_size else 2):
        raise ModelRefused(
            f"model {spec.model!r} embeds texts; its manifest needs one output, FP32: shape [width] with a max_batch_size, or"
            " [-1, width] without"
        )
