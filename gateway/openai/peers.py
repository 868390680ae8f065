"""Files and batches as this gateway asks the schedulers for them. Owns nothing but the calls; foreign errors leave as ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from penstock.scheduler.v1 import jobs_pb2

from gateway.jobs.keepers import Keepers
from gateway.jobs.types import JobOwner
from gateway.openai import stored_codec as codec
from gateway.openai.errors import BatchUnknown, ContentCutShort, FileUnknown
from gateway.openai.stored import BatchAsked, Page, StoredBatch, StoredFile, Upload
from runtime.errors import Code, PenstockError
from runtime.ids import TenantId

_TIMEOUT_S = 10.0
_UPLOAD_TIMEOUT_S = 120.0
_MAX_BREAKS = 10
"""Of one reading of a file."""


class FilesClient:
    """A `gateway.openai.stored.FileStore`."""

    def __init__(self, keepers: Keepers) -> None:
        self._keepers = keepers

    async def upload(self, tenant: TenantId, upload: Upload) -> StoredFile:
        answer: jobs_pb2.UploadFileResponse = await self._keepers.ask(
            lambda stubs: stubs.files.UploadFile(codec.upload_requests(tenant, upload), timeout=_UPLOAD_TIMEOUT_S), again=False
        )
        return codec.file_of(answer.file)

    async def file(self, tenant: TenantId, file_id: str) -> StoredFile:
        request = jobs_pb2.GetFileRequest(tenant=tenant, file_id=file_id)
        try:
            answer: jobs_pb2.GetFileResponse = await self._keepers.ask(
                lambda stubs: stubs.files.GetFile(request, timeout=_TIMEOUT_S)
            )
        except PenstockError as error:
            raise _file_error(error, file_id) from error
        return codec.file_of(answer.file)

    async def files(
        self, tenant: TenantId, *, purpose: str = "", limit: int = 0, after: str = "", oldest_first: bool = False
    ) -> Page[StoredFile]:
        request = jobs_pb2.ListFilesRequest(
            tenant=tenant, purpose=purpose, page_size=limit, after=after, oldest_first=oldest_first
        )
        try:
            answer: jobs_pb2.ListFilesResponse = await self._keepers.ask(
                lambda stubs: stubs.files.ListFiles(request, timeout=_TIMEOUT_S)
            )
        except PenstockError as error:
            raise _file_error(error, after) from error
        return Page([codec.file_of(message) for message in answer.files], answer.has_more)

    async def delete(self, tenant: TenantId, file_id: str) -> None:
        request = jobs_pb2.DeleteFileRequest(tenant=tenant, file_id=file_id)
        try:
            await self._keepers.ask(lambda stubs: stubs.files.DeleteFile(request, timeout=_TIMEOUT_S), again=False)
        except PenstockError as error:
            raise _file_error(error, file_id) from error

    async def content(self, tenant: TenantId, file: StoredFile) -> AsyncGenerator[bytes, None]:
        """A file never changes: after a break it is read from the beginning, and what was given already is stepped over."""
        request = jobs_pb2.ReadFileRequest(tenant=tenant, file_id=file.file_id)
        given_bytes = at = breaks = 0
        try:
            async with aclosing(self._keepers.stream(lambda stubs: stubs.files.ReadFile(request))) as messages:
                async for message in messages:
                    if message is None:
                        at, breaks = 0, breaks + 1
                        if breaks > _MAX_BREAKS:
                            break
                        continue
                    fresh = message.data[max(given_bytes - at, 0) :]
                    at += len(message.data)
                    if fresh:
                        given_bytes += len(fresh)
                        yield fresh
        except PenstockError as error:
            raise _file_error(error, file.file_id) from error
        if given_bytes != file.size_bytes:
            raise ContentCutShort(f"{given_bytes} of the file's {file.size_bytes} bytes were read; ask for it again")


class BatchesClient:
    """A `gateway.openai.stored.BatchStore`."""

    def __init__(self, keepers: Keepers) -> None:
        self._keepers = keepers

    async def create(self, owner: JobOwner, asked: BatchAsked) -> StoredBatch:
        request = codec.create_request(owner, asked)
        try:
            answer: jobs_pb2.CreateBatchResponse = await self._keepers.ask(
                lambda stubs: stubs.batches.CreateBatch(request, timeout=_TIMEOUT_S), again=False
            )
        except PenstockError as error:
            raise _file_error(error, asked.input_file_id) from error
        return codec.batch_of(answer.batch)

    async def batch(self, tenant: TenantId, batch_id: str) -> StoredBatch:
        request = jobs_pb2.GetBatchRequest(tenant=tenant, batch_id=batch_id)
        try:
            answer: jobs_pb2.GetBatchResponse = await self._keepers.ask(
                lambda stubs: stubs.batches.GetBatch(request, timeout=_TIMEOUT_S)
            )
        except PenstockError as error:
            raise _batch_error(error, batch_id) from error
        return codec.batch_of(answer.batch)

    async def batches(self, tenant: TenantId, *, limit: int = 0, after: str = "") -> Page[StoredBatch]:
        request = jobs_pb2.ListBatchesRequest(tenant=tenant, page_size=limit, after=after)
        try:
            answer: jobs_pb2.ListBatchesResponse = await self._keepers.ask(
                lambda stubs: stubs.batches.ListBatches(request, timeout=_TIMEOUT_S)
            )
        except PenstockError as error:
            raise _batch_error(error, after) from error
        return Page([codec.batch_of(message) for message in answer.batches], answer.has_more)

    async def cancel(self, tenant: TenantId, batch_id: str) -> StoredBatch:
        request = jobs_pb2.CancelBatchRequest(tenant=tenant, batch_id=batch_id)
        try:
            answer: jobs_pb2.CancelBatchResponse = await self._keepers.ask(
                lambda stubs: stubs.batches.CancelBatch(request, timeout=_TIMEOUT_S)
            )
        except PenstockError as error:
            raise _batch_error(error, batch_id) from error
        return codec.batch_of(answer.batch)


def _file_error(error: PenstockError, file_id: str) -> PenstockError:
    if error.code is not Code.NOT_FOUND:
        return error
    return FileUnknown(f"there is no file {file_id[:80]!r} of this tenant's; GET /v1/files lists those there are")


def _batch_error(error: PenstockError, batch_id: str) -> PenstockError:
    if error.code is not Code.NOT_FOUND:
        return error
    return BatchUnknown(f"there is no batch {batch_id[:80]!r} of this tenant's; GET /v1/batches lists those there are")
