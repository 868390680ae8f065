"""The registry as the worker reads it: manifests by digest, files as the sealed chunks they are kept as.

Opens what comes: the key of a file is sealed to this node's own key, and a chunk that was altered, moved or left out does not
open. Whether the content is that of the manifest is for who receives it. Errors are our own classes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import grpc.aio
import nacl.exceptions
import nacl.public
from penstock.registry.v1 import files_pb2, files_pb2_grpc, models_pb2, models_pb2_grpc

from runtime.errors import Code, PenstockError
from runtime.identity import NodeIdentity
from runtime.ids import Digest
from runtime.sealed_chunks import CHUNK_BYTES, DATA_KEY_BYTES, OBJECT_ID_BYTES, ChunkAltered, open_chunk
from worker.files.manifest import vouched
from worker.files.transfers import failure_of, read_parts
from worker.threads import in_thread


class DataKeyRefused(PenstockError, code=Code.DATA_LOSS, reason="DATA_KEY_REFUSED"):
    """The key that came with a file is sealed to another node, or was altered on its way."""


@dataclass(frozen=True, slots=True)
class _Object:
    """A stored object whose chunks come."""

    data_key: bytes = field(repr=False)
    object_id: bytes
    size_bytes: int

    def opened(self, index: int, sealed: bytes) -> bytes:
        return open_chunk(self.data_key, self.object_id, index, self.size_bytes, sealed)


class RegistrySource:
    """Implements `worker.files.origins.Source`."""

    name = "the registry"

    def __init__(
        self, channel: grpc.aio.Channel, identity: NodeIdentity, *, answer_s: float = 10.0, silence_s: float = 30.0
    ) -> None:
        self._models = models_pb2_grpc.ModelServiceStub(channel)
        self._files = files_pb2_grpc.FileServiceStub(channel)
        self._identity = identity
        self._answer_s, self._silence_s = answer_s, silence_s

    async def manifest(self, digest: Digest) -> bytes:
        try:
            answer = await self._models.GetVersion(models_pb2.GetVersionRequest(digest=digest), timeout=self._answer_s)
        except grpc.aio.AioRpcError as failure:
            raise failure_of(failure, self.name) from failure
        return vouched(answer)

    def files_of(self, digest: Digest) -> RegistryFiles:
        return RegistryFiles(self._files, self._identity, digest, self._silence_s)


class RegistryFiles:
    """Implements `worker.files.origins.Origin`, for the files of one version."""

    name = RegistrySource.name

    def __init__(self, stub: files_pb2_grpc.FileServiceStub, identity: NodeIdentity, digest: Digest, silence_s: float) -> None:
        self._stub, self._identity, self._digest, self._silence_s = stub, identity, digest, silence_s

    async def fetch(self, sha256: Digest, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        """Goes on within a chunk too: that chunk comes again, and what of it is here already is left out.

        Raises DataKeyRefused, ChunkAltered beside what the registry answers.
        """
        index, already_bytes = divmod(offset_bytes, CHUNK_BYTES)
        request = files_pb2.FetchFileRequest(
            sha256=sha256, first_chunk=index, digest=self._digest, ed25519_public_key=self._identity.ed25519_public_key
        )
        async with aclosing(self._messages(request)) as messages:
            first = await anext(messages, files_pb2.FetchFileResponse())
            kept = await in_thread(self._opened, first.header)
            async for message in messages:
                data = await in_thread(kept.opened, index, message.sealed_chunk)
                yield data[already_bytes:]
                index, already_bytes = index + 1, 0

    def _messages(self, request: files_pb2.FetchFileRequest) -> AsyncGenerator[files_pb2.FetchFileResponse, None]:
        return read_parts(
            self._stub.FetchFile(request),
            files_pb2.FetchFileResponse,
            lambda message: message,
            who=self.name,
            what=f"file {request.sha256}",
            silence_s=self._silence_s,
        )

    def _opened(self, header: files_pb2.FileHeader) -> _Object:
        """Blocking."""
        if header.chunk_bytes != CHUNK_BYTES or len(header.object_id) != OBJECT_ID_BYTES:
            raise ChunkAltered(
                f"object {header.object_id.hex()[:80]} has chunks of {header.chunk_bytes} bytes; {CHUNK_BYTES} are expected,"
                f" and an id of {OBJECT_ID_BYTES} bytes"
            )
        box = nacl.public.SealedBox(self._identity.signing_key.to_curve25519_private_key())
        try:
            data_key = box.decrypt(header.sealed_data_key)
        except (nacl.exceptions.CryptoError, nacl.exceptions.TypeError, ValueError) as error:
            raise DataKeyRefused(
                f"the key of object {header.object_id.hex()} is not sealed to node {self._identity.node_id}, or was altered on"
                " its way; load the model again"
            ) from error
        if len(data_key) != DATA_KEY_BYTES:
            raise DataKeyRefused(
                f"the key of object {header.object_id.hex()} has {len(data_key)} bytes; publish the model again"
            )
        return _Object(data_key, header.object_id, header.size_bytes)
