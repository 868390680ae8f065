"""The calls that ask about the mesh, or about its repository, and their answers as JSON.

Which question a path asks, and what Triton answers to it over HTTP. Knows no context, counts nothing.
"""

from __future__ import annotations

from inference import grpc_service_pb2 as kserve

from gateway.callers import Caller
from gateway.kserve.questions import Questions, check_region, refuse_shared_memory
from gateway.kserve.readiness import ServerExiting
from gateway.openai.errors import STATUS_HEADER
from gateway.rest.documents_codec import (
    config_document,
    document,
    index_document,
    index_request,
    load_request,
    logging_document,
    logging_request,
    told,
    tracing_document,
    tracing_request,
    unload_request,
)
from gateway.rest.types import Body, RestAsked
from runtime.errors import Internal

OPEN = ("GetServerLive", "GetServerReady")
"""Need no key: probes have none."""

TWINS = {
    "GetServerLive": "ServerLive",
    "GetServerReady": "ServerReady",
    "GetServerMetadata": "ServerMetadata",
    "GetModelReady": "ModelReady",
    "GetModelMetadata": "ModelMetadata",
    "GetModelConfig": "ModelConfig",
    "GetModelStatistics": "ModelStatistics",
    "IndexRepository": "RepositoryIndex",
    "LoadModel": "RepositoryModelLoad",
    "UnloadModel": "RepositoryModelUnload",
    "GetSystemSharedMemory": "SystemSharedMemoryStatus",
    "RegisterSystemSharedMemory": "SystemSharedMemoryRegister",
    "UnregisterSystemSharedMemory": "SystemSharedMemoryUnregister",
    "GetCudaSharedMemory": "CudaSharedMemoryStatus",
    "RegisterCudaSharedMemory": "CudaSharedMemoryRegister",
    "UnregisterCudaSharedMemory": "CudaSharedMemoryUnregister",
    "GetTraceSetting": "TraceSetting",
    "UpdateTraceSetting": "TraceSetting",
    "GetLogSettings": "LogSettings",
    "UpdateLogSettings": "LogSettings",
}
"""What each call is over gRPC."""

_YES, _NO = Body(()), Body((), headers=((STATUS_HEADER, "400"),), status=400)
"""Health as Triton tells it: by the status alone. The protocol asks for 4xx where something is not ready."""

_NOTHING = Body(())


class Documents:
    """Belongs to one event loop."""

    def __init__(self, questions: Questions, load_bytes: int) -> None:
        """`load_bytes`: JSON of a load that brings files."""
        self._questions, self._load_bytes = questions, load_bytes

    def health(self, method: str) -> Body:
        """Of the gateway itself."""
        if method == "GetServerLive":
            return _YES
        try:
            return _YES if self._questions.readiness.ready() else _NO
        except ServerExiting:
            return _NO

    async def answer(self, method: str, caller: Caller, asked: RestAsked) -> Body:
        """Raises what a refusal says."""
        questions, model, version = self._questions, asked.model, asked.version
        match method:
            case "GetServerMetadata":
                return document(told(questions.server_metadata()))
            case "GetModelReady":
                ready = questions.model_ready(caller, kserve.ModelReadyRequest(name=model, version=version)).ready
                return _YES if ready else _NO
            case "GetModelMetadata":
                described = kserve.ModelMetadataRequest(name=model, version=version)
                return document(told(await questions.model_metadata(caller, described)))
            case "GetModelConfig":
                return config_document(
                    await questions.model_config(caller, kserve.ModelConfigRequest(name=model, version=version))
                )
            case "GetModelStatistics":
                counted = kserve.ModelStatisticsRequest(name=model, version=version)
                return document(told(await questions.statistics(caller, counted)))
            case "IndexRepository":
                return index_document(await questions.index(caller, index_request(asked)))
            case "LoadModel":
                await questions.load(caller, load_request(asked, self._load_bytes))
                return _NOTHING
            case "UnloadModel":
                await questions.unload(caller, unload_request(asked))
                return _NOTHING
            case "GetTraceSetting" | "UpdateTraceSetting":
                return tracing_document(questions.tracing(caller, tracing_request(asked)))
            case "GetLogSettings" | "UpdateLogSettings":
                return logging_document(questions.logging(logging_request(asked)))
            case _:
                return _shared_memory(method, asked.region)


def _shared_memory(method: str, region: str) -> Body:
    """None is registered, and none can be."""
    kind = "system" if "System" in method else "CUDA"
    if method.startswith("Get"):
        check_region(kind, region)
        return document([])
    if method.startswith("Register"):
        refuse_shared_memory(kind, region)
    if method.startswith("Unregister"):
        return _NOTHING
    raise Internal(f"{method} is registered, and nobody answers it")
