"""One open copy of a model that generates text: its generations, codec and counters.

Owns what opening made and frees it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal

from worker.batching import DEFAULT_QUEUE_SIZE
from worker.engine import ModelRefused, Piece, TextEngine, TextRequest
from worker.generation import DEFAULT_RUNNING, Generations
from worker.kserve import RequestCodec
from worker.lane import thread_name
from worker.statistics import CopyStatistics
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
            name=thread_name(spec),
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
