"""A batcher over a virtual clock and a virtual engine."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.worker.onnx_models import spec as described
from tests.worker.virtual_time import DoublingEngine, VirtualLane, VirtualLoop
from worker.batching.batcher import Batcher
from worker.batching.jobs import Executor, Job
from worker.batching.queue import BatchPolicy, BatchQueue
from worker.batching.rows import RowAssembly
from worker.kserve.parameters import Parameters
from worker.statistics import CopyStatistics
from worker.types import CallContext


@dataclass(slots=True)
class Rig:
    loop: VirtualLoop
    engine: DoublingEngine
    batcher: Batcher
    statistics: CopyStatistics

    def request(
        self,
        value: float,
        rows: int = 1,
        width: int = 1,
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        queue_timeout_s: float | None = None,
    ) -> Coroutine[Any, Any, Any]:
        parameters = Parameters(priority=priority, timeout_s=queue_timeout_s)
        inputs = {"x": np.full((rows, width), value)}
        return self.batcher.infer(inputs, rows, (width,), CallContext(deadline_s=deadline_s), parameters)

    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.engine.batches]


def rig(
    loop: VirtualLoop,
    policy: BatchPolicy,
    duration_s: float = 1.0,
    *,
    engine: DoublingEngine | None = None,
    slots: int = 1,
    in_order: bool = False,
    durations_s: Iterator[float] | None = None,
    queue: BatchQueue[Job] | None = None,
) -> Rig:
    engine, statistics = engine or DoublingEngine(), CopyStatistics()
    lanes = [VirtualLane(loop, duration_s, durations_s) for _ in range(slots)]
    assembly = RowAssembly(described(max_batch_size=policy.max_rows), engine)
    executor = Executor(engine, assembly, clock_ns=loop.clock_ns)
    batcher = Batcher(queue or BatchQueue(policy), executor, lanes, statistics, in_order=in_order, clock_ns=loop.clock_ns)
    return Rig(loop, engine, batcher, statistics)
