"""inference.GRPCInferenceService at the edge: all 20 RPCs, for the whole fleet.

A servicer: contexts and generated messages in, calls on router, copies and repository out. ModelInfer and ModelStreamInfer
take and give bytes: tensors pass through. Codes are Triton's where its clients rely on them (NOT_FOUND with its sentence for an
unknown model); a full fleet is RESOURCE_EXHAUSTED with its retry delay, where Triton says UNAVAILABLE. ServerLive and
ServerReady need no key; all else does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial, wraps
from importlib import metadata
from time import perf_counter
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as rpc

from gateway.callers import Caller, Context, name_request
from gateway.kserve.overrides import MAX_OVERRIDE_BYTES
from gateway.kserve.repository import refuse_repository_name
from gateway.kserve.sequences import SEQUENCE_END, request_of
from gateway.kserve.streaming import InferenceStream
from gateway.mesh import Mesh
from gateway.refusals import ModelUnknown, unknown_model
from gateway.targets import NoticeMissing
from gateway.versions import NEWEST, AliasUnsettled, VersionGone
from gateway.wire import head_of
from runtime.errors import Cancelled, InvalidArgument, NotFound, PenstockError, Unimplemented
from runtime.ids import ModelName
from runtime.load_overrides import override_of

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = (
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""What ServerMetadata names: only what is true of gateway and workers together."""

_TRACE_SETTINGS = {
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    "trace_file": [""],
    "trace_mode": ["opentelemetry"],
}


_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")
_Behaviour = Callable[["KServeServicer", _Request, Context], Awaitable[_Answer]]


def _counted(behaviour: _Behaviour[_Request, _Answer]) -> _Behaviour[_Request, _Answer]:
    """Count the answers of an RPC that serves no inference. The model is not told apart: anybody may name any."""

    @wraps(behaviour)
    async def call(self: KServeServicer, request: _Request, context: Context) -> _Answer:
        started_s = perf_counter()
        try:
            answer = await behaviour(self, request, context)
        except Exception as raised:
            code = raised.code.name if isinstance(raised, PenstockError) else "INTERNAL"
            self._metrics.failed(behaviour.__name__, "", code)
            raise
        self._metrics.answered(behaviour.__name__, "", perf_counter() - started_s)
        return answer

    return call


class KServeServicer(rpc.GRPCInferenceServiceServicer):
    """One for all ports. `register` is a `runtime.serving.Register`."""

    def __init__(
        self,
        mesh: Mesh,
        *,
        strict_readiness: bool = True,
        stream_in_flight: int = 64,
    ) -> None:
        self._callers, self._router, self._fleet, self._metrics = mesh.callers, mesh.router, mesh.fleet, mesh.metrics
        self._copies, self._repository, self._targets = mesh.copies, mesh.repository, mesh.targets
        self._registry, self._regions = mesh.registry, mesh.regions
        self._strict_readiness, self._stream_in_flight = strict_readiness, stream_in_flight

    def register(self, server: grpc.aio.Server) -> None:
        rpc.add_GRPCInferenceServiceServicer_to_server(self, server)
        # Registered again, these two take bytes: the last registration of a method is the one that serves it.
        raw: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self.ModelInfer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self.ModelStreamInfer),
        }
        server.add_registered_method_handlers(SERVICE, raw)

    async def ModelInfer(self, request: bytes, context: Context) -> bytes:  # type: ignore[override]  # see register
        started_s, model, caller = perf_counter(), "", None
        try:
            caller = await self._callers.enter(context)
            if caller.named_it:
                await name_request(context, caller)
            head = head_of(request)
            model, key, session = head.model, caller.key, head.session_key
            key.authorise_call(model)
            version = self._targets.find(key, model, head.version, session)
            if version is None:
                version = await self._targets.found(key, model, head.version, session, caller.deadline_s)
            target = request_of(head, version, self._regions.of(caller.headers, caller.address), key.tenant)
            answer = await self._router.infer(target, request, caller.call(head.priority))
            if session and head.parameters.get(SEQUENCE_END):
                self._fleet.state.forget_session(target.model, target.session_key)
        except BaseException as raised:
            await self._note_failure("ModelInfer", model, raised, context, caller)
            raise
        self._metrics.answered("ModelInfer", model, perf_counter() - started_s)
        return answer

    async def ModelStreamInfer(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        caller = await self._callers.enter(context)
        await name_request(context, caller)
        in_flight = self._stream_in_flight
        stream = InferenceStream(
            self._callers, self._router, self._targets, self._fleet, self._metrics, context, caller, in_flight, self._regions
        )
        await stream.serve()

    @_counted
    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    @_counted
    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether requests can be answered; where that is strict, whether all that should be loaded is (as Triton has it)."""
        wanted = self._fleet.expected()
        missing = self._strict_readiness and any(not self._fleet.ready(wish.model, wish.version) for wish in wanted)
        return pb.ServerReadyResponse(ready=self._fleet.synced and not missing)

    @_counted
    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        await self._enter(context)
        return pb.ServerMetadataResponse(name="penstock", version=_own_version(), extensions=EXTENSIONS)

    @_counted
    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        caller = await self._enter(context, request.name)
        try:
            version = self._targets.mostly(caller.key, request.name, request.version)
        except (ModelUnknown, VersionGone, AliasUnsettled):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=bool(self._fleet.ready(request.name, version)))

    @_counted
    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        caller = await self._enter(context, request.name)
        version = self._targets.mostly(caller.key, request.name, request.version)
        return await self._copies.metadata(request.name, version, all_versions=not request.version)

    @_counted
    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        caller = await self._enter(context, request.name)
        return await self._copies.config(request.name, self._targets.mostly(caller.key, request.name, request.version))

    @_counted
    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        caller = await self._enter(context, request.name)
        version = self._targets.pinned(caller.key, request.name, request.version) if request.name else request.version
        return await self._copies.statistics(request.name, version, partial(self._targets.sees, caller.key))

    @_counted
    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        caller = await self._enter(context)
        refuse_repository_name(request.repository_name)
        entries = await self._repository.index(partial(self._targets.sees, caller.key), ready_only=request.ready)
        return pb.RepositoryIndexResponse(models=entries)

    @_counted
    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        caller = await self._enter(context, request.model_name)
        caller.key.require_admin("loading a model")
        refuse_repository_name(request.repository_name)
        override = override_of(request.parameters, MAX_OVERRIDE_BYTES)
        await self._check_told(caller, request.model_name)
        await self._repository.load(request.model_name, caller.deadline_s, override, caller.key.tenant)
        return pb.RepositoryModelLoadResponse()

    @_counted
    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        # Its only parameter, unload_dependents, changes nothing: there are no ensembles yet, so nothing depends on a model.
        caller = await self._enter(context, request.model_name)
        caller.key.require_admin("unloading a model")
        refuse_repository_name(request.repository_name)
        await self._check_told(caller, request.model_name)
        await self._repository.unload(request.model_name, caller.deadline_s)
        return pb.RepositoryModelUnloadResponse()

    @_counted
    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        await self._enter(context)
        _refuse_region("system", request.name)
        return pb.SystemSharedMemoryStatusResponse()

    @_counted
    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        await self._enter(context)
        _refuse_shared_memory("system", request.name)

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
        _refuse_region("CUDA", request.name)
        return pb.CudaSharedMemoryStatusResponse()

    @_counted
    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        await self._enter(context)
        _refuse_shared_memory("CUDA", request.name)

    @_counted
    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        await self._enter(context)
        return pb.CudaSharedMemoryUnregisterResponse()

    @_counted
    async def TraceSetting(self, request: pb.TraceSettingRequest, context: Context) -> pb.TraceSettingResponse:
        caller, model = await self._enter(context, request.model_name), request.model_name
        if model and not (self._targets.sees(caller.key, model) and self._fleet.copies(model)):
            raise unknown_model(model)
        _refuse_changes("trace", request.settings, "start the process with an OTLP endpoint to trace")
        values = pb.TraceSettingResponse.SettingValue
        return pb.TraceSettingResponse(settings={key: values(value=value) for key, value in _TRACE_SETTINGS.items()})

    @_counted
    async def LogSettings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:
        await self._enter(context)
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

    async def _enter(self, context: Context, model: str = "") -> Caller:
        """Let the call in, for this model where it names one."""
        caller = await self._callers.enter(context)
        await name_request(context, caller)
        if model:
            caller.key.authorise(model)
        return caller

    async def _check_told(self, caller: Caller, model: str) -> None:
        """Raises ModelNotAllowed, and NoticeMissing for a model that is in the registry and has not been told of."""
        if not await self._targets.is_told(caller.key, model):
            with suppress(NotFound):
                await self._registry.version(ModelName(model), NEWEST)
                raise NoticeMissing(f"whose model {model[:128]!r} is has not been heard here yet; try again", retry_after_s=1.0)

    async def _note_failure(
        self, method: str, model: str, raised: BaseException, context: Context, caller: Caller | None
    ) -> None:
        if isinstance(raised, asyncio.CancelledError):
            self._metrics.failed(method, model, Cancelled.code.name)
            return
        error = raised if isinstance(raised, PenstockError) else None
        self._metrics.failed(method, model, error.code.name if error is not None else "INTERNAL")
        if caller is not None and not caller.named_it:  # one who gave no id needs ours to ask about a failure
            with suppress(grpc.aio.BaseError):  # who has gone meanwhile needs none
                await name_request(context, caller)


def _refuse_shared_memory(kind: str, region: str) -> NoReturn:
    raise Unimplemented(
        f"failed to register {kind} shared memory region: '{region[:200]}', the mesh and its callers share no memory;"
        " send tensors in raw_input_contents"
    )


def _refuse_region(kind: str, region: str) -> None:
    if region:
        raise NotFound(f"Unable to find {kind} shared memory region: '{region[:200]}'; none is registered")


def _refuse_changes(kind: str, settings: Iterable[str], instead: str) -> None:
    if changed := sorted(settings):
        raise InvalidArgument(f"{kind} settings {changed[:8]} cannot be changed while the mesh runs; {instead}")


def _own_version() -> str:
    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return "0"
