"""kill -9 in the middle: a restart finds no half file, loses no finished one, and an upload goes on where it was."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest
from penstock.registry.v1 import files_pb2, files_pb2_grpc

from cli.upload import upload_file
from runtime.identity import NodeIdentity, Role
from runtime.sealed_chunks import CHUNK_BYTES
from tests.registry.files.processes import file_process
from tests.registry.files.rig import content_of, part_messages, sha256_of

CONTENT = content_of()
SHA256 = sha256_of(CONTENT)
SMALL = ("--part-bytes", str(CHUNK_BYTES), "--verifying-s", "0.5")
Identities = dict[Role, NodeIdentity]


async def begun(stub: files_pb2_grpc.FileServiceStub, content: bytes = CONTENT) -> files_pb2.BeginUploadResponse:
    return await stub.BeginUpload(files_pb2.BeginUploadRequest(sha256=sha256_of(content), size_bytes=len(content)))


async def sent(stub: files_pb2_grpc.FileServiceStub, upload_id: str, number: int) -> None:
    part = CONTENT[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
    await stub.UploadPart(part_messages(upload_id, number, part))


def written(folder: Path, content: bytes = CONTENT) -> Path:
    file = folder / f"{sha256_of(content)[:8]}.bin"
    file.write_bytes(content)
    return file


async def test_in_the_middle_of_a_part(tmp_path: Path, identities: Identities) -> None:
    async with file_process(tmp_path, identities, *SMALL, halt_at="put") as running:
        first = await begun(running.stub)
        running.halt_file.unlink()
        await sent(running.stub, first.upload_id, 2)
        running.halt_file.touch()
        half = asyncio.create_task(sent(running.stub, first.upload_id, 0))
        await running.halted()
        await running.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await half
    async with file_process(tmp_path, identities, *SMALL) as running:
        again = await begun(running.stub)
        assert (again.complete, again.upload_id, list(again.received_parts)) == (False, first.upload_id, [2])
        await upload_file(running.stub, written(tmp_path), SHA256)
        assert (await begun(running.stub)).complete


async def test_in_the_middle_of_a_completion(tmp_path: Path, identities: Identities) -> None:
    async with file_process(tmp_path, identities, *SMALL, halt_at="get") as running:
        uploading = asyncio.create_task(upload_file(running.stub, written(tmp_path), SHA256, patience_s=0.0))
        await running.halted()
        await running.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await uploading
    async with file_process(tmp_path, identities, *SMALL) as running:
        again = await begun(running.stub)
        assert (again.complete, list(again.received_parts)) == (False, [0, 1, 2, 3])
        await upload_file(running.stub, written(tmp_path), SHA256)  # waits until the dead one's lease is over
        assert (await begun(running.stub)).complete


async def test_in_the_middle_of_a_collection(tmp_path: Path, identities: Identities) -> None:
    """The row is gone and the object is not: nobody is told that the file is there, and what it left goes later."""
    objects = tmp_path / "objects" / "objects"
    async with file_process(tmp_path, identities, *SMALL, "--grace-ms", "1", halt_at="delete") as running:
        await upload_file(running.stub, written(tmp_path), SHA256)
        await asyncio.sleep(0.01)
        collecting = asyncio.ensure_future(running.stub.CollectGarbage(files_pb2.CollectGarbageRequest()))
        await running.halted()
        await running.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await collecting
    assert len(list(objects.rglob("*/*"))) == 4
    async with file_process(tmp_path, identities, *SMALL, "--grace-ms", "1") as running:
        assert not (await begun(running.stub)).complete
        answer = await running.stub.CollectGarbage(files_pb2.CollectGarbageRequest())
        assert (answer.files, answer.orphans) == (0, 4)
        assert not list(objects.rglob("*/*"))
        await upload_file(running.stub, written(tmp_path), SHA256)
        assert (await begun(running.stub)).complete


async def test_a_finished_file_survives(tmp_path: Path, identities: Identities) -> None:
    other = content_of(10, 1)
    async with file_process(tmp_path, identities, *SMALL) as running:
        await upload_file(running.stub, written(tmp_path), SHA256)
        await running.kill()
    async with file_process(tmp_path, identities, *SMALL) as running:
        assert (await begun(running.stub)).complete
        await upload_file(running.stub, written(tmp_path, other), sha256_of(other))
        answer = await running.stub.CollectGarbage(files_pb2.CollectGarbageRequest())
        assert answer == files_pb2.CollectGarbageResponse()


async def test_a_registry_that_is_killed_again_and_again_ends_with_the_file(tmp_path: Path, identities: Identities) -> None:
    content, upload_id, received = content_of(24 * CHUNK_BYTES + 1), "", -1
    for _ in range(3):
        async with file_process(tmp_path, identities, *SMALL) as running:
            answer = await begun(running.stub, content)
            assert upload_id in ("", answer.upload_id)
            assert len(answer.received_parts) > received, "what arrived stays"
            upload_id, received = answer.upload_id, len(answer.received_parts)
            upload = upload_file(running.stub, written(tmp_path, content), sha256_of(content), parts_at_once=1, patience_s=0.0)
            uploading = asyncio.create_task(upload)
            if not await until_received(running.stub, content, received + 1):
                break  # it was faster than this asks
            await running.kill()
            await asyncio.gather(uploading, return_exceptions=True)
    async with file_process(tmp_path, identities, *SMALL) as running:
        await upload_file(running.stub, written(tmp_path, content), sha256_of(content))
        assert (await begun(running.stub, content)).complete


async def until_received(stub: files_pb2_grpc.FileServiceStub, content: bytes, number: int) -> bool:
    """True once so many parts are there; False once the whole file is."""
    async with asyncio.timeout(30):
        while not (answer := await begun(stub, content)).complete:
            if len(answer.received_parts) >= number:
                return True
            await asyncio.sleep(0.001)
        return False
