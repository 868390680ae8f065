"""inference.GRPCInferenceService at the edge: all 20 RPCs, for the whole fleet.

A servicer: contexts and generated messages in, calls on inference and questions out. ModelInfer and ModelStreamInfer take and
give bytes: tensors pass through. Codes are Triton's where its clients rely on them (NOT_FOUND with its sentence for an unknown
model); a full fleet is RESOURCE_EXHAUSTED with its retry delay, where Triton says UNAVAILABLE. ServerLive and ServerReady need
no key; all else does. Groups of calls may need a header besides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import wraps
from time import perf_counter
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as rpc

from gateway.callers import REQUEST_ID, Caller, Context, name_request
from gateway.kserve.inference import Inference
from gateway.kserve.questions import Questions, check_region, refuse_shared_memory
from gateway.kserve.readiness import Readiness
from gateway.kserve.restrictions import Restrictions
from gateway.kserve.streaming import InferenceStream
from gateway.mesh import Mesh
from gateway.wire import head_of
from runtime.errors import PenstockError

SERVICE = "inference.GRPCInferenceService"
_CACHE = "x-penstock-cache"

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")
_Behaviour = Callable[["KServeServicer", _Request, Context], Awaitable[_Answer]]


def _counted(behaviour: _Behaviour[_Request, _Answer]) -> _Behaviour[_Request, _Answer]:
    """Count the answers of an RPC that serves no inference, and let only those in who may ask it.

    The model is not told apart: anybody may name any.
    """

    @wraps(behaviour)
    async def call(self: KServeServicer, request: _Request, context: Context) -> _Answer:
        started_s, name = perf_counter(), behaviour.__name__
        try:
            self.check(name, context)
            answer = await behaviour(self, request, context)
        except Exception as raised:
            code = raised.code.name if isinstance(raised, PenstockError) else "INTERNAL"
            self.metrics.failed(name, "", code)
            raise
        self.metrics.answered(name, "", perf_counter() - started_s)
        return answer

    return call


class KServeServicer(rpc.GRPCInferenceServiceServicer):
    """One for all ports. `register` is a `runtime.serving.Register`; `questions` are for its HTTP twin."""

    def __init__(
        self,
        mesh: Mesh,
        *,
        strict_readiness: bool = True,
        stream_in_flight: int = 64,
        restrictions: Restrictions | None = None,
    ) -> None:
        self._mesh, self._callers, self._exchanges = mesh, mesh.callers, mesh.exchanges
        self.metrics = mesh.metrics
        self._inference, self._restrictions = Inference(mesh), restrictions
        self.questions = Questions(mesh, Readiness(mesh.fleet, strict=strict_readiness))
        self._stream_in_flight = stream_in_flight

    def register(self, server: grpc.aio.Server) -> None:
        rpc.add_GRPCInferenceServiceServicer_to_server(self, server)
        # Registered again, these two take bytes: the last registration of a method is the one that serves it.
        raw: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self.ModelInfer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self.ModelStreamInfer),
        }
        server.add_registered_method_handlers(SERVICE, raw)

    async def ModelInfer(self, request: bytes, context: Context) -> bytes:  # type: ignore[override]  # see register
        exchange, caller = self._exchanges.begin("ModelInfer", len(request)), None
        try:
            exchange.caller = caller = await self._callers.enter(context)
            if self._restrictions is not None:
                self._restrictions.check("ModelInfer", caller.headers)
            answer = await self._inference.answer(caller, head_of(request), request, exchange)
            if caller.named_it or exchange.cache:
                found = ((_CACHE, exchange.cache),) if exchange.cache else ()
                await context.send_initial_metadata(((REQUEST_ID, caller.request_id), *found))
        except BaseException as raised:
            self._exchanges.failed(exchange, raised)
            if caller is not None and isinstance(raised, Exception):
                with suppress(grpc.aio.BaseError):  # who gave no id needs ours to ask about it, unless it has gone meanwhile
                    await name_request(context, caller)
            raise
        self._exchanges.answered(exchange)
        return answer

    async def ModelStreamInfer(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        self.check("ModelStreamInfer", context)
        caller, mesh = await self._let_in(context), self._mesh
        stream = InferenceStream(
            self._callers,
            self._exchanges,
            mesh.dispatch,
            mesh.targets,
            mesh.fleet,
            context,
            caller,
            self._stream_in_flight,
            mesh.regions,
        )
        await stream.serve()

    @_counted
    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    @_counted
    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self.questions.readiness.ready())

    @_counted
    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        await self._enter(context)
        return self.questions.server_metadata()

    @_counted
    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        return self.questions.model_ready(await self._enter(context), request)

    @_counted
    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        return await self.questions.model_metadata(await self._enter(context), request)

    @_counted
    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        return await self.questions.model_config(await self._enter(context), request)

    @_counted
    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        return await self.questions.statistics(await self._enter(context), request)

    @_counted
    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        return await self.questions.index(await self._enter(context), request)

    @_counted
    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        return await self.questions.load(await self._enter(context), request)

    @_counted
    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        return await self.questions.unload(await self._enter(context), request)

    @_counted
    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        await self._enter(context)
        check_region("system", request.name)
        return pb.SystemSharedMemoryStatusResponse()

    @_counted
    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        await self._enter(context)
        refuse_shared_memory("system", request.name)

    @_counted
    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        await self._enter(context)
        return pb.SystemSharedMemoryUnregisterResponse()  # none is registered: what was asked for is so

    @_counted
    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        await self._enter(context)
        check_region("CUDA", request.name)
        return pb.CudaSharedMemoryStatusResponse()

    @_counted
    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        await self._enter(context)
        refuse_shared_memory("CUDA", request.name)

    @_counted
    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        await self._enter(context)
        return pb.CudaSharedMemoryUnregisterResponse()

    @_counted
    async def TraceSetting(self, request: pb.TraceSettingRequest, context: Context) -> pb.TraceSettingResponse:
        return self.questions.tracing(await self._enter(context), request)

    @_counted
    async def LogSettings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:
        await self._enter(context)
        return self.questions.logging(request)

    def check(self, method: str, context: Context) -> None:
        """Raises ProtocolRestricted."""
        if self._restrictions is not None:
            self._restrictions.check(method, cast("dict[str, str | bytes]", dict(context.invocation_metadata() or ())))

    async def _enter(self, context: Context) -> Caller:
        """Who asks; it costs the key one request."""
        caller = await self._let_in(context)
        await self._exchanges.charge(caller)
        return caller

    async def _let_in(self, context: Context) -> Caller:
        caller = await self._callers.enter(context)
        await name_request(context, caller)
        return caller
