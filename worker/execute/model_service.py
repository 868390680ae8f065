"""The part of WorkerService that is about models: LoadModel and UnloadModel for operators, ReadArtifact for other workers.

A servicer: authorises, checks fields, passes on. What is held is the reconciler's question, what may be read the cache's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

import grpc
import grpc.aio
from penstock.worker.v1 import worker_pb2

from runtime.errors import DeadlineExceeded, InvalidArgument, PenstockError, PermissionDenied, Unimplemented
from runtime.identity import Peer, Role
from runtime.ids import Digest, ModelName, ModelVersion
from worker.files.manifest import is_sha256
from worker.life.lifecycle import Copy
from worker.presence_codec import copy_message

WRITE_S = 30.0
"""How long a reader may leave one part untaken."""

_READ_ROLES = (Role.WORKER,)
_LOAD_ROLES = (Role.OPERATOR, Role.SCHEDULER)
Context = grpc.aio.ServicerContext[Any, Any]
Authorise = Callable[[Context, tuple[Role, ...]], object]


class Models(Protocol):
    """Orders beside the scheduler's: `worker.life.local_orders.LocalOrders`."""

    async def load(self, model: ModelName, version: ModelVersion, digest: Digest) -> Copy: ...

    async def unload(self, model: ModelName, version: ModelVersion) -> None: ...


class Files(Protocol):
    """What others may read: `worker.files.sharing.SharedFiles`."""

    def read(self, reader: Peer, sha256: Digest, offset_bytes: int) -> AsyncGenerator[bytes, None]: ...


class ModelService:
    """Handlers. A worker that serves alone has neither models to load nor files to share."""

    def __init__(self, models: Models | None = None, files: Files | None = None) -> None:
        self._models, self._files = models, files

    def handlers(
        self, authorise: Authorise, refusal: Callable[[], PenstockError | None]
    ) -> Mapping[str, grpc.RpcMethodHandler[Any, Any]]:
        """By method. `refusal`: why nothing new is taken, as while draining."""

        async def load(request: worker_pb2.LoadModelRequest, context: Context) -> worker_pb2.LoadModelResponse:
            authorise(context, _LOAD_ROLES)
            if (error := refusal()) is not None:
                raise error
            copy = await self._of_a_mesh().load(*_version(request.model, request.version), _digest(request.digest))
            return worker_pb2.LoadModelResponse(copy=copy_message(copy))

        async def unload(request: worker_pb2.UnloadModelRequest, context: Context) -> worker_pb2.UnloadModelResponse:
            authorise(context, _LOAD_ROLES)
            await self._of_a_mesh().unload(*_version(request.model, request.version))
            return worker_pb2.UnloadModelResponse()

        async def read(request: worker_pb2.ReadArtifactRequest, context: Context) -> None:
            reader = authorise(context, _READ_ROLES)
            if self._files is None:
                raise Unimplemented("a worker that serves alone shares no files; ask the registry")
            if not isinstance(reader, Peer):
                raise PermissionDenied("files go to workers of the mesh alone; connect with a node's certificate")
            async with aclosing(self._files.read(reader, Digest(request.sha256), request.offset_bytes)) as parts:
                async for part in parts:
                    await _written(context, worker_pb2.ReadArtifactResponse(data=part))

        return {
            "LoadModel": grpc.unary_unary_rpc_method_handler(
                load,
                request_deserializer=worker_pb2.LoadModelRequest.FromString,
                response_serializer=worker_pb2.LoadModelResponse.SerializeToString,
            ),
            "UnloadModel": grpc.unary_unary_rpc_method_handler(
                unload,
                request_deserializer=worker_pb2.UnloadModelRequest.FromString,
                response_serializer=worker_pb2.UnloadModelResponse.SerializeToString,
            ),
            "ReadArtifact": grpc.unary_stream_rpc_method_handler(
                read,
                request_deserializer=worker_pb2.ReadArtifactRequest.FromString,
                response_serializer=worker_pb2.ReadArtifactResponse.SerializeToString,
            ),
        }

    def _of_a_mesh(self) -> Models:
        if self._models is None:
            raise Unimplemented("a worker that serves alone loads folders; call RepositoryModelLoad and RepositoryModelUnload")
        return self._models


async def _written(context: Context, message: worker_pb2.ReadArtifactResponse) -> None:
    try:
        async with asyncio.timeout(WRITE_S):
            await context.write(message)
    except TimeoutError as error:
        raise DeadlineExceeded(f"the reader took nothing for {WRITE_S:g} s; others wait for its place") from error


def _version(model: str, version: str) -> tuple[ModelName, ModelVersion]:
    if not model or not version.isdecimal() or int(version) < 1:
        raise InvalidArgument(f"model {model!r} version {version!r}: a name and a positive decimal version are needed")
    return ModelName(model), ModelVersion(version)


def _digest(digest: str) -> Digest:
    if not is_sha256(digest):
        raise InvalidArgument(f"digest {digest[:80]!r} is no sha256 of a manifest; 64 lower-case hex digits are expected")
    return Digest(digest)
