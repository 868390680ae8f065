"""A copy of a model whose answers come when a test lets them."""

from __future__ import annotations

import asyncio
from typing import Literal

from inference import grpc_service_pb2

from runtime.ids import Digest, ModelName, ModelVersion
from worker.statistics import CopyStatistics
from worker.types import CallContext, Kind, ModelSpec, Task


class SlowCopy:
    """A `TensorCopy`. Each request waits for `finish`, or for as long as it is to take."""

    kind: Literal[Kind.TENSORS] = Kind.TENSORS

    def __init__(self, model: str, version: str) -> None:
        self.spec = ModelSpec(ModelName(model), ModelVersion(version), Digest("d" * 64), "slow", Task.TENSOR, 0, (), ())
        self.statistics = CopyStatistics()
        self.takes_s: float | None = None
        """None: until the test says so."""
        self._running: list[asyncio.Future[None]] = []
        self.began: list[CallContext] = []
        """Every call, in the order in which they were let in."""

    @property
    def queued_rows(self) -> int:
        return 0

    @property
    def pending_requests(self) -> int:
        return 0

    @property
    def busy(self) -> bool:
        return bool(self._running)

    async def infer(
        self, request: grpc_service_pb2.ModelInferRequest, call: CallContext
    ) -> grpc_service_pb2.ModelInferResponse:
        self.began.append(call)
        running = asyncio.get_running_loop().create_future()
        self._running.append(running)
        if self.takes_s is not None:
            asyncio.get_running_loop().call_later(self.takes_s, self._end, running)
        try:
            await running
        finally:
            if running in self._running:
                self._running.remove(running)
        return grpc_service_pb2.ModelInferResponse(model_name=self.spec.model, id=request.id)

    def finish(self, number: int = 1) -> None:
        """Let the oldest so many answer."""
        for running in self._running[:number]:
            self._end(running)

    async def drained(self) -> None:
        return

    def close(self) -> None:
        return

    def _end(self, running: asyncio.Future[None]) -> None:
        if not running.done():
            running.set_result(None)
