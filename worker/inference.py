"""Answers requests from the models in the table: the worker's one `Inference`.

Owns the number of requests in flight and its bound. Payloads are parsed here once and serialised here once; where they came
from is the caller's business.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from inference import grpc_service_pb2

from runtime.errors import Code, InvalidArgument, PenstockError, Unimplemented
from worker.codec import generate_response, parse_generate
from worker.copies import TextCopy
from worker.engine import TextRequest
from worker.kserve import TensorRequest, parse
from worker.models import ModelTable
from worker.statistics import Failure
from worker.text import FINAL, text_request, text_response
from worker.types import CallContext, Kind, Load

DEFAULT_MAX_IN_FLIGHT = 4096


class WorkerFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="WORKER_FULL"):
    """As many requests are in flight as this worker takes."""


class TableInference:
    """Implements `worker.types.Inference`. Used on the loop only."""

    def __init__(self, table: ModelTable, *, max_in_flight: int = DEFAULT_MAX_IN_FLIGHT) -> None:
        self._table = table
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    @property
    def load(self) -> Load:
        return Load(self._in_flight, self._table.queued_rows)

    async def infer(self, model: str, version: str, payload: bytes, call: CallContext) -> bytes:
        """inference.ModelInferRequest → inference.ModelInferResponse. An empty model means the payload's own."""
        self._enter()
        try:
            request = parse(payload)
            loaded = self._table.get(*_wanted(model, version, request))
            if loaded.kind is Kind.TEXT:
                raise Unimplemented(
                    f"ModelInfer RPC doesn't support models with decoupled transaction policy, as {loaded.spec.model!r} is;"
                    " call ModelStreamInfer"
                )
            response = await loaded.infer(request, call)
            return response.SerializeToString()
        finally:
            self._in_flight -= 1

    async def stream_infer(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncGenerator[bytes, None]:
        """inference.ModelInferRequest → inference.ModelStreamInferResponse … Raises what stops it, with its code."""
        async with aclosing(self.stream(model, version, parse(payload), call)) as responses:
            async for response in responses:
                yield grpc_service_pb2.ModelStreamInferResponse(infer_response=response).SerializeToString()

    async def stream(
        self, model: str, version: str, request: grpc_service_pb2.ModelInferRequest, call: CallContext
    ) -> AsyncGenerator[grpc_service_pb2.ModelInferResponse, None]:
        """The responses to one request of a stream, the last one marked final. Raises what stops it."""
        with self._entered():
            loaded = self._table.get(*_wanted(model, version, request))
            if loaded.kind is Kind.TENSORS:
                response = await loaded.infer(request, call)
                response.parameters[FINAL].bool_param = True
                yield response
                return
            decoded, asked = _text(loaded, request)
            pieces = loaded.generate(asked, call, priority=decoded.parameters.priority)
            async with aclosing(pieces):
                async for piece in pieces:
                    yield text_response(loaded.codec, decoded, piece)

    async def generate(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncGenerator[bytes, None]:
        """penstock.worker.v1.GenerateRequest → GenerateResponse …"""
        with self._entered():
            named, request = parse_generate(payload)
            loaded = self._table.get(model or named, version)
            if loaded.kind is Kind.TENSORS:
                raise InvalidArgument(
                    f"model {loaded.spec.model!r} takes tensors and generates no text; call ModelInfer, or another model"
                )
            pieces = loaded.generate(request, call)
            async with aclosing(pieces):
                async for piece in pieces:
                    yield generate_response(piece)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        finally:
            self._in_flight -= 1

    def _enter(self) -> None:
        if self._in_flight >= self._max_in_flight:
            raise WorkerFull(
                f"{self._in_flight} requests are in flight, all that this worker takes; back off, then retry", retry_after_s=0.1
            )
        self._in_flight += 1


def _wanted(model: str, version: str, request: grpc_service_pb2.ModelInferRequest) -> tuple[str, str]:
    """What the caller resolved; where it left that to the payload, what the payload says."""
    if model and model != request.model_name:
        return model, version
    return request.model_name, version or request.model_version


def _text(loaded: TextCopy, request: grpc_service_pb2.ModelInferRequest) -> tuple[TensorRequest, TextRequest]:
    try:
        decoded = loaded.codec.decode(request)
        return decoded, text_request(loaded.spec, decoded)
    except PenstockError:
        loaded.statistics.failed(Failure.OTHER, 0)
        raise
