"""One open copy of a model: its thread, batcher or generations, codec and counters.

Owns what opening made and frees it. Which models are wanted is the reconciler's question; how an engine computes is the
engine's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import structlog
from inference import grpc_service_pb2

from runtime.errors import PenstockError
from worker.batcher import Batcher
from worker.batching import DEFAULT_QUEUE_SIZE, BatchPolicy
from worker.engine import ModelRefused, Piece, TensorEngine, TextEngine, TextRequest
from worker.engines import open_engine
from worker.generation import DEFAULT_RUNNING, Generations
from worker.kserve import RequestCodec
from worker.lane import ThreadLane
from worker.statistics import CopyStatistics, Failure
from worker.tensors import zeros
from worker.types import CallContext, ModelSpec

_log = structlog.get_logger("penstock.models")


class TensorModel:
    """A copy whose requests and answers are tensors."""

    def __init__(self, spec: ModelSpec, engine: TensorEngine, lane: ThreadLane) -> None:
        self.spec = spec
        self.statistics = CopyStatistics()
        self._engine = engine
        self._lane = lane
        self._codec = RequestCodec(spec, utf8_bytes=engine.utf8_bytes)
        self._batcher = Batcher(
            _policy(spec),
            engine,
            lane,
            self.statistics,
            batched=spec.max_batch_size > 0,
        )

    @property
    def queued_rows(self) -> int:
        return self._batcher.queued_rows

    @property
    def pending_requests(self) -> int:
        return self._batcher.pending_requests

    async def infer(
        self, request: grpc_service_pb2.ModelInferRequest, call: CallContext
    ) -> grpc_service_pb2.ModelInferResponse:
        """One answer. Raises what the codec and the batcher raise."""
        try:
            decoded = self._codec.decode(request)
        except PenstockError:
            self.statistics.failed(Failure.OTHER, 0)
            raise
        outputs = await self._batcher.infer(
            decoded.inputs,
            decoded.rows,
            decoded.shape,
            priority=decoded.parameters.priority or call.priority,
            deadline_s=call.deadline_s,
            queue_timeout_s=decoded.parameters.timeout_s,
        )
        return self._codec.response(decoded.request_id, decoded.outputs, outputs)

    async def drained(self) -> None:
        await self._batcher.drained()

    def close(self) -> None:
        self._lane.submit(self._engine.close, _ignore)
        self._batcher.close()


class TextModel:
    """A copy that generates text."""

    def __init__(self, spec: ModelSpec, engine: TextEngine) -> None:
        self.spec = spec
        self.statistics = CopyStatistics()
        self.codec = RequestCodec(spec, utf8_bytes=True)
        self._generations = Generations(
            engine,
            self.statistics,
            name=_thread_name(spec),
            max_running=max_running(spec),
            max_waiting=spec.batching.max_queue_size or DEFAULT_QUEUE_SIZE,
        )

    @property
    def queued_rows(self) -> int:
        return self._generations.queued_rows

    @property
    def pending_requests(self) -> int:
        return self._generations.pending_requests

    def generate(self, request: TextRequest, call: CallContext, *, priority: int = 0) -> AsyncGenerator[Piece, None]:
        return self._generations.generate(request, priority=priority or call.priority, deadline_s=call.deadline_s)

    async def drained(self) -> None:
        await self._generations.drained()

    def close(self) -> None:
        self._generations.close()


LoadedModel = TensorModel | TextModel


async def open_model(spec: ModelSpec, folder: Path) -> LoadedModel:
    """Open and warm up, off the loop. Raises EngineUnavailable, ModelRefused."""
    lane = ThreadLane(_thread_name(spec))
    try:
        engine = await lane.call(partial(open_engine, spec, folder))
        try:
            await lane.call(partial(_warm_up, spec, engine))
        except PenstockError as error:
            # Zeros may be no sensible input; the first real request will tell.
            _log.warning("warm_up_failed", model=spec.model, version=spec.version, reason=error.message)
        if isinstance(engine, TextEngine):
            model = TextModel(spec, engine)
            lane.close()
            return model
        return TensorModel(spec, engine, lane)
    except BaseException:
        lane.close()
        raise


def max_running(spec: ModelSpec) -> int:
    """Generations stepped by turns. Raises ModelRefused."""
    text = spec.parameters.get("max_generations", "")
    if not text:
        return DEFAULT_RUNNING
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ModelRefused(
            f"parameter 'max_generations' of model {spec.model!r} is {text!r}; a number from 1 to 1024 is expected"
        )
    return int(text)


def _policy(spec: ModelSpec) -> BatchPolicy:
    return BatchPolicy(
        max_rows=spec.max_batch_size,
        delay_s=spec.batching.max_queue_delay_us / 1e6,
        preferred_rows=frozenset(spec.batching.preferred_batch_sizes),
        max_requests=spec.batching.max_queue_size or DEFAULT_QUEUE_SIZE,
    )


def _warm_up(spec: ModelSpec, engine: TensorEngine | TextEngine) -> None:
    """One execution, so that the first request does not pay for the engine's lazy set-up."""
    if isinstance(engine, TextEngine):
        generation = engine.begin(TextRequest("a", max_tokens=1))
        generation.step()
        generation.close()
        return
    batch = (1,) if spec.max_batch_size > 0 else ()
    engine.run(
        {
            tensor.name: zeros(tensor.datatype, batch + tuple(max(1, size) if size < 0 else size for size in tensor.shape))
            for tensor in spec.inputs
            if not tensor.optional
        }
    )


def _thread_name(spec: ModelSpec) -> str:
    return f"engine-{spec.model}-{spec.version}"


def _ignore(_: None, __: BaseException | None) -> None:
    return
