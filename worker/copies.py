"""Open copies of models: what the rest of the worker asks of one, and how one is opened.

Which models are wanted is the reconciler's question.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import structlog
from inference import grpc_service_pb2

from runtime.errors import PenstockError
from worker.engine import EngineUnavailable, Piece, RemoteEngine, TextEngine, TextRequest
from worker.engines import open_engine
from worker.kserve import RequestCodec
from worker.lane import ThreadLane, thread_name
from worker.statistics import CopyStatistics
from worker.tensor_model import TensorModel
from worker.text_model import TextModel
from worker.types import CallContext, Kind, ModelSpec
from worker.warm_up import warm_up

_log = structlog.get_logger("penstock.models")


class OpenCopy(Protocol):
    """What every open copy has."""

    spec: ModelSpec
    statistics: CopyStatistics

    @property
    def queued_rows(self) -> int: ...

    @property
    def pending_requests(self) -> int:
        """Requests that wait for the engine."""
        ...

    async def drained(self) -> None:
        """Refuse what comes from now on; return when what was admitted has ended."""
        ...

    def close(self) -> None:
        """Fail what is left and free it."""
        ...


class TensorCopy(OpenCopy, Protocol):
    """A copy whose requests and answers are tensors."""

    @property
    def kind(self) -> Literal[Kind.TENSORS]: ...

    async def infer(
        self, request: grpc_service_pb2.ModelInferRequest, call: CallContext
    ) -> grpc_service_pb2.ModelInferResponse:
        """One answer. Cancelling gives its place back. Raises PenstockErrors."""
        ...


class TextCopy(OpenCopy, Protocol):
    """A copy that generates text."""

    codec: RequestCodec

    @property
    def kind(self) -> Literal[Kind.TEXT]: ...

    def generate(self, request: TextRequest, call: CallContext, *, priority: int = 0) -> AsyncGenerator[Piece, None]:
        """Pieces as they come; the last one has a finish. Closing or cancelling ends the generation before its next step."""
        ...


LoadedModel = TensorCopy | TextCopy


async def open_model(spec: ModelSpec, folder: Path) -> LoadedModel:
    """Open and warm up, off the loop. Raises EngineUnavailable, ModelRefused."""
    lane = ThreadLane(thread_name(spec))
    try:
        engine = await lane.call(partial(open_engine, spec, folder))
        if isinstance(engine, RemoteEngine):
            raise EngineUnavailable(f"engine {spec.engine!r} is not served here yet")
        try:
            await lane.call(partial(warm_up, spec, engine))
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
