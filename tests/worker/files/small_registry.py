"""A registry as workers see it, in a few lines: sealed chunks, keys wrapped and sealed to who asks, versions, incidents.

Real messages, keys and ciphers over real mTLS, so that a test can spoil any of it on its way.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from penstock.registry.v1 import audit_pb2, audit_pb2_grpc, files_pb2, files_pb2_grpc, models_pb2, models_pb2_grpc

from registry.files.data_keys import DataKeys, WrappedKey, sealed_to_node
from registry.master_keys import MasterKeys
from runtime.errors import NotFound, PermissionDenied
from runtime.identity import Role, node_id_of
from runtime.sealed_chunks import CHUNK_BYTES, chunk_count, seal_chunk
from runtime.serving import inner_peer
from tests.worker.manifests import sha256_of

KEYS = MasterKeys("k1", {"k1": b"m" * 32})
Context = grpc.aio.ServicerContext[Any, Any]


def as_it_is(_: files_pb2.FileHeader) -> None:
    """Nothing is spoilt."""


@dataclass
class Stored:
    """A file as the registry keeps it."""

    object_id: bytes
    size_bytes: int
    kept: WrappedKey
    chunks: list[bytes]


@dataclass
class SmallRegistry:
    files: dict[str, Stored] = field(default_factory=dict)
    versions: dict[str, models_pb2.GetVersionResponse] = field(default_factory=dict)
    asked: list[files_pb2.FetchFileRequest] = field(default_factory=list)
    incidents: list[audit_pb2.ReportIncidentRequest] = field(default_factory=list)
    spoil: Callable[[files_pb2.FileHeader], None] = as_it_is

    def store(self, content: bytes) -> str:
        object_id = os.urandom(16)
        data_key, kept = DataKeys(KEYS).make(object_id, sha256_of(content))
        size, sha256 = len(content), sha256_of(content)
        parts = [content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES] for index in range(chunk_count(size))]
        chunks = [seal_chunk(data_key, object_id, index, size, part) for index, part in enumerate(parts)]
        self.files[sha256] = Stored(object_id, size, kept, chunks)
        return sha256

    def register(self, server: grpc.aio.Server) -> None:
        models_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self), server)  # type: ignore[abstract]  # what workers call
        files_pb2_grpc.add_FileServiceServicer_to_server(_Files(self), server)  # type: ignore[abstract]
        audit_pb2_grpc.add_AuditServiceServicer_to_server(_Audit(self), server)  # type: ignore[abstract]


class _Models(models_pb2_grpc.ModelServiceServicer):
    def __init__(self, registry: SmallRegistry) -> None:
        self._registry = registry

    async def GetVersion(self, request: models_pb2.GetVersionRequest, context: Context) -> models_pb2.GetVersionResponse:
        inner_peer(context, Role.WORKER)
        if request.digest not in self._registry.versions:
            raise NotFound(f"no version has digest {request.digest}")
        return self._registry.versions[request.digest]


class _Files(files_pb2_grpc.FileServiceServicer):
    def __init__(self, registry: SmallRegistry) -> None:
        self._registry = registry

    async def FetchFile(
        self, request: files_pb2.FetchFileRequest, context: Context
    ) -> AsyncIterator[files_pb2.FetchFileResponse]:
        peer = inner_peer(context, Role.WORKER)
        if node_id_of(request.ed25519_public_key) != peer.node_id:
            raise PermissionDenied("that is another node's key")
        if (stored := self._registry.files.get(request.sha256)) is None:
            raise NotFound(f"no file {request.sha256}")
        self._registry.asked.append(request)
        data_key = DataKeys(KEYS).open(stored.object_id, request.sha256, stored.kept)
        header = files_pb2.FileHeader(
            size_bytes=stored.size_bytes,
            object_id=stored.object_id,
            chunk_bytes=CHUNK_BYTES,
            sealed_data_key=sealed_to_node(data_key, request.ed25519_public_key),
        )
        self._registry.spoil(header)
        yield files_pb2.FetchFileResponse(header=header)
        for chunk in stored.chunks[request.first_chunk :]:
            yield files_pb2.FetchFileResponse(sealed_chunk=chunk)


class _Audit(audit_pb2_grpc.AuditServiceServicer):
    def __init__(self, registry: SmallRegistry) -> None:
        self._registry = registry

    async def ReportIncident(
        self, request: audit_pb2.ReportIncidentRequest, context: Context
    ) -> audit_pb2.ReportIncidentResponse:
        inner_peer(context, Role.WORKER)
        self._registry.incidents.append(request)
        return audit_pb2.ReportIncidentResponse()
