"""Around servicers of every kind: what is refused is written down, what is answered stays as it was."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, cast

import grpc.aio
import pytest
from penstock.registry.v1 import files_pb2, files_pb2_grpc
from sqlalchemy import select

from registry.access.door import Context, NodeDoor
from registry.access.types import OtherTenant, Scope, ScopeRequired
from registry.audit.audited import audited
from registry.audit.bounded import BURST, BoundedTrail
from registry.schema import audit
from registry.seals import RowAltered
from runtime.errors import InvalidArgument, NotFound
from runtime.identity import NodeIdentity, Role
from tests.registry.harness import Ground, Served, refusal, served


class Files(files_pb2_grpc.FileServiceServicer):
    """One method of each kind, for operators alone."""

    async def GetStorage(self, request: files_pb2.GetStorageRequest, context: Context) -> files_pb2.GetStorageResponse:
        await self._enter(context)
        return files_pb2.GetStorageResponse()

    async def SetQuota(self, request: files_pb2.SetQuotaRequest, context: Context) -> files_pb2.SetQuotaResponse:
        await self._enter(context)
        raise InvalidArgument("the caller's own mistake")

    async def UploadPart(
        self, messages: AsyncIterator[files_pb2.UploadPartRequest], context: Context
    ) -> files_pb2.UploadPartResponse:
        async for _ in messages:
            await self._enter(context)
        return files_pb2.UploadPartResponse()

    async def FetchFile(
        self, request: files_pb2.FetchFileRequest, context: Context
    ) -> AsyncIterator[files_pb2.FetchFileResponse]:
        yield files_pb2.FetchFileResponse()
        await self._enter(context)
        yield files_pb2.FetchFileResponse()

    async def CompleteUpload(  # type: ignore[override]
        self, request: files_pb2.CompleteUploadRequest, context: Context
    ) -> None:
        await context.write(files_pb2.CompleteUploadResponse())
        await self._enter(context)

    async def RotateMasterKey(
        self, request: files_pb2.RotateMasterKeyRequest, context: Context
    ) -> AsyncIterator[files_pb2.RotateMasterKeyResponse]:
        yield files_pb2.RotateMasterKeyResponse()
        raise RowAltered("row f of files is not as the registry wrote it; restore it")

    async def AbortUpload(self, request: files_pb2.AbortUploadRequest, context: Context) -> files_pb2.AbortUploadResponse:
        principal = await NodeDoor().enter(context)
        error = OtherTenant(f"{principal.actor_id} belongs elsewhere")
        if request.upload_id == "hidden":
            raise NotFound("there is no such upload") from error
        raise error

    async def _enter(self, context: Context) -> None:
        (await NodeDoor().enter(context)).require(Scope.FILES_ADMIN)


@pytest.fixture
async def server(sqlite_ground: Ground, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Served]:
    files = cast("Any", Files)  # not whole, on purpose

    def register(server: grpc.aio.Server) -> None:
        files_pb2_grpc.add_FileServiceServicer_to_server(files(), server)

    bounded = BoundedTrail(sqlite_ground.trail, sqlite_ground.clock)
    async with served([audited(register, bounded)], identities) as running:
        yield running


async def read(call: AsyncIterable[object]) -> list[object]:
    return [message async for message in call]


async def test_calls_of_every_kind_are_refused_and_written_down(server: Served, sqlite_ground: Ground) -> None:
    worker = files_pb2_grpc.FileServiceStub(await server.channel(Role.WORKER))
    fetch = worker.FetchFile(files_pb2.FetchFileRequest(sha256="f"))
    assert isinstance(await refusal(read(fetch)), ScopeRequired)
    complete = worker.CompleteUpload(files_pb2.CompleteUploadRequest(upload_id="u"))
    assert isinstance(await refusal(read(complete)), ScopeRequired)
    assert isinstance(await refusal(worker.UploadPart(iter([files_pb2.UploadPartRequest()]))), ScopeRequired)
    assert isinstance(await refusal(worker.AbortUpload(files_pb2.AbortUploadRequest(upload_id="v"))), OtherTenant)
    assert await sqlite_ground.actions() == [
        ("file.fetch", "f", "refused"),
        ("upload.complete", "u", "refused"),
        ("part.upload", "", "refused"),
        ("upload.abort", "v", "refused"),
    ]


async def test_what_is_hidden_from_a_caller_is_told_to_operators_alone(server: Served, sqlite_ground: Ground) -> None:
    worker = files_pb2_grpc.FileServiceStub(await server.channel(Role.WORKER))
    hidden = files_pb2.AbortUploadRequest(upload_id="hidden")
    for _ in range(BURST + 5):
        assert isinstance(await refusal(worker.AbortUpload(hidden)), NotFound)
    await refusal(worker.AbortUpload(files_pb2.AbortUploadRequest(upload_id="v")))
    assert await sqlite_ground.actions() == [("upload.abort", "hidden", "refused")] * BURST + [("upload.abort", "v", "refused")]
    async with sqlite_ground.database.reading() as connection:
        rows = (await connection.execute(select(audit).order_by(audit.c.entry.desc()).limit(2))).all()
    assert "were not written down" not in rows[0].detail, "the budgets are apart"
    assert (rows[1].tenant, rows[1].detail.partition(":")[0]) == ("", "OTHER_TENANT")


async def test_whoever_may_is_served_as_ever(server: Served, sqlite_ground: Ground) -> None:
    operator = files_pb2_grpc.FileServiceStub(await server.channel(Role.OPERATOR))
    assert len(await read(operator.FetchFile(files_pb2.FetchFileRequest()))) == 2
    assert len(await read(operator.CompleteUpload(files_pb2.CompleteUploadRequest()))) == 1
    await operator.UploadPart(iter([files_pb2.UploadPartRequest()] * 3))
    await operator.GetStorage(files_pb2.GetStorageRequest())
    assert await sqlite_ground.actions() == []


async def test_reads_and_mistakes_are_not_written_down_but_altered_rows_always_are(
    server: Served, sqlite_ground: Ground
) -> None:
    worker = files_pb2_grpc.FileServiceStub(await server.channel(Role.WORKER))
    operator = files_pb2_grpc.FileServiceStub(await server.channel(Role.OPERATOR))
    assert isinstance(await refusal(worker.GetStorage(files_pb2.GetStorageRequest())), ScopeRequired)
    assert isinstance(await refusal(operator.SetQuota(files_pb2.SetQuotaRequest())), InvalidArgument)
    assert isinstance(await refusal(read(operator.RotateMasterKey(files_pb2.RotateMasterKeyRequest()))), RowAltered)
    assert await sqlite_ground.actions() == [("tampering", "row f of files", "failed")]


async def test_a_caller_that_goes_away_is_no_refusal(server: Served, sqlite_ground: Ground) -> None:
    operator = files_pb2_grpc.FileServiceStub(await server.channel(Role.OPERATOR))
    call = operator.UploadPart()
    await call.write(files_pb2.UploadPartRequest())
    call.cancel()
    await operator.GetStorage(files_pb2.GetStorageRequest())
    assert await sqlite_ground.actions() == []
