"""One open copy of a model that turns tensors into tensors: its engine's threads, batcher, codec and counters.

Owns what opening made and frees it. What goes together is the batcher's question; how an engine computes is the engine's.
"""

from __future__ import annotations

from typing import Literal

from inference import grpc_service_pb2

from runtime.errors import PenstockError
from worker.batcher import Batcher
from worker.batching import DEFAULT_QUEUE_SIZE, BatchPolicy
from worker.engine import TensorEngine
from worker.kserve import RequestCodec
from worker.lane import ThreadLane
from worker.statistics import CopyStatistics, Failure
from worker.types import CallContext, Kind, ModelSpec


class TensorModel:
    """A `TensorCopy` of an engine in this process."""

    kind: Literal[Kind.TENSORS] = Kind.TENSORS

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


def _policy(spec: ModelSpec) -> BatchPolicy:
    return BatchPolicy(
        max_rows=spec.max_batch_size,
        delay_s=spec.batching.max_queue_delay_us / 1e6,
        preferred_rows=frozenset(spec.batching.preferred_batch_sizes),
        max_requests=spec.batching.max_queue_size or DEFAULT_QUEUE_SIZE,
    )


def _ignore(_: None, __: BaseException | None) -> None:
    return
