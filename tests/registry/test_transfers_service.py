"""Files over the wire: resumed after a break, refused when tampered with, whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from penstock.registry.v1 import models_pb2

from registry.ports import FileCorrupt, FileUnknown, UploadBusy, UploadOffsetWrong, UploadRefused
from registry.transfers import TransferLimits, UploadsFull, UploadSilent
from runtime.errors import InvalidArgument
from runtime.identity import NodeIdentity, Role
from runtime.serving import RoleRequired
from tests.registry.mesh import (
    CONTENT,
    Mesh,
    as_stream,
    fetch,
    refusal,
    running_mesh,
    sha256_of,
    until,
    upload,
    upload_messages,
)

SHA256 = sha256_of(CONTENT)
HEADER = models_pb2.UploadFileHeader(sha256=SHA256, size_bytes=len(CONTENT))


async def stat(mesh: Mesh, sha256: str = SHA256) -> models_pb2.StatFileResponse:
    return await mesh.models().StatFile(models_pb2.StatFileRequest(sha256=sha256))


async def reached(mesh: Mesh, received_bytes: int, sha256: str = SHA256) -> None:
    async def has() -> bool:
        return (await stat(mesh, sha256)).received_bytes == received_bytes

    await until(has)


async def send_part(mesh: Mesh, part: bytes) -> None:
    """An upload whose connection breaks after this much."""
    call = mesh.models().UploadFile()
    await call.write(models_pb2.UploadFileRequest(header=HEADER))
    await call.write(models_pb2.UploadFileRequest(data=part))
    await reached(mesh, len(part))
    call.cancel()


async def begun_anew(mesh: Mesh, offset_bytes: int) -> models_pb2.UploadFileResponse:
    """Go on as a client does: while the server has not noticed the break yet, it says that the file is busy."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await mesh.models().UploadFile(as_stream(upload_messages(CONTENT, offset_bytes=offset_bytes)))
            except grpc.aio.AioRpcError as failure:
                if failure.code() is not grpc.StatusCode.ABORTED:
                    raise
            await asyncio.sleep(0.01)


async def test_what_was_uploaded_is_fetched_from_any_offset(mesh: Mesh) -> None:
    assert await stat(mesh) == models_pb2.StatFileResponse()
    answer = await upload(mesh.models(), CONTENT)
    assert answer == models_pb2.UploadFileResponse(received_bytes=len(CONTENT), complete=True)
    assert await stat(mesh) == models_pb2.StatFileResponse(received_bytes=len(CONTENT), complete=True)
    worker = mesh.models(Role.WORKER)
    for offset in (0, 1, 1_000_000, len(CONTENT)):
        assert await fetch(worker, SHA256, offset) == CONTENT[offset:]


async def test_an_empty_file_is_a_file(mesh: Mesh) -> None:
    assert (await upload(mesh.models(), b"")).complete
    assert await fetch(mesh.models(), sha256_of(b"")) == b""


async def test_a_broken_upload_goes_on_where_it_broke(mesh: Mesh) -> None:
    await send_part(mesh, CONTENT[:700_000])
    assert await stat(mesh) == models_pb2.StatFileResponse(received_bytes=700_000)
    assert isinstance(await refusal(fetching(mesh)), FileUnknown), "a part is never visible"
    assert mesh.visible_files == set()
    assert (await begun_anew(mesh, 700_000)).complete
    assert await fetch(mesh.models(), SHA256) == CONTENT


async def fetching(mesh: Mesh, offset_bytes: int = 0) -> bytes:
    return await fetch(mesh.models(), SHA256, offset_bytes)


async def test_a_sender_that_stops_early_is_told_how_far_it_came(mesh: Mesh) -> None:
    messages = upload_messages(CONTENT[:1000], sha256=SHA256, size_bytes=len(CONTENT))
    answer = await mesh.models().UploadFile(as_stream(messages))
    assert answer == models_pb2.UploadFileResponse(received_bytes=1000)


async def test_going_on_from_elsewhere_is_refused(mesh: Mesh) -> None:
    refused = await refusal(mesh.models().UploadFile(as_stream(upload_messages(CONTENT, offset_bytes=5))))
    assert isinstance(refused, UploadOffsetWrong)


async def test_tampered_bytes_never_become_visible_and_leave_nothing(mesh: Mesh) -> None:
    tampered = CONTENT[:-1] + b"?"
    refused = await refusal(mesh.models().UploadFile(as_stream(upload_messages(tampered, sha256=SHA256))))
    assert isinstance(refused, UploadRefused)
    assert await stat(mesh) == models_pb2.StatFileResponse()
    assert mesh.visible_files == set()
    assert (await upload(mesh.models(), CONTENT)).complete


async def test_a_part_tampered_with_on_disk_is_found_out_when_the_rest_came(mesh: Mesh) -> None:
    await send_part(mesh, CONTENT[:500])
    (mesh.folder / "objects" / "partial" / SHA256).write_bytes(b"x" * 500)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await begun_anew(mesh, 500)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert mesh.visible_files == set()
    assert (await upload(mesh.models(), CONTENT)).complete


async def test_a_stored_file_that_rotted_is_data_loss_and_can_be_uploaded_anew(mesh: Mesh) -> None:
    await upload(mesh.models(), CONTENT)
    mesh.object_file(SHA256).write_bytes(CONTENT[:-1] + b"?")
    assert isinstance(await refusal(fetching(mesh, 1_000_000)), FileCorrupt)
    assert not (await stat(mesh)).complete
    assert (await upload(mesh.models(), CONTENT)).complete
    assert await fetch(mesh.models(), SHA256) == CONTENT


async def test_more_than_announced_is_refused(mesh: Mesh) -> None:
    refused = await refusal(mesh.models().UploadFile(as_stream(upload_messages(CONTENT, size_bytes=1000))))
    assert isinstance(refused, UploadRefused)
    assert mesh.visible_files == set()


async def test_uploading_what_is_here_reads_nothing(mesh: Mesh) -> None:
    await upload(mesh.models(), CONTENT)

    async def only_a_header() -> AsyncIterator[models_pb2.UploadFileRequest]:
        yield models_pb2.UploadFileRequest(header=HEADER)

    assert (await mesh.models().UploadFile(only_a_header())).complete
    wrong = upload_messages(b"", sha256=SHA256, size_bytes=7)
    assert isinstance(await refusal(mesh.models().UploadFile(as_stream(wrong))), UploadRefused)


async def test_one_sender_at_a_time_and_the_other_is_told(mesh: Mesh) -> None:
    first = mesh.models().UploadFile()
    await first.write(models_pb2.UploadFileRequest(header=HEADER))
    await first.write(models_pb2.UploadFileRequest(data=CONTENT[:10]))
    await reached(mesh, 10)
    refused = await refusal(mesh.models().UploadFile(as_stream(upload_messages(CONTENT, offset_bytes=10))))
    assert isinstance(refused, UploadBusy)
    await first.write(models_pb2.UploadFileRequest(data=CONTENT[10:]))
    await first.done_writing()
    assert (await first).complete
    assert await fetch(mesh.models(), SHA256) == CONTENT


async def test_many_senders_of_one_file_end_with_that_file(mesh: Mesh) -> None:
    """And are told so in our words: a client whose write fails because the call ended would report INTERNAL instead."""
    answers = await asyncio.gather(*[upload(mesh.models(), CONTENT) for _ in range(8)], return_exceptions=True)
    done = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert done
    assert all(answer.complete for answer in done)
    refused = [answer.code() for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert set(refused) <= {grpc.StatusCode.ABORTED}
    assert mesh.visible_files == {SHA256}
    assert await fetch(mesh.models(), SHA256) == CONTENT


async def test_many_files_at_once(mesh: Mesh) -> None:
    contents = [bytes([number]) * 900_000 for number in range(8)]
    assert all(answer.complete for answer in await asyncio.gather(*[upload(mesh.models(), content) for content in contents]))
    fetched = await asyncio.gather(*[fetch(mesh.models(), sha256_of(content)) for content in contents])
    assert fetched == contents


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [models_pb2.UploadFileRequest()],
        [models_pb2.UploadFileRequest(data=b"x")],
        [models_pb2.UploadFileRequest(header=HEADER), models_pb2.UploadFileRequest(header=HEADER)],
        [models_pb2.UploadFileRequest(header=models_pb2.UploadFileHeader(sha256="../../etc/passwd", size_bytes=1))],
        [models_pb2.UploadFileRequest(header=models_pb2.UploadFileHeader(sha256=SHA256.upper(), size_bytes=1))],
        [models_pb2.UploadFileRequest(header=models_pb2.UploadFileHeader(sha256=SHA256, size_bytes=2**63))],
        [models_pb2.UploadFileRequest(header=models_pb2.UploadFileHeader(sha256=SHA256, size_bytes=1, offset_bytes=2))],
    ],
)
async def test_an_upload_that_makes_no_sense_is_refused(mesh: Mesh, messages: list[models_pb2.UploadFileRequest]) -> None:
    assert isinstance(await refusal(mesh.models().UploadFile(as_stream(messages))), InvalidArgument)


async def test_fetching_what_makes_no_sense_is_refused(mesh: Mesh) -> None:
    await upload(mesh.models(), b"abc")
    assert isinstance(await refusal(fetch(mesh.models(), sha256_of(b"abc"), 4)), InvalidArgument)
    assert isinstance(await refusal(fetch(mesh.models(), "../../etc/passwd")), InvalidArgument)
    assert isinstance(await refusal(fetch(mesh.models(), "0" * 64)), FileUnknown)


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.SCHEDULER, Role.ENVOY, Role.REGISTRY])
async def test_files_are_for_workers_and_operators(mesh: Mesh, role: Role) -> None:
    assert isinstance(await refusal(fetch(mesh.models(role), "0" * 64)), RoleRequired)
    assert isinstance(await refusal(upload(mesh.models(role), b"abc")), RoleRequired)


async def test_a_worker_does_not_upload(mesh: Mesh) -> None:
    assert isinstance(await refusal(upload(mesh.models(Role.WORKER), b"abc")), RoleRequired)
    assert mesh.visible_files == set()


async def test_uploads_under_way_are_bounded(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> None:
    async with running_mesh(tmp_path, identities, limits=TransferLimits(uploads=1)) as mesh:
        await occupied(mesh)
        refused = await refusal(upload(mesh.models(), b"another"))
        assert isinstance(refused, UploadsFull)
        assert refused.retry_after_s


async def occupied(mesh: Mesh) -> None:
    call = mesh.models().UploadFile()
    await call.write(models_pb2.UploadFileRequest(header=HEADER))
    await call.write(models_pb2.UploadFileRequest(data=b"x"))
    await reached(mesh, 1)


async def test_who_waits_for_the_registry_to_accept_sends_nothing_in_vain(mesh: Mesh) -> None:
    call = mesh.models().UploadFile()
    await call.write(models_pb2.UploadFileRequest(header=HEADER))
    await call.initial_metadata()
    await call.write(models_pb2.UploadFileRequest(data=CONTENT))
    other = mesh.models().UploadFile()
    await other.write(models_pb2.UploadFileRequest(header=HEADER))
    await other.done_writing()
    assert isinstance(await refusal(other), UploadBusy)
    await call.done_writing()
    assert (await call).complete


async def test_a_sender_that_never_begins_is_ended(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> None:
    async with running_mesh(tmp_path, identities, limits=TransferLimits(silence_s=0.2)) as mesh:
        assert isinstance(await refusal(mesh.models().UploadFile()), UploadSilent)


async def test_a_silent_sender_is_ended_and_what_it_sent_stays(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> None:
    async with running_mesh(tmp_path, identities, limits=TransferLimits(silence_s=0.2)) as mesh:
        call = mesh.models().UploadFile()
        await call.write(models_pb2.UploadFileRequest(header=HEADER))
        await call.write(models_pb2.UploadFileRequest(data=CONTENT[:100]))
        assert isinstance(await refusal(call), UploadSilent)
        assert await stat(mesh) == models_pb2.StatFileResponse(received_bytes=100)


async def test_a_reader_that_does_not_read_holds_nothing_up(mesh: Mesh) -> None:
    content = bytes(40_000_000)
    for start in range(0, len(content), 10_000_000):
        part = upload_messages(
            content[: start + 10_000_000], sha256=sha256_of(content), size_bytes=len(content), offset_bytes=start
        )
        await mesh.models().UploadFile(as_stream(part))
    slow = mesh.models(Role.WORKER).FetchFile(models_pb2.FetchFileRequest(sha256=sha256_of(content)))
    await slow.read()
    assert await stat(mesh, sha256_of(content)) == models_pb2.StatFileResponse(received_bytes=len(content), complete=True)
    slow.cancel()
