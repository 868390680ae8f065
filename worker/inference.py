"""Answers requests from the models in the table: the worker's one `Inference`.

Every request passes the `QuotaGuard` on its way in and on its way out, be it alone or one of a stream's. Payloads are parsed
here once and serialised here once; where they came from is the caller's business.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing, nullcontext

from inference import grpc_service_pb2

from runtime.errors import InvalidArgument, PenstockError, Unimplemented
from worker.batching.queue import queue_places
from worker.copies import LoadedModel, TextCopy
from worker.engine import TextRequest
from worker.generation.codec import generate_response, parse_generate
from worker.holds import Holds
from worker.kserve.codec import TensorRequest, parse, streamed
from worker.kserve.text import FINAL, text_request, text_response
from worker.models import ModelTable
from worker.quota import DEFAULT_MAX_IN_FLIGHT, Admission, QuotaGuard, QuotaPolicy
from worker.statistics import Failure
from worker.types import CallContext, Kind, Load


class TableInference:
    """Implements `worker.types.Inference`. Used on the loop only."""

    def __init__(
        self, table: ModelTable, *, max_in_flight: int = DEFAULT_MAX_IN_FLIGHT, quota: QuotaPolicy | None = None
    ) -> None:
        """`quota` tells tenants apart; without it there is `max_in_flight` for all of them together."""
        self._table = table
        self.guard = QuotaGuard(quota or QuotaPolicy(max_in_flight))
        self.holds = Holds(self.guard)

    @property
    def load(self) -> Load:
        return Load(self.guard.in_flight, self._table.queued_rows, self.guard.max_in_flight)

    async def infer(self, model: str, version: str, payload: bytes, call: CallContext) -> bytes:
        """inference.ModelInferRequest → inference.ModelInferResponse. An empty model means the payload's own."""
        with self._entered(call) as admission:
            request = parse(payload)
            loaded = self._table.get(*_wanted(model, version, request))
            if loaded.kind is Kind.TEXT:
                raise Unimplemented(
                    f"ModelInfer RPC doesn't support models with decoupled transaction policy, as {loaded.spec.model!r} is;"
                    " call ModelStreamInfer"
                )
            _queue(admission, loaded)
            response = await loaded.infer(request, call)
            return response.SerializeToString()

    async def stream_infer(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncGenerator[bytes, None]:
        """inference.ModelInferRequest → inference.ModelStreamInferResponse … Raises what stops it, with its code."""
        async with aclosing(self.stream(model, version, parse(payload), call)) as responses:
            async for response in responses:
                yield streamed(response)

    async def stream(
        self, model: str, version: str, request: grpc_service_pb2.ModelInferRequest, call: CallContext
    ) -> AsyncGenerator[grpc_service_pb2.ModelInferResponse, None]:
        """The responses to one request of a stream, the last one marked final. Raises what stops it."""
        with self._entered(call) as admission:
            loaded = self._table.get(*_wanted(model, version, request))
            _queue(admission, loaded)
            if loaded.kind is Kind.TENSORS:
                response = await loaded.infer(request, call)
                response.parameters[FINAL].bool_param = True
                yield response
                return
            decoded, asked = _text(loaded, request, call)
            pieces = loaded.generate(asked, call, priority=decoded.parameters.priority, timeout_s=decoded.parameters.timeout_s)
            async with aclosing(pieces):
                async for piece in pieces:
                    yield text_response(loaded.codec, decoded, piece)

    async def generate(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncGenerator[bytes, None]:
        """penstock.worker.v1.GenerateRequest → GenerateResponse …"""
        with self._entered(call) as admission:
            named, request = parse_generate(payload)
            loaded = self._table.get(model or named, version)
            if loaded.kind is Kind.TENSORS:
                raise InvalidArgument(
                    f"model {loaded.spec.model!r} takes tensors and generates no text; call ModelInfer, or another model"
                )
            _queue(admission, loaded)
            pieces = loaded.generate(request, call)
            async with aclosing(pieces):
                async for piece in pieces:
                    yield generate_response(piece)

    def _entered(self, call: CallContext) -> AbstractContextManager[Admission]:
        if call.admission is not None:
            return nullcontext(call.admission)
        return self.holds.enter(call.tenant, call.hold_id) if call.hold_id else self.guard.enter(call.tenant)


def _queue(admission: Admission, loaded: LoadedModel) -> None:
    """Past the tenant's part of the model's queue. Raises TenantQuotaReached."""
    if not admission.tells_apart:
        return
    try:
        admission.queue(loaded, waiting=loaded.pending_requests, places=queue_places(loaded.spec))
    except PenstockError:
        loaded.statistics.failed(Failure.REJECTED, 0)
        raise


def _wanted(model: str, version: str, request: grpc_service_pb2.ModelInferRequest) -> tuple[str, str]:
    """What the caller resolved; where it left that to the payload, what the payload says."""
    if model and model != request.model_name:
        return model, version
    return request.model_name, version or request.model_version


def _text(
    loaded: TextCopy, request: grpc_service_pb2.ModelInferRequest, call: CallContext
) -> tuple[TensorRequest, TextRequest]:
    try:
        decoded = loaded.codec.decode(request, call.memory)
        return decoded, text_request(loaded.spec, decoded)
    except PenstockError:
        loaded.statistics.failed(Failure.OTHER, 0)
        raise
