"""Open copies of models: what the rest of the worker asks of one, and how one is opened.

Which models are wanted is the reconciler's question.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import structlog
from inference import grpc_service_pb2

from worker.batching.tensor_model import TensorModel
from worker.engine import Piece, RemoteEngine, SkilledEngine, TextEngine, TextRequest
from worker.engines import Engine, open_engine
from worker.generation.text_model import TextModel
from worker.kserve.codec import RequestCodec
from worker.lane import ThreadLane, thread_name
from worker.life.warm_up import warm_up
from worker.remote.remote_model import open_remote
from worker.remote.upstream_keys import UpstreamAccess
from worker.runner.code_trust import CodeSigners, CodeTrust, TrustedCopy, brings_code
from worker.statistics import CopyStatistics
from worker.threads import in_thread
from worker.types import CallContext, Kind, ModelSpec, Task

_TEXT_TASKS = (Task.CHAT, Task.COMPLETION)
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

    @property
    def busy(self) -> bool:
        """Whether a request is in flight or waits."""
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

    def generate(
        self, request: TextRequest, call: CallContext, *, priority: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Pieces as they come; the last one has a finish. Closing or cancelling ends the generation before its next step."""
        ...


LoadedModel = TensorCopy | TextCopy


async def open_model(
    spec: ModelSpec, folder: Path, upstreams: UpstreamAccess | None = None, code: CodeSigners | None = None
) -> LoadedModel:
    """Open and warm up, off the loop. `code` says whose code may run; nobody's where it is left out.

    Raises EngineUnavailable, ModelRefused, CodeNotTrusted, WarmUpFailed; what a remote one's API refuses.
    """
    begun_s = time.monotonic()
    loaded = await _opened_copy(spec, folder, upstreams, code)
    loaded.statistics.load_s = time.monotonic() - begun_s
    return loaded


async def _opened_copy(
    spec: ModelSpec, folder: Path, upstreams: UpstreamAccess | None, code: CodeSigners | None
) -> LoadedModel:
    trust = await in_thread((code or CodeSigners()).read) if brings_code(spec) else CodeTrust()
    trust.check_load(spec)
    lane = ThreadLane(thread_name(spec))
    opened: list[Engine] = []

    def opening() -> Engine:
        opened.append(open_engine(spec, folder, upstreams))
        return opened[0]

    try:
        engine = await lane.call(opening)
        spec = _with_skills(spec, engine)
        if isinstance(engine, RemoteEngine):
            remote = await open_remote(spec, engine)
            lane.close()
            return remote
        await lane.call(partial(warm_up, spec, engine, folder))
        if isinstance(engine, TextEngine):
            model = TextModel(spec, engine)
            lane.close()
            return model
        tensors = TensorModel(spec, engine, lane)
        return TrustedCopy(tensors, trust) if brings_code(spec) else tensors
    except BaseException:
        lane.submit(partial(_close, opened), _ignore)  # also one that is still opening: the lane comes to this afterwards
        lane.close()
        raise


def _with_skills(spec: ModelSpec, engine: Engine) -> ModelSpec:
    """The specification with what the engine says of itself where the manifest says nothing."""
    if not isinstance(engine, SkilledEngine) or spec.task not in _TEXT_TASKS:
        return spec
    said = spec.traits
    traits = replace(
        said,
        capabilities=said.capabilities or engine.capabilities,
        context_tokens=said.context_tokens or engine.context_tokens,
    )
    return replace(spec, traits=traits)


def _close(opened: list[Engine]) -> None:
    for engine in opened:
        if not isinstance(engine, RemoteEngine):
            engine.close()


def _ignore(_: None, __: BaseException | None) -> None:
    return
