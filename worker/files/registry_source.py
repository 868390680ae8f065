"""The registry as the worker reads it: manifests by digest, files from an offset; errors as our own classes."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc.aio
from penstock.registry.v1 import models_pb2, models_pb2_grpc

from runtime.ids import Digest
from worker.files.transfers import failure_of, read_parts


class RegistrySource:
    """Implements `worker.files.origins.Source`."""

    name = "the registry"

    def __init__(self, channel: grpc.aio.Channel, *, answer_s: float = 10.0, silence_s: float = 30.0) -> None:
        self._stub = models_pb2_grpc.ModelServiceStub(channel)
        self._answer_s, self._silence_s = answer_s, silence_s

    async def manifest(self, digest: Digest) -> bytes:
        try:
            answer = await self._stub.GetVersion(models_pb2.GetVersionRequest(digest=digest), timeout=self._answer_s)
        except grpc.aio.AioRpcError as failure:
            raise failure_of(failure, self.name) from failure
        return answer.manifest.SerializeToString()

    def fetch(self, sha256: Digest, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        call = self._stub.FetchFile(models_pb2.FetchFileRequest(sha256=sha256, offset_bytes=offset_bytes))
        return read_parts(
            call,
            models_pb2.FetchFileResponse,
            lambda message: message.data,
            who=self.name,
            what=f"file {sha256}",
            silence_s=self._silence_s,
        )
