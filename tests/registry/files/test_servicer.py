"""FileService over a real server: the wire's side of parts, completions, storage, collections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from penstock.registry.v1 import files_pb2, files_pb2_grpc

from registry.access.types import ScopeRequired
from registry.files.errors import UploadRefused, UploadSilent, UploadUnknown
from runtime.errors import InvalidArgument, NotFound
from runtime.identity import NodeIdentity, Role
from runtime.sealed_chunks import CHUNK_BYTES
from tests.registry.files.rig import LIMITS, Rig, content_of, part_messages, rig_on, served_rig, sha256_of, stub_of
from tests.registry.harness import Ground, Served, refusal

CONTENT = content_of()
Identities = dict[Role, NodeIdentity]


@pytest.fixture
async def server(sqlite_rig: Rig, identities: Identities) -> AsyncIterator[Served]:
    async with served_rig(sqlite_rig, identities) as running:
        yield running


@pytest.fixture
async def stub(server: Served) -> files_pb2_grpc.FileServiceStub:
    return await stub_of(server)


async def begun(
    stub: files_pb2_grpc.FileServiceStub, content: bytes = CONTENT, tenant: str = "acme"
) -> files_pb2.BeginUploadResponse:
    request = files_pb2.BeginUploadRequest(sha256=sha256_of(content), size_bytes=len(content), tenant=tenant)
    return await stub.BeginUpload(request)


async def sent(stub: files_pb2_grpc.FileServiceStub, upload_id: str, number: int, content: bytes = CONTENT) -> int:
    part = content[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
    pieces = [part[start : start + 400_000] for start in range(0, len(part), 400_000)]
    return (await stub.UploadPart(part_messages(upload_id, number, *pieces))).number


async def test_a_file_over_the_wire(stub: files_pb2_grpc.FileServiceStub) -> None:
    answer = await begun(stub)
    assert (answer.complete, answer.part_bytes, list(answer.received_parts)) == (False, CHUNK_BYTES, [])
    assert await asyncio.gather(*(sent(stub, answer.upload_id, number) for number in (3, 1, 0))) == [3, 1, 0]
    assert list((await begun(stub)).received_parts) == [0, 1, 3]
    await sent(stub, answer.upload_id, 2)
    request = files_pb2.CompleteUploadRequest(upload_id=answer.upload_id)
    steps = [step async for step in stub.CompleteUpload(request)]
    assert [step.complete for step in steps] == [False] * (len(steps) - 1) + [True]
    assert steps[-1].verified_bytes == steps[-1].size_bytes == len(CONTENT)
    assert sorted(step.verified_bytes for step in steps) == [step.verified_bytes for step in steps]
    assert (await begun(stub)).complete
    assert (await begun(stub)).upload_id == ""


async def test_a_part_is_sent_once_the_registry_takes_it(stub: files_pb2_grpc.FileServiceStub) -> None:
    answer = await begun(stub)
    call = stub.UploadPart()
    await call.write(files_pb2.UploadPartRequest(header=files_pb2.UploadPartHeader(upload_id=answer.upload_id)))
    assert dict(await call.initial_metadata())["penstock-part"] == "accepted"
    await call.write(files_pb2.UploadPartRequest(data=CONTENT[:CHUNK_BYTES]))
    await call.done_writing()
    assert (await call).number == 0
    again = stub.UploadPart(part_messages(answer.upload_id, 0, CONTENT[:CHUNK_BYTES]))
    assert (await again).number == 0, "a part that is here is let pass"


async def test_what_is_wrong_with_a_part_is_told_before_it_is_sent(stub: files_pb2_grpc.FileServiceStub) -> None:
    call = stub.UploadPart()
    await call.write(files_pb2.UploadPartRequest(header=files_pb2.UploadPartHeader(upload_id="gone")))
    assert "penstock-part" not in dict(await call.initial_metadata())
    assert isinstance(await refusal(call), UploadUnknown)


async def test_too_much_is_told_as_that_although_the_sender_goes_on(stub: files_pb2_grpc.FileServiceStub) -> None:
    answer = await begun(stub)
    pieces = [bytes(500_000)] * 20
    assert isinstance(await refusal(stub.UploadPart(part_messages(answer.upload_id, 0, *pieces))), UploadRefused)


async def no_header() -> AsyncIterator[files_pb2.UploadPartRequest]:
    yield files_pb2.UploadPartRequest(data=b"x")


async def nothing() -> AsyncIterator[files_pb2.UploadPartRequest]:
    for message in list[files_pb2.UploadPartRequest]():
        yield message


@pytest.mark.parametrize("messages", [no_header, nothing])
async def test_a_part_without_a_header_is_refused(
    stub: files_pb2_grpc.FileServiceStub, messages: Callable[[], AsyncIterator[files_pb2.UploadPartRequest]]
) -> None:
    assert isinstance(await refusal(stub.UploadPart(messages())), InvalidArgument)


async def test_two_headers_are_refused(stub: files_pb2_grpc.FileServiceStub) -> None:
    answer = await begun(stub)

    async def twice() -> AsyncIterator[files_pb2.UploadPartRequest]:
        for _ in range(2):
            async for message in part_messages(answer.upload_id, 0):
                yield message

    assert isinstance(await refusal(stub.UploadPart(twice())), InvalidArgument)


async def test_a_sender_that_falls_silent_is_told_so(sqlite_ground: Ground, tmp_path: Path, identities: Identities) -> None:
    rig = rig_on(sqlite_ground, tmp_path, replace(LIMITS, silence_s=0.1))
    async with served_rig(rig, identities) as server:
        call = (await stub_of(server)).UploadPart()
        assert isinstance(await refusal(call), UploadSilent), "not even a header came"


async def test_a_sender_that_goes_away_leaves_room_and_no_part(sqlite_rig: Rig, server: Served) -> None:
    stub = await stub_of(server)
    answer = await begun(stub)
    for _ in range(10):
        call = stub.UploadPart()
        await call.write(files_pb2.UploadPartRequest(header=files_pb2.UploadPartHeader(upload_id=answer.upload_id)))
        await call.initial_metadata()
        await call.write(files_pb2.UploadPartRequest(data=b"half"))
        call.cancel()
    await sent(stub, answer.upload_id, 1)
    assert list((await begun(stub)).received_parts) == [1]


async def test_only_an_operator_administers_files(server: Served) -> None:
    calls: list[Callable[[files_pb2_grpc.FileServiceStub], Awaitable[object]]] = [
        lambda stub: stub.CollectGarbage(files_pb2.CollectGarbageRequest()),
        lambda stub: stub.SetQuota(files_pb2.SetQuotaRequest(tenant="acme", quota_bytes=1)),
        lambda stub: stub.GetStorage(files_pb2.GetStorageRequest()),
        lambda stub: stub.RotateMasterKey(files_pb2.RotateMasterKeyRequest()).read(),
    ]
    for role in (Role.GATEWAY, Role.WORKER, Role.SCHEDULER):
        for call in calls:
            assert isinstance(await refusal(call(await stub_of(server, role))), ScopeRequired)
    for call in calls:
        await call(await stub_of(server, Role.OPERATOR))


async def test_storage_is_shown_and_bounded(stub: files_pb2_grpc.FileServiceStub, sqlite_rig: Rig) -> None:
    await sqlite_rig.upload(CONTENT)
    await begun(stub, b"more", "globex")
    answer = await stub.SetQuota(files_pb2.SetQuotaRequest(tenant="acme", quota_bytes=5))
    assert answer.storage == files_pb2.TenantStorage(tenant="acme", used_bytes=len(CONTENT), quota_bytes=5, files=1)
    tenants = (await stub.GetStorage(files_pb2.GetStorageRequest())).tenants
    assert [(each.tenant, each.used_bytes, each.uploads) for each in tenants] == [
        ("acme", len(CONTENT), 0),
        ("default", 0, 0),
        ("globex", 4, 1),
    ]
    (one,) = (await stub.GetStorage(files_pb2.GetStorageRequest(tenant="globex"))).tenants
    assert one.tenant == "globex"
    for call in (
        stub.GetStorage(files_pb2.GetStorageRequest(tenant="nobody")),
        stub.SetQuota(files_pb2.SetQuotaRequest(tenant="nobody", quota_bytes=1)),
    ):
        assert isinstance(await refusal(call), NotFound)
    refused = await refusal(stub.SetQuota(files_pb2.SetQuotaRequest(tenant="acme", quota_bytes=2**64 - 1)))
    assert isinstance(refused, InvalidArgument)
    assert ("quota.set", "acme", "done") in await sqlite_rig.ground.actions()


async def test_a_collection_and_a_rotation_are_asked_for(stub: files_pb2_grpc.FileServiceStub, sqlite_rig: Rig) -> None:
    await sqlite_rig.upload(CONTENT)
    sqlite_rig.later(days=2)
    answer = await stub.CollectGarbage(files_pb2.CollectGarbageRequest(dry_run=True))
    assert (answer.files, answer.freed_bytes) == (1, len(CONTENT))
    assert (await stub.CollectGarbage(files_pb2.CollectGarbageRequest())).files == 1
    rotated = [step async for step in stub.RotateMasterKey(files_pb2.RotateMasterKeyRequest())]
    assert [(step.done, step.total, step.master_key_id) for step in rotated] == [(0, 2, "k1"), (1, 2, "k1"), (2, 2, "k1")]


async def test_an_aborted_upload_is_gone(stub: files_pb2_grpc.FileServiceStub) -> None:
    answer = await begun(stub)
    for _ in range(2):
        await stub.AbortUpload(files_pb2.AbortUploadRequest(upload_id=answer.upload_id))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await sent(stub, answer.upload_id, 0)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
