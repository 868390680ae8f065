"""FileService over real gRPC: streamed both ways, bounded, nothing left of what broke off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc.aio
import pytest
from penstock.scheduler.v1 import jobs_pb2

from runtime.errors import Code
from scheduler.jobs.files.types import CHUNK_BYTES
from scheduler.jobs.types import JobLimits
from tests.scheduler.jobs.service import Service, error, service_on

FIRST = jobs_pb2.UploadFileRequest(tenant="acme", name="in.jsonl", purpose="batch")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    limits = JobLimits(file_bytes=5 * CHUNK_BYTES)
    async with service_on(str(tmp_path / "jobs.db"), tmp_path, limits) as service:
        yield service


def messages(*data: bytes) -> list[jobs_pb2.UploadFileRequest]:
    first, *rest = data or (b"",)
    opening = jobs_pb2.UploadFileRequest()
    opening.CopyFrom(FIRST)
    opening.data = first
    return [opening, *(jobs_pb2.UploadFileRequest(data=each) for each in rest)]


async def read(service: Service, file_id: str) -> Sequence[bytes]:
    stub = await service.files()
    return [part.data async for part in stub.ReadFile(jobs_pb2.ReadFileRequest(tenant="acme", file_id=file_id))]


async def test_up_and_down(service: Service) -> None:
    stub = await service.files()
    data = bytes(range(256)) * 10_000
    file = (await stub.UploadFile(iter(messages(data[:7], data[7:2_000_000], data[2_000_000:])))).file
    assert (file.size_bytes, file.name, file.purpose, file.tenant) == (len(data), "in.jsonl", "batch", "acme")
    assert file.expires_at_ms - file.created_at_ms >= 29 * 86_400_000
    parts = await read(service, file.file_id)
    assert b"".join(parts) == data
    assert max(map(len, parts)) <= CHUNK_BYTES
    listed = await stub.ListFiles(jobs_pb2.ListFilesRequest(tenant="acme", purpose="batch"))
    assert (list(listed.files), listed.has_more) == ([file], False)
    named = jobs_pb2.GetFileRequest(tenant="acme", file_id=file.file_id)
    assert (await stub.GetFile(named)).file == file
    await stub.DeleteFile(jobs_pb2.DeleteFileRequest(tenant="acme", file_id=file.file_id))
    assert (await error(stub.GetFile(named))).code is Code.NOT_FOUND


async def test_what_is_refused(service: Service) -> None:
    stub = await service.files()
    change = jobs_pb2.UploadFileRequest
    cases = [
        ([], "no message"),
        ([change(name="a", purpose="batch")], "tenant"),
        ([change(tenant="acme", purpose="fine-tune")], "fine-tune"),
        ([change(tenant="acme", purpose="batch", name="x" * 513)], "513"),
        ([change(tenant="acme", purpose="batch", name="\x00")], "name"),
        ([change(tenant="acme", purpose="batch", keep_s=2**32 - 1)], "keep_s"),
        (messages(*[bytes(CHUNK_BYTES)] * 6), "split it"),
    ]
    for sent, named in cases:
        told = await error(stub.UploadFile(iter(sent)))
        assert (told.code, named in told.message) == (Code.INVALID_ARGUMENT, True), told.message
    assert not (await stub.ListFiles(jobs_pb2.ListFilesRequest(tenant="acme"))).files


async def test_an_upload_that_breaks_off_leaves_nothing(service: Service) -> None:
    stub = await service.files()
    sent = asyncio.Event()

    async def half() -> AsyncIterator[jobs_pb2.UploadFileRequest]:
        for message in messages(bytes(2 * CHUNK_BYTES)):
            yield message
        sent.set()
        await asyncio.sleep(60)

    upload = stub.UploadFile(half())
    await sent.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    # What is left would count: the limit of this tenant's bytes is what five such files have.
    async with asyncio.timeout(10):
        while await service.stored_bytes("acme"):
            await asyncio.sleep(0.02)
    assert not (await stub.ListFiles(jobs_pb2.ListFilesRequest(tenant="acme"))).files


async def test_a_reader_that_leaves_harms_nobody(service: Service) -> None:
    stub = await service.files()
    file = (await stub.UploadFile(iter(messages(bytes(4 * CHUNK_BYTES))))).file
    reading = stub.ReadFile(jobs_pb2.ReadFileRequest(tenant="acme", file_id=file.file_id))
    await reading.read()
    reading.cancel()
    assert len(b"".join(await read(service, file.file_id))) == 4 * CHUNK_BYTES
    assert isinstance(reading, grpc.aio.Call)
