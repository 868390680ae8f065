"""Stored files on the wire: penstock.registry.v1.FileService. Messages to nouns and back; all else is decided further in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

import grpc.aio
from google.protobuf.message import Message
from penstock.registry.v1 import files_pb2, files_pb2_grpc

from registry.access.door import Door
from registry.access.types import Principal, Scope
from registry.files import codec
from registry.files.completion import Completion
from registry.files.errors import ReaderSilent, UploadSilent
from registry.files.fetching import Fetching
from registry.files.garbage import Garbage
from registry.files.incidents import Incidents
from registry.files.senders import heard, read_off
from registry.files.storage import Storage
from registry.files.types import FileLimits, UploadId
from registry.files.uploads import Uploads
from runtime.errors import PenstockError

SERVICE = "penstock.registry.v1.FileService"
MESSAGE_BYTES = 16 * 1024 * 1024
"""What a server of this service takes in one message: room for any piece of a part that makes sense."""

ACCEPTED = (("penstock-part", "accepted"),)
"""Initial metadata: from here on the part's bytes are read."""

_READ_OFF_MESSAGES = 4096

Context = grpc.aio.ServicerContext[Any, Any]


class Rotation(Protocol):
    @property
    def master_key_id(self) -> str: ...

    def run(self, by: Principal | None = None) -> AsyncIterator[tuple[int, int]]:
        """Rows done and in all."""
        ...


class FileServicer(files_pb2_grpc.FileServiceServicer):
    """penstock.registry.v1.FileService."""

    def __init__(
        self,
        *,
        door: Door,
        uploads: Uploads,
        completion: Completion,
        fetching: Fetching,
        storage: Storage,
        garbage: Garbage,
        rotation: Rotation,
        incidents: Incidents,
        limits: FileLimits,
    ) -> None:
        self._door, self._uploads, self._completion, self._fetching = door, uploads, completion, fetching
        self._storage, self._garbage, self._rotation = storage, garbage, rotation
        self._incidents, self._limits = incidents, limits

    def register(self, server: grpc.aio.Server) -> None:
        files_pb2_grpc.add_FileServiceServicer_to_server(self, server)

    async def BeginUpload(self, request: files_pb2.BeginUploadRequest, context: Context) -> files_pb2.BeginUploadResponse:
        principal = await self._door.enter(context)
        async with self._incidents.noted(principal, "upload.begin", request.sha256):
            begun = await self._uploads.begin(principal, request.tenant, request.sha256, request.size_bytes)
        return codec.begun_message(begun, self._limits)

    async def UploadPart(
        self, request_iterator: AsyncIterator[files_pb2.UploadPartRequest], context: Context
    ) -> files_pb2.UploadPartResponse:
        principal = await self._door.enter(context)
        upload_id, number = codec.part_header_of(await heard(request_iterator, self._limits.silence_s))
        accepted = False

        async def accept() -> None:
            nonlocal accepted
            await context.send_initial_metadata(ACCEPTED)
            accepted = True

        try:
            async with self._incidents.noted(principal, "upload.part", upload_id):
                await self._uploads.receive(principal, upload_id, number, _data(request_iterator), accept)
        except UploadSilent:
            raise
        except PenstockError:
            if accepted:  # before that, nobody who waits for its turn has sent anything
                await read_off(request_iterator, _READ_OFF_MESSAGES)
            raise
        return files_pb2.UploadPartResponse(number=number)

    async def CompleteUpload(self, request: files_pb2.CompleteUploadRequest, context: Context) -> None:  # type: ignore[override]
        principal = await self._door.enter(context)
        async with self._incidents.noted(principal, "upload.complete", request.upload_id):
            async with aclosing(self._completion.complete(principal, UploadId(request.upload_id))) as progress:
                async for step in progress:
                    await self._write(context, codec.progress_message(step))

    async def AbortUpload(self, request: files_pb2.AbortUploadRequest, context: Context) -> files_pb2.AbortUploadResponse:
        principal = await self._door.enter(context)
        await self._uploads.abort(principal, UploadId(request.upload_id))
        return files_pb2.AbortUploadResponse()

    async def FetchFile(self, request: files_pb2.FetchFileRequest, context: Context) -> None:  # type: ignore[override]
        principal = await self._door.enter(context)
        async with self._incidents.noted(principal, "file.fetch", request.sha256):
            file = await self._fetching.open(principal, codec.wish_of(request))
            async with self._fetching.places.of(principal.actor_id):
                await self._write(context, codec.header_message(file))
                async with aclosing(self._fetching.chunks(file)) as chunks:
                    async for chunk in chunks:
                        await self._write(context, codec.chunk_message(chunk))

    async def CollectGarbage(
        self, request: files_pb2.CollectGarbageRequest, context: Context
    ) -> files_pb2.CollectGarbageResponse:
        principal = await self._door.enter(context)
        principal.require(Scope.FILES_ADMIN)
        return codec.collected_message(await self._garbage.collect(principal, dry_run=request.dry_run))

    async def GetStorage(self, request: files_pb2.GetStorageRequest, context: Context) -> files_pb2.GetStorageResponse:
        principal = await self._door.enter(context)
        async with self._incidents.noted(principal, "storage.get", request.tenant):
            usages = await self._storage.usages(principal, request.tenant)
        return files_pb2.GetStorageResponse(tenants=[codec.usage_message(usage) for usage in usages])

    async def SetQuota(self, request: files_pb2.SetQuotaRequest, context: Context) -> files_pb2.SetQuotaResponse:
        principal = await self._door.enter(context)
        async with self._incidents.noted(principal, "quota.set", request.tenant):
            usage = await self._storage.set_quota(principal, request.tenant, request.quota_bytes)
        return files_pb2.SetQuotaResponse(storage=codec.usage_message(usage))

    async def RotateMasterKey(self, request: files_pb2.RotateMasterKeyRequest, context: Context) -> None:  # type: ignore[override]
        principal = await self._door.enter(context)
        principal.require(Scope.FILES_ADMIN)
        async for done, total in self._rotation.run(principal):
            await context.write(codec.rotated_message(done, total, self._rotation.master_key_id))

    async def _write(self, context: Context, message: Message) -> None:
        """Raises ReaderSilent: a reader that takes nothing would keep its place for ever."""
        try:
            async with asyncio.timeout(self._limits.silence_s):
                await context.write(message)
        except TimeoutError as error:
            raise ReaderSilent(f"nothing was taken for {self._limits.silence_s:g} s; ask again, for what is missing") from error


async def _data(messages: AsyncIterator[files_pb2.UploadPartRequest]) -> AsyncIterator[bytes]:
    async for message in messages:
        yield codec.data_of(message)
