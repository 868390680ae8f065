"""penstock.scheduler.v1.FileService on the wire. Both ways a file passes through in pieces; it is never held whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import grpc.aio
from penstock.scheduler.v1 import jobs_pb2, jobs_pb2_grpc

from runtime.clock import Clock
from runtime.errors import DeadlineExceeded, InvalidArgument, PenstockError
from scheduler.jobs.callers import caller, plain, tenant_asked
from scheduler.jobs.files import codec
from scheduler.jobs.files.sql import FileStore
from scheduler.jobs.files.types import FileId
from scheduler.jobs.files.writing import FileWriter
from scheduler.jobs.types import JobLimits

SERVICE = "penstock.scheduler.v1.FileService"
SILENCE_S = 60.0
"""Who neither sends nor takes anything for so long is let go."""

Context = grpc.aio.ServicerContext[Any, Any]


class FileServicer(jobs_pb2_grpc.FileServiceServicer):
    def __init__(self, store: FileStore, clock: Clock, limits: JobLimits, *, silence_s: float = SILENCE_S) -> None:
        self._store, self._clock, self._limits, self._silence_s = store, clock, limits, silence_s

    async def UploadFile(
        self, request_iterator: AsyncIterator[jobs_pb2.UploadFileRequest], context: Context
    ) -> jobs_pb2.UploadFileResponse:
        caller(context)
        messages = aiter(request_iterator)
        first = await self._heard(messages)
        if first is None:
            raise InvalidArgument("the upload has no message; the first says what the file is")
        new = codec.new_file_of(first, self._limits)
        writer = FileWriter(self._store, self._clock, await self._store.begin(new, self._now_ms()))
        try:
            message: jobs_pb2.UploadFileRequest | None = first
            while message is not None:
                await writer.write(message.data)
                message = await self._heard(messages)
            await writer.flush()
            file = await self._store.finish(writer.file_id, writer.digest, new.keep_ms, self._now_ms())
        except BaseException:
            # Where even that fails, a sweep finds it later.
            with suppress(PenstockError):
                await asyncio.shield(self._store.drop_unfinished(writer.file_id))
            raise
        return jobs_pb2.UploadFileResponse(file=codec.file_message(file))

    async def GetFile(self, request: jobs_pb2.GetFileRequest, context: Context) -> jobs_pb2.GetFileResponse:
        tenant = tenant_asked(context, request.tenant)
        return jobs_pb2.GetFileResponse(file=codec.file_message(await self._store.file(FileId(plain(request.file_id)), tenant)))

    async def ListFiles(self, request: jobs_pb2.ListFilesRequest, context: Context) -> jobs_pb2.ListFilesResponse:
        tenant = tenant_asked(context, request.tenant)
        files, has_more = await self._store.page(codec.question_of(tenant, request))
        return jobs_pb2.ListFilesResponse(files=[codec.file_message(file) for file in files], has_more=has_more)

    async def DeleteFile(self, request: jobs_pb2.DeleteFileRequest, context: Context) -> jobs_pb2.DeleteFileResponse:
        tenant = tenant_asked(context, request.tenant)
        await self._store.delete(FileId(plain(request.file_id)), tenant)
        return jobs_pb2.DeleteFileResponse()

    # A coroutine that writes: cancelled generators leak natively in grpc.aio (grpc#43360).
    async def ReadFile(self, request: jobs_pb2.ReadFileRequest, context: Context) -> None:  # type: ignore[override]
        tenant = tenant_asked(context, request.tenant)
        file = await self._store.file(FileId(plain(request.file_id)), tenant)
        async with aclosing(self._store.checked_pieces(file)) as pieces:
            async for piece in pieces:
                await self._write(context, jobs_pb2.ReadFileResponse(data=piece))

    async def _heard(self, messages: AsyncIterator[jobs_pb2.UploadFileRequest]) -> jobs_pb2.UploadFileRequest | None:
        """The next message; None: that was all."""
        try:
            async with asyncio.timeout(self._silence_s):
                return await anext(messages, None)
        except TimeoutError as error:
            raise DeadlineExceeded(f"nothing was sent for {self._silence_s:g} s; upload the file anew") from error

    async def _write(self, context: Context, message: jobs_pb2.ReadFileResponse) -> None:
        try:
            async with asyncio.timeout(self._silence_s):
                await context.write(message)
        except TimeoutError as error:
            raise DeadlineExceeded(f"nothing was taken for {self._silence_s:g} s; read the file anew") from error

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1_000)
