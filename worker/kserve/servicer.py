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
from typing import Any

import grpc
import grpc.aio
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as rpc

from runtime.errors import InvalidArgument, NotFound, Unimplemented
from runtime.identity import Role
from runtime.load_overrides import override_of
from runtime.serving import Register, inner_peer
from worker.inference import TableInference
from worker.kserve.descriptions import metadata_of, statistics_of
from worker.kserve.model_config import config_of
from worker.kserve.shared_memory import SharedMemory
from worker.kserve.streaming import serve_stream
from worker.models import ModelTable, UnknownModel
from worker.spans import current_traceparent
from worker.types import CallContext, CopyState, Repository

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = (
    "classification",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "schedule_policy",
    "sequence",
)
"""What ServerMetadata names: only what is true here; `system_shared_memory` and `model_repository` where there are such."""

MAX_OVERRIDE_BYTES = 1 << 30
"""Files that one load may bring; what a message may hold is less, unless it was raised."""

_Context = grpc.aio.ServicerContext[Any, Any]
_READY, _LEAVING = ("READY", ""), ("UNLOADING", "finishing its requests")
_INDEX_STATES = {
    CopyState.READY: "READY",
    CopyState.LOADING: "LOADING",
    CopyState.UNLOADING: "UNLOADING",
    CopyState.DRAINING: "UNLOADING",
    CopyState.UNAVAILABLE: "UNAVAILABLE",
    CopyState.FAILED: "UNAVAILABLE",
}
"""Triton's words: one that failed is unavailable, with the reason."""

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
    memory: SharedMemory | None = None,
    traced: bool = False,
    repository: Repository | None = None,
) -> Register:
    """Adds the service to a server.

    `inner`: peers have to be gateways or operators of this mesh, by certificate. `memory`: clients are on this machine and may
    have tensors in shared memory. `traced`: spans are made of each call, which requests are to be told of. `repository`: what
    clients may load and unload; None: nothing.
    """
    servicer = InferenceServicer(
        inference,
        table,
        inner=inner,
        ready=ready,
        server_name=server_name,
        memory=memory,
        traced=traced,
        repository=repository,
    )

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
        self,
        inference: TableInference,
        table: ModelTable,
        *,
        inner: bool,
        ready: Callable[[], bool],
        server_name: str,
        memory: SharedMemory | None = None,
        traced: bool = False,
        repository: Repository | None = None,
    ) -> None:
        self._inference = inference
        self._table = table
        self._inner = inner
        self._ready = ready
        self._server_name = server_name
        self._memory = memory
        self._traced = traced
        self._repository = repository
        self._plain_call = CallContext(memory=memory)

    async def ModelInfer(self, request: bytes, context: _Context) -> bytes:  # type: ignore[override]  # see register
        self._check(context)
        return await self._inference.infer("", "", request, self._call(context))

    async def ModelStreamInfer(self, request_iterator: Any, context: _Context) -> None:  # type: ignore[override]
        self._check(context)
        await serve_stream(self._inference, self._table, context, self._call(context))

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
        extensions = [*EXTENSIONS]
        if self._memory is not None:
            extensions.append("system_shared_memory")
        if self._repository is not None:
            extensions.append("model_repository")
        return pb.ServerMetadataResponse(name=self._server_name, version=_own_version(), extensions=extensions)

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
        _check_repository_name(request.repository_name)
        if self._repository is None:
            rows: list[tuple[str, str, str, str]] = [
                (loaded.spec.model, loaded.spec.version, *_READY) for loaded in self._table
            ]
            rows += [(loaded.spec.model, loaded.spec.version, *_LEAVING) for loaded in self._table.leaving]
        else:
            rows = [(row.name, row.version, _INDEX_STATES.get(row.state, ""), row.reason) for row in self._repository.rows()]
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(name=name, version=version, state=state, reason=reason)
                for name, version, state, reason in rows
                if state == "READY" or not request.ready
            ]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: _Context
    ) -> pb.RepositoryModelLoadResponse:
        repository = self._checked_repository(context, "loads", request.repository_name)
        await repository.load(request.model_name, override_of(request.parameters, MAX_OVERRIDE_BYTES))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: _Context
    ) -> pb.RepositoryModelUnloadResponse:
        repository = self._checked_repository(context, "unloads", request.repository_name)
        if unknown := sorted(request.parameters.keys() - {"unload_dependents"}):  # models here depend on no others
            raise InvalidArgument(f"parameter {unknown[0]!r} of an unload is not known; known: unload_dependents")
        await repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: _Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        self._check(context)
        regions = dict(self._memory or ())
        if request.name and request.name not in regions:
            raise NotFound(f"Unable to find system shared memory region: '{request.name}'")
        response = pb.SystemSharedMemoryStatusResponse()
        for name in [request.name] if request.name else regions:
            region, told = regions[name], response.regions[name]
            told.name, told.key, told.offset, told.byte_size = name, region.key, region.offset, region.byte_size
        return response

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: _Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        self._check(context)
        if self._memory is None:
            raise Unimplemented("this port opens no shared memory; send tensors in raw_input_contents")
        self._memory.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: _Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        self._check(context)
        if self._memory is not None:
            self._memory.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()  # what is not registered is as was asked for

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: _Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        self._check(context)
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: _Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        self._check(context)
        raise Unimplemented(
            "this server opens no CUDA IPC handles: its engines take tensors from host memory; send them in raw_input_contents,"
            " or in system shared memory where ServerMetadata names it"
        )

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

    def _checked_repository(self, context: _Context, verb: str, repository_name: str) -> Repository:
        self._check(context)
        _check_repository_name(repository_name)
        if self._repository is None:
            raise Unimplemented(f"a worker {verb} what the scheduler assigns to it; ask the mesh's gateway instead")
        return self._repository

    def _call(self, context: _Context) -> CallContext:
        """What an RPC carries besides its payload."""
        remaining_s = context.time_remaining()
        traceparent = current_traceparent() if self._traced else ""
        if remaining_s is None and not traceparent:
            return self._plain_call
        deadline_s = None if remaining_s is None else asyncio.get_running_loop().time() + remaining_s
        return CallContext(deadline_s=deadline_s, traceparent=traceparent, memory=self._memory)


def _check_repository_name(name: str) -> None:
    if name:
        raise Unimplemented(f"there is one repository here; leave repository_name empty (it is {name!r})")


def _refuse_changes(kind: str, settings: Iterable[str], instead: str) -> None:
    if changed := sorted(settings):
        raise InvalidArgument(f"{kind} settings {changed} cannot be changed while the worker runs; {instead}")


def _own_version() -> str:
    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return "0"
