"""One open copy of a model that turns tensors into tensors: its engine's threads, batcher, codec and counters.

Owns what opening made and frees it. What goes together is the batcher's question; how an engine computes is the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from inference import grpc_service_pb2

from runtime.errors import PenstockError
from worker.batching.batcher import Batcher
from worker.batching.jobs import Assembly, Executor, JobQueue
from worker.batching.queue import BatchQueue, batch_policy
from worker.batching.rows import RowAssembly
from worker.batching.sequencer import SequenceAssembly, sequence_policy
from worker.batching.sequences import SequenceQueue
from worker.engine import TensorEngine
from worker.kserve.codec import RequestCodec
from worker.lane import ThreadLane, thread_name
from worker.statistics import CopyStatistics, Failure
from worker.types import CallContext, Kind, ModelSpec


class TensorModel:
    """A `TensorCopy` of an engine in this process. The first slot runs on the lane that opened the engine."""

    kind: Literal[Kind.TENSORS] = Kind.TENSORS

    def __init__(self, spec: ModelSpec, engine: TensorEngine, lane: ThreadLane) -> None:
        self.spec = spec
        self.statistics = CopyStatistics()
        self._engine = engine
        self._codec = RequestCodec(spec, utf8_bytes=engine.utf8_bytes)
        queue, assembly = _parts(spec, engine)  # may refuse the model, so before any thread is started
        self._lanes = [lane, *(ThreadLane(f"{thread_name(spec)}-{slot}") for slot in range(1, engine.slots))]
        self._batcher = Batcher(
            queue,
            Executor(engine, assembly),
            self._lanes,
            self.statistics,
            in_order=spec.batching.preserve_ordering,
            model=spec.model,
            version=spec.version,
        )

    @property
    def queued_rows(self) -> int:
        return self._batcher.queued_rows

    @property
    def pending_requests(self) -> int:
        return self._batcher.pending_requests

    @property
    def busy(self) -> bool:
        return self._batcher.busy

    async def infer(
        self, request: grpc_service_pb2.ModelInferRequest, call: CallContext
    ) -> grpc_service_pb2.ModelInferResponse:
        """One answer. Raises what the codec and the batcher raise."""
        try:
            decoded = self._codec.decode(request, call.memory)
        except PenstockError:
            self.statistics.failed(Failure.OTHER, 0)
            raise
        outputs = await self._batcher.infer(decoded.inputs, decoded.rows, decoded.shape, call, decoded.parameters)
        return self._codec.response(decoded.request_id, decoded.outputs, outputs)

    async def drained(self) -> None:
        await self._batcher.drained()

    def close(self) -> None:
        """The engine is closed when no slot runs any more, on the thread that opened it."""
        first, *others = self._lanes
        for lane in others:
            lane.close()
        first.submit(partial(_close, self._engine, others), _ignore)
        first.close()
        self._batcher.close()


def _parts(spec: ModelSpec, engine: TensorEngine) -> tuple[JobQueue, Assembly]:
    if spec.sequences is None:
        return BatchQueue(batch_policy(spec)), RowAssembly(spec, engine)
    policy = sequence_policy(spec, spec.sequences, engine.slots)
    return SequenceQueue(policy), SequenceAssembly(spec, spec.sequences, engine)


def _close(engine: TensorEngine, others: Sequence[ThreadLane]) -> None:
    for lane in others:
        lane.join()
    engine.close()


def _ignore(_: None, __: BaseException | None) -> None:
    return
