"""Streams that are opened, left, cut and starved: each ends, and meanwhile others are served."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest
from penstock.registry.v1 import files_pb2, files_pb2_grpc, models_pb2

from registry.files.types import FileLimits
from runtime.identity import NodeIdentity, Role
from runtime.manifests import digest_of, sign_manifest
from runtime.sealed_chunks import CHUNK_BYTES
from tests.registry.front import ROOT, Front, Way, front_on

LIMITS = FileLimits(part_bytes=CHUNK_BYTES, parts_waiting=8, silence_s=1.0, slowest_bytes_per_s=4 * CHUNK_BYTES)
CONTENT = hashlib.shake_256(b"streams").digest(6 * CHUNK_BYTES + 17)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
UPLOAD, FETCH, COMPLETE = "FileService/UploadPart", "FileService/FetchFile", "FileService/CompleteUpload"


@pytest.fixture
async def front(request: pytest.FixtureRequest, tmp_path: Path, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Front]:
    limits: FileLimits = getattr(request, "param", LIMITS)
    async with front_on(str(tmp_path / "registry.db"), tmp_path, identities, limits) as opened:
        yield opened


async def begun(front: Front, tenant: str = "acme") -> str:
    request = {"sha256": SHA256, "size_bytes": len(CONTENT), "tenant": tenant}
    return str((await front.made("FileService/BeginUpload", **request)).upload_id)


def header(upload_id: str, number: int) -> files_pb2.UploadPartRequest:
    return files_pb2.UploadPartRequest(header=files_pb2.UploadPartHeader(upload_id=upload_id, number=number))


async def send(front: Front, upload_id: str, *numbers: int, timeout_s: float = 20.0) -> None:
    for number in numbers or range(7):
        part = files_pb2.UploadPartRequest(data=CONTENT[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES])
        assert (await front.call(front.node(), UPLOAD, header(upload_id, number), part, timeout_s=timeout_s)).error is None


async def part_of(front: Front) -> Any:
    """UploadPart, to be written to by hand."""
    return files_pb2_grpc.FileServiceStub(await front.channel(front.node())).UploadPart


async def published(front: Front) -> str:
    """A version of the content that everybody may load: its digest."""
    upload_id = await begun(front)
    await send(front, upload_id)
    assert (await front.call(front.node(), COMPLETE, files_pb2.CompleteUploadRequest(upload_id=upload_id))).error is None
    await front.made("ModelService/CreateModel", model="m", tenant="acme")
    said = models_pb2.Manifest(model="m", tenant="acme", version="1", engine="onnx", task="tensor")
    said.files.add(path="weights.bin", sha256=SHA256, size_bytes=len(CONTENT))
    signed = sign_manifest(ROOT, said)
    await front.made("ModelService/PublishVersion", manifest=signed)
    return digest_of(signed)


def wish(identity: NodeIdentity, digest: str) -> files_pb2.FetchFileRequest:
    return files_pb2.FetchFileRequest(sha256=SHA256, digest=digest, ed25519_public_key=identity.ed25519_public_key)


async def fetch(front: Front, identity: NodeIdentity, digest: str) -> int:
    """How many messages came."""
    answer = await front.call(Way(identity), FETCH, wish(identity, digest), timeout_s=20.0)
    assert answer.error is None, answer
    return len(answer.messages)


@asynccontextmanager
async def opened(front: Front, way: Way, method: str, count: int, *requests: Any) -> AsyncIterator[list[Any]]:
    """So many streams that nobody ends."""
    calls = [await front.started(way, method, *requests, timeout_s=60.0) for _ in range(count)]
    try:
        yield calls
    finally:
        for call in calls:
            call.cancel()


async def test_a_fetch_cancelled_anywhere_leaves_its_place_to_others(front: Front) -> None:
    worker, rng = front.identities[Role.WORKER], random.Random(4)
    digest = await published(front)
    for _ in range(4 * LIMITS.fetches_at_once):
        call = await front.started(Way(worker), FETCH, wish(worker, digest))
        for _ in range(rng.randrange(9)):
            if await call.read() is grpc.aio.EOF:
                break
        call.cancel()
    assert await fetch(front, worker, digest) == 8


async def test_a_completion_cancelled_anywhere_is_done_when_asked_again(front: Front) -> None:
    upload_id, rng = await begun(front), random.Random(5)
    await send(front, upload_id)
    request = files_pb2.CompleteUploadRequest(upload_id=upload_id)
    for _ in range(20):
        call = await front.started(front.node(), COMPLETE, request)
        with suppress(grpc.aio.AioRpcError):  # busy: what was cancelled a moment ago is still at its last chunk
            for _ in range(rng.randrange(3)):
                await call.read()
        call.cancel()
    async with asyncio.timeout(20):
        while (answer := await front.call(front.node(), COMPLETE, request)).code is grpc.StatusCode.ABORTED:
            await asyncio.sleep(0.01)
    begin = {"sha256": SHA256, "size_bytes": len(CONTENT), "tenant": "acme"}
    assert answer.error is None or answer.error.reason == "UPLOAD_UNKNOWN", "done by one that was cancelled too late"
    assert (await front.made("FileService/BeginUpload", **begin)).complete


@pytest.mark.parametrize("front", [replace(LIMITS, silence_s=60.0)], indirect=True, ids=["patient"])
async def test_readers_that_never_read_keep_nobody_from_reading(front: Front, tmp_path: Path) -> None:
    """Nor from anything else, and take a bounded amount of memory, however many they are."""
    worker, other = front.identities[Role.WORKER], front.authority.enrol(tmp_path / "other", Role.WORKER)
    digest = await published(front)
    process = psutil.Process()
    assert await fetch(front, other, digest) == 8
    before_bytes = process.memory_info().rss
    async with opened(front, Way(worker), FETCH, 200, wish(worker, digest)):
        for _ in range(3):
            assert await fetch(front, other, digest) == 8
        assert (await front.call(Way(other), "AccountService/WhoAmI", timeout_s=5.0)).error is None
        # The readers are in this process, too, with what gRPC lets come before anybody reads: megabytes each, if it was fast.
        assert process.memory_info().rss - before_bytes < 200 * len(CONTENT) / 2


async def test_senders_that_say_nothing_keep_no_other_tenant_from_sending(front: Front) -> None:
    upload_id, others = await begun(front), await begun(front, "globex")
    part = await part_of(front)
    calls = [part() for _ in range(100)]
    for call in calls:
        await call.write(header(upload_id, 0))
    await send(front, others, 0)
    assert {await call.code() for call in calls} == {grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    await send(front, upload_id)


async def test_a_sender_that_dawdles_is_given_up(front: Front) -> None:
    """A byte now and then is no silence; but a part has to come within its time, or a few such senders have all places."""
    upload_id = await begun(front)

    async def dawdling() -> AsyncIterator[files_pb2.UploadPartRequest]:
        yield header(upload_id, 0)
        while True:
            await asyncio.sleep(0.05)
            yield files_pb2.UploadPartRequest(data=b"x")

    part = await part_of(front)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(10):
            await part(dawdling())
    assert caught.value.code() is grpc.StatusCode.ABORTED
    await send(front, upload_id)
