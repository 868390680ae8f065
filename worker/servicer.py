"""inference.GRPCInferenceService on a worker: the whole contract for the models that this process holds.

A servicer: contexts and generated messages in, calls on `TableInference` and the table out. Payloads of ModelInfer and
ModelStreamInfer stay bytes until the inference parses them. Codes are Triton's (NOT_FOUND, INVALID_ARGUMENT, UNIMPLEMENTED,
UNAVAILABLE), with two differences: a full queue is RESOURCE_EXHAUSTED with its retry delay, so that nobody retries it at once
elsewhere, and what ran out of time is DEADLINE_EXCEEDED. The sentences still say "Exceeds maximum queue size" and "Request
timeout expired", which is what clients of Triton look for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any, NoReturn

import grpc
import grpc.aio
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as rpc

from runtime.errors import InvalidArgument, Unimplemented
from runtime.identity import Role
from runtime.serving import Register, inner_peer
from worker.descriptions import config_of, metadata_of, statistics_of
from worker.inference import TableInference
from worker.models import ModelTable, UnknownModel
from worker.streaming import serve_stream
from worker.types import CallContext

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = ("classification", "model_configuration", "binary_tensor_data", "parameters", "statistics", "schedule_policy")
"""What ServerMetadata names: only what is true here."""

_Context = grpc.aio.ServicerContext[Any, Any]
_READY, _LEAVING = ("READY", ""), ("UNLOADING", "finishing its requests")
_TRACE_SETTINGS = {
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    "trace_file": [""],
    "trace_mode": ["opentelemetry"],
}


def register_inference(
    inference: TableInference,
    table: ModelTable,
    *,
    inner: bool,
    ready: Callable[[], bool] = lambda: True,
    server_name: str = "penstock-worker",
) -> Register:
    """Adds the service to a server. `inner`: peers have to be gateways or operators of this mesh, by certificate."""
    servicer = InferenceServicer(inference, table, inner=inner, ready=ready, server_name=server_name)

    def register(server: grpc.aio.Server) -> None:
        rpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        # Registered again, these two take bytes: the last registration of a method is the one that serves it.
        raw: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(servicer.ModelInfer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(servicer.ModelStreamInfer),
        }
        server.add_registered_method_handlers(SERVICE, raw)

    return register


class InferenceServicer(rpc.GRPCInferenceServiceServicer):
    """One per port."""

    def __init__(
        self, inference: TableInference, table: ModelTable, *, inner: bool, ready: Callable[[], bool], server_name: str
    ) -> None:
        self._inference = inference
        self._table = table
        self._inner = inner
        self._ready = ready
        self._server_name = server_name

    async def ModelInfer(self, request: bytes, context: _Context) -> bytes:  # type: ignore[override]  # see register
        self._check(context)
        return await self._inference.infer("", "", request, call_of(context))

    async def ModelStreamInfer(self, request_iterator: Any, context: _Context) -> None:  # type: ignore[override]
        self._check(context)
        await serve_stream(self._inference, self._table, context, call_of(context))

    async def ServerLive(self, request: pb.ServerLiveRequest, context: _Context) -> pb.ServerLiveResponse:
        self._check(context)
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: _Context) -> pb.ServerReadyResponse:
        self._check(context)
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: _Context) -> pb.ModelReadyResponse:
        self._check(context)
        try:
            self._table.get(request.name, request.version)
        except UnknownModel:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: _Context) -> pb.ServerMetadataResponse:
        self._check(context)
        return pb.ServerMetadataResponse(name=self._server_name, version=_own_version(), extensions=EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: _Context) -> pb.ModelMetadataResponse:
        self._check(context)
        spec = self._table.get(request.name, request.version).spec
        return metadata_of(spec, [request.version] if request.version else self._table.versions(spec.model))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: _Context) -> pb.ModelConfigResponse:
        self._check(context)
        return pb.ModelConfigResponse(config=config_of(self._table.get(request.name, request.version).spec))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: _Context) -> pb.ModelStatisticsResponse:
        self._check(context)
        if request.name:
            self._table.get(request.name, request.version)  # raises for what is not here
        wanted = (
            loaded
            for loaded in self._table
            if request.name in ("", loaded.spec.model) and request.version in ("", loaded.spec.version)
        )
        return pb.ModelStatisticsResponse(model_stats=[statistics_of(loaded) for loaded in wanted])

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: _Context) -> pb.RepositoryIndexResponse:
        self._check(context)
        if request.repository_name:
            raise Unimplemented(
                f"there is one repository here; leave repository_name empty (it is {request.repository_name!r})"
            )
        rows = [(loaded, *_READY) for loaded in self._table]
        if not request.ready:
            rows += [(loaded, *_LEAVING) for loaded in self._table.leaving]
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=loaded.spec.model, version=loaded.spec.version, state=state, reason=reason
                )
                for loaded, state, reason in rows
            ]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: _Context
    ) -> pb.RepositoryModelLoadResponse:
        self._refuse_repository(context, "loads")

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: _Context
    ) -> pb.RepositoryModelUnloadResponse:
        self._refuse_repository(context, "unloads")

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: _Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        self._check(context)
        return pb.SystemSharedMemoryStatusResponse()

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: _Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        self._refuse_shared_memory(context)

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: _Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        self._check(context)
        return pb.SystemSharedMemoryUnregisterResponse()  # none is registered: what was asked for is so

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: _Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        self._check(context)
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: _Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        self._refuse_shared_memory(context)

    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: _Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        self._check(context)
        return pb.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: pb.TraceSettingRequest, context: _Context) -> pb.TraceSettingResponse:
        self._check(context)
        if request.model_name:
            self._table.get(request.model_name)
        _refuse_changes("trace", request.settings, "start the process with an OTLP endpoint to trace")
        values = pb.TraceSettingResponse.SettingValue
        return pb.TraceSettingResponse(settings={key: values(value=value) for key, value in _TRACE_SETTINGS.items()})

    async def LogSettings(self, request: pb.LogSettingsRequest, context: _Context) -> pb.LogSettingsResponse:
        self._check(context)
        _refuse_changes("log", request.settings, "set the log level when starting the process")
        values = pb.LogSettingsResponse.SettingValue
        return pb.LogSettingsResponse(
            settings={
                "log_file": values(string_param=""),
                "log_info": values(bool_param=True),
                "log_warning": values(bool_param=True),
                "log_error": values(bool_param=True),
                "log_verbose_level": values(uint32_param=0),
                "log_format": values(string_param="default"),
            }
        )

    def _check(self, context: _Context) -> None:
        if self._inner:
            inner_peer(context, Role.GATEWAY, Role.OPERATOR)

    def _refuse_repository(self, context: _Context, verb: str) -> NoReturn:
        self._check(context)
        raise Unimplemented(f"a worker {verb} what the scheduler assigns to it; ask the mesh's gateway instead")

    def _refuse_shared_memory(self, context: _Context) -> NoReturn:
        self._check(context)
        raise Unimplemented("this server maps no shared memory; send tensors in raw_input_contents")


def call_of(context: _Context) -> CallContext:
    """What an RPC carries besides its payload."""
    remaining_s = context.time_remaining()
    if remaining_s is None:
        return _NO_DEADLINE
    return CallContext(deadline_s=asyncio.get_running_loop().time() + remaining_s)


_NO_DEADLINE = CallContext()


def _refuse_changes(kind: str, settings: Iterable[str], instead: str) -> None:
    if changed := sorted(settings):
        raise InvalidArgument(f"{kind} settings {changed} cannot be changed while the worker runs; {instead}")


def _own_version() -> str:
    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return "0"
