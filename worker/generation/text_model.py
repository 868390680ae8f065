"""One open copy of a model that generates text: its generations, codec and counters.

Owns what opening made and frees it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal

from runtime.errors import PenstockError
from worker.batching.queue import batch_policy
from worker.engine import Piece, TextEngine, TextRequest
from worker.generation.capabilities import check_capabilities
from worker.generation.generations import Generations
from worker.kserve.codec import RequestCodec
from worker.lane import thread_name
from worker.statistics import CopyStatistics, Failure
from worker.types import CallContext, Kind, ModelSpec


class TextModel:
    """A `TextCopy` of an engine in this process."""

    kind: Literal[Kind.TEXT] = Kind.TEXT

    def __init__(self, spec: ModelSpec, engine: TextEngine) -> None:
        self.spec = spec
        self.statistics = CopyStatistics()
        self.codec = RequestCodec(spec, utf8_bytes=True)
        self._generations = Generations(
            engine,
            self.statistics,
            batch_policy(spec),
            name=thread_name(spec),
            model=spec.model,
            version=spec.version,
        )

    @property
    def queued_rows(self) -> int:
        return self._generations.queued_rows

    @property
    def pending_requests(self) -> int:
        return self._generations.pending_requests

    @property
    def busy(self) -> bool:
        return self._generations.busy

    def generate(
        self, request: TextRequest, call: CallContext, *, priority: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[Piece, None]:
        try:
            check_capabilities(self.spec, request)
        except PenstockError:
            self.statistics.failed(Failure.OTHER, 0)
            raise
        return self._generations.generate(request, call, priority=priority, timeout_s=timeout_s)

    async def drained(self) -> None:
        await self._generations.drained()

    def close(self) -> None:
        self._generations.close()
