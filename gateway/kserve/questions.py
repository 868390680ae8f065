"""Everything but inference, for a caller that was let in: metadata, configuration, statistics, the repository.

What the RPCs of inference.GRPCInferenceService and their HTTP twins share. Generated messages in and out; knows no context,
counts nothing.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from importlib import metadata
from typing import NoReturn

from inference import grpc_service_pb2 as pb

from gateway.callers import Caller
from gateway.kserve.overrides import MAX_OVERRIDE_BYTES
from gateway.kserve.process_settings import checked_logging, checked_tracing
from gateway.kserve.readiness import Readiness
from gateway.kserve.repository import not_published, refuse_repository_name
from gateway.mesh import Mesh
from gateway.refusals import ModelUnknown, unknown_model
from gateway.targets import NoticeMissing
from gateway.versions import NEWEST, AliasUnsettled, VersionGone
from runtime.errors import NotFound, Unimplemented
from runtime.ids import ModelName
from runtime.load_overrides import override_of

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


class Questions:
    """Belongs to one event loop. Where a request names a model, its caller has to be allowed it."""

    def __init__(self, mesh: Mesh, readiness: Readiness) -> None:
        self._fleet, self._copies, self._targets = mesh.fleet, mesh.copies, mesh.targets
        self._repository, self._registry = mesh.repository, mesh.registry
        self.readiness = readiness

    def server_metadata(self) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="penstock", version=_own_version(), extensions=EXTENSIONS)

    def model_ready(self, caller: Caller, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        caller.key.authorise(request.name)
        try:
            version = self._targets.mostly(caller.key, request.name, request.version)
        except (ModelUnknown, VersionGone, AliasUnsettled):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=bool(self._fleet.ready(request.name, version)))

    async def model_metadata(self, caller: Caller, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        caller.key.authorise(request.name)
        version = self._targets.mostly(caller.key, request.name, request.version)
        return await self._copies.metadata(request.name, version, all_versions=not request.version)

    async def model_config(self, caller: Caller, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        caller.key.authorise(request.name)
        return await self._copies.config(request.name, self._targets.mostly(caller.key, request.name, request.version))

    async def statistics(self, caller: Caller, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """Of all that the caller may see, where none is named."""
        version = request.version
        if request.name:
            caller.key.authorise(request.name)
            version = self._targets.pinned(caller.key, request.name, version)
        return await self._copies.statistics(request.name, version, partial(self._targets.sees, caller.key))

    async def index(self, caller: Caller, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        refuse_repository_name(request.repository_name)
        entries = await self._repository.index(partial(self._targets.sees, caller.key), ready_only=request.ready)
        return pb.RepositoryIndexResponse(models=entries)

    async def load(self, caller: Caller, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        caller.key.authorise(request.model_name)
        caller.key.require_admin("loading a model")
        refuse_repository_name(request.repository_name)
        override = override_of(request.parameters, MAX_OVERRIDE_BYTES)
        await self._check_told(caller, request.model_name, "load")
        await self._repository.load(request.model_name, caller.deadline_s, override, caller.key.tenant)
        return pb.RepositoryModelLoadResponse()

    async def unload(self, caller: Caller, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        # Its only parameter, unload_dependents, changes nothing: there are no ensembles yet, so nothing depends on a model.
        caller.key.authorise(request.model_name)
        caller.key.require_admin("unloading a model")
        refuse_repository_name(request.repository_name)
        await self._check_told(caller, request.model_name, "unload")
        await self._repository.unload(request.model_name, caller.deadline_s)
        return pb.RepositoryModelUnloadResponse()

    def tracing(self, caller: Caller, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        """The mesh's, which are every model's too."""
        model = request.model_name
        if model:
            caller.key.authorise(model)
            known = self._targets.sees(caller.key, model) and (self._fleet.copies(model) or self._fleet.placed(model))
            if not known:
                raise unknown_model(model)
        return checked_tracing(request.settings)

    def logging(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        return checked_logging(request.settings)

    async def _check_told(self, caller: Caller, model: str, doing: str) -> None:
        """Raises NotPublished for another tenant's, and NoticeMissing for one in the registry that has not been told of."""
        try:
            told = await self._targets.is_told(caller.key, model)
        except ModelUnknown:
            raise not_published(model, doing) from None
        if not told:
            with suppress(NotFound):
                await self._registry.version(ModelName(model), NEWEST)
                raise NoticeMissing(f"whose model {model[:128]!r} is has not been heard here yet; try again", retry_after_s=1.0)


def refuse_shared_memory(kind: str, region: str) -> NoReturn:
    """`kind`: system or CUDA."""
    raise Unimplemented(
        f"failed to register {kind} shared memory region: '{region[:200]}', the mesh and its callers share no memory;"
        " send tensors in the request itself (gRPC: raw_input_contents; HTTP: data, or binary data after the JSON)"
    )


def check_region(kind: str, region: str) -> None:
    """That of all regions, of which there are none, is asked. Raises NotFound."""
    if region:
        raise NotFound(f"Unable to find {kind} shared memory region: '{region[:200]}'; none is registered")


def _own_version() -> str:
    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return "0"
