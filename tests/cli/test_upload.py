"""The sender's side of an upload, against real servers: in parts, through failures, and never for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from penstock.registry.v1 import files_pb2_grpc

from cli.upload import upload_file
from registry.access.types import Scope
from registry.files.errors import QuotaExceeded, StoreUnavailable, UploadRefused
from registry.files.local import LocalObjects
from registry.files.types import FileLimits
from runtime.channel import inner_channel
from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.identity import NodeIdentity, Role
from runtime.ids import Digest, TenantId
from runtime.sealed_chunks import CHUNK_BYTES
from runtime.status import error_of
from tests.registry.files.processes import Running, file_process
from tests.registry.files.rig import LIMITS, Rig, content_of, of_tenant, rig_on, served_rig, sha256_of, stub_of
from tests.registry.harness import Ground, enrol_all, ground_on
from tests.support.forwarder import forwarder_to

CONTENT = content_of(6 * CHUNK_BYTES + 777)
SHA256 = sha256_of(CONTENT)
Identities = dict[Role, NodeIdentity]


class Hours:
    """A clock on which waiting takes no time."""

    def __init__(self) -> None:
        self.now_s, self.slept_s = 0.0, list[float]()

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s
        self.slept_s.append(delay_s)
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return enrol_all(tmp_path_factory.mktemp("identities"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written = tmp_path / "model.bin"
    written.write_bytes(CONTENT)
    return written


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    async with ground_on(str(tmp_path / "registry.db")) as opened:
        yield opened


class Failing(LocalObjects):
    """A store that fails as often as it is told to."""

    def __init__(self, folder: Path, failures: int) -> None:
        super().__init__(folder)
        self.failures = failures

    async def put(self, key: str, data: bytes | bytearray) -> bool:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the store is away", retry_after_s=7.0)
        return await super().put(key, data)


@asynccontextmanager
async def registry(
    ground: Ground, folder: Path, identities: Identities, limits: FileLimits = LIMITS, failures: int = 0
) -> AsyncIterator[tuple[Rig, files_pb2_grpc.FileServiceStub]]:
    rig = rig_on(ground, Failing(folder / "objects", failures), limits)
    async with served_rig(rig, identities) as server:
        yield rig, await stub_of(server)


async def is_there(rig: Rig, sha256: str = SHA256) -> bool:
    return await rig.store.file(Digest(sha256)) is not None


async def failure_of(upload: Callable[[], object]) -> PenstockError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await upload()  # type: ignore[misc]
    return error_of(refused.value)


@pytest.mark.parametrize("parts_at_once", [1, 4])
async def test_a_file_is_sent_and_told_of(
    ground: Ground, tmp_path: Path, identities: Identities, file: Path, parts_at_once: int
) -> None:
    sent, verified = list[int](), list[int]()
    async with registry(ground, tmp_path, identities) as (rig, stub):
        await upload_file(
            stub,
            file,
            SHA256,
            "acme",
            lambda done, _: sent.append(done),
            on_verified=lambda done, _: verified.append(done),
            parts_at_once=parts_at_once,
        )
        assert await is_there(rig)
        assert (await rig.store.usages(TenantId("acme")))[0].files == 1
        for told in (sent, verified):
            assert told == sorted(told)
            assert told[-1] == len(CONTENT)
        await upload_file(stub, file, SHA256, "acme", lambda done, _: sent.append(done))
        assert sent[-2:] == [len(CONTENT)] * 2, "what is there takes one call"


async def test_an_empty_file(ground: Ground, tmp_path: Path, identities: Identities) -> None:
    (tmp_path / "empty").touch()
    async with registry(ground, tmp_path, identities) as (rig, stub):
        await upload_file(stub, tmp_path / "empty", sha256_of(b""))
        assert await is_there(rig, sha256_of(b""))


async def test_only_what_is_missing_is_sent(ground: Ground, tmp_path: Path, identities: Identities, file: Path) -> None:
    told: list[int] = []
    async with registry(ground, tmp_path, identities) as (rig, stub):
        begun = await rig.begin(CONTENT)
        await rig.send(begun, CONTENT, 0, 2, 6)
        await upload_file(stub, file, SHA256, "acme", lambda done, _: told.append(done))
        assert told[0] == 2 * CHUNK_BYTES + 777
        assert await is_there(rig)


async def test_failures_are_waited_out_as_long_as_the_registry_says(
    ground: Ground, tmp_path: Path, identities: Identities, file: Path
) -> None:
    clock = Hours()
    async with registry(ground, tmp_path, identities, failures=5) as (rig, stub):
        await upload_file(stub, file, SHA256, "acme", clock=clock, rng=random.Random(1))
        assert await is_there(rig)
    assert clock.slept_s
    assert all(slept_s >= 7.0 for slept_s in clock.slept_s)


async def test_a_registry_that_takes_few_parts_at_once_gets_them_all_in_the_end(
    ground: Ground, tmp_path: Path, identities: Identities, file: Path
) -> None:
    async with registry(ground, tmp_path, identities, replace(LIMITS, parts_at_once=1, parts_waiting=1)) as (rig, stub):
        await upload_file(stub, file, SHA256, "acme", parts_at_once=6, clock=Hours())
        assert await is_there(rig)


async def test_patience_ends_where_nothing_arrives(ground: Ground, tmp_path: Path, identities: Identities, file: Path) -> None:
    clock = Hours()
    async with registry(ground, tmp_path, identities, failures=10**9) as (_, stub):
        error = await failure_of(lambda: upload_file(stub, file, SHA256, "acme", clock=clock, patience_s=60.0))
    assert error.message == "the store is away"
    assert 60 <= clock.now_s < 90


@pytest.mark.parametrize("parts_at_once", [1, 4])
async def test_what_waiting_does_not_mend_is_told_at_once(
    ground: Ground, tmp_path: Path, identities: Identities, file: Path, parts_at_once: int
) -> None:
    clock = Hours()
    async with registry(ground, tmp_path, identities) as (rig, stub):
        wrong = await failure_of(lambda: upload_file(stub, file, "0" * 64, "acme", clock=clock, parts_at_once=parts_at_once))
        assert isinstance(wrong, UploadRefused)
        await rig.files.servicer._storage.set_quota(of_tenant("acme", *Scope), "acme", 1000)
        full = await failure_of(lambda: upload_file(stub, file, SHA256, "acme", clock=clock))
        assert isinstance(full, QuotaExceeded)
        nobody = await failure_of(lambda: upload_file(stub, file, SHA256, "nobody", clock=clock))
        assert nobody.code is Code.NOT_FOUND
    assert clock.slept_s == []


async def test_an_upload_that_was_dropped_meanwhile_is_begun_anew(
    ground: Ground, tmp_path: Path, identities: Identities, file: Path
) -> None:
    dropped: list[str] = []
    async with registry(ground, tmp_path, identities) as (rig, stub):

        def drop_once(done: int, _: int) -> None:
            if done >= 3 * CHUNK_BYTES and not dropped:
                dropped.append("now")
                aborting.append(asyncio.ensure_future(abort()))

        async def abort() -> None:
            upload = (await rig.begin(CONTENT)).upload
            assert upload is not None
            await rig.uploads.abort(of_tenant("acme"), upload.upload_id)

        aborting: list[asyncio.Future[None]] = []
        await upload_file(stub, file, SHA256, "acme", drop_once, clock=Hours())
        await asyncio.gather(*aborting)
        assert dropped
        assert await is_there(rig)


async def test_a_file_that_shrinks_while_it_is_sent_is_named(
    ground: Ground, tmp_path: Path, identities: Identities, file: Path
) -> None:
    def shrink(done: int, _: int) -> None:
        if done:
            file.write_bytes(b"short")

    async with registry(ground, tmp_path, identities) as (_, stub):
        with pytest.raises(InvalidArgument, match="became shorter"):
            await upload_file(stub, file, SHA256, "acme", shrink)


async def test_a_cancelled_upload_ends_its_calls(ground: Ground, tmp_path: Path, identities: Identities, file: Path) -> None:
    started = asyncio.Event()
    async with registry(ground, tmp_path, identities, replace(LIMITS, parts_at_once=1)) as (rig, stub):
        uploading = asyncio.create_task(
            upload_file(stub, file, SHA256, "acme", lambda done, _: started.set() if done else None)
        )
        await started.wait()
        uploading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await uploading
        await rig.upload(CONTENT)


def port_of(running: Running) -> int:
    return int(running.address.rpartition(":")[2])


async def test_a_lost_replica_is_replaced_by_another(tmp_path: Path, identities: Identities, file: Path) -> None:
    """One address, behind which one registry process is killed in the middle and another takes over."""
    small = ("--part-bytes", str(CHUNK_BYTES), "--verifying-s", "0.5")
    arrived = asyncio.Event()

    async with file_process(tmp_path, identities, *small) as first, forwarder_to(port_of(first)) as front:
        async with inner_channel(front.endpoint, identities[Role.OPERATOR], Role.REGISTRY) as channel:
            stub = files_pb2_grpc.FileServiceStub(channel)
            uploading = asyncio.create_task(
                upload_file(stub, file, SHA256, "", lambda done, _: arrived.set() if done > 2 * CHUNK_BYTES else None)
            )
            await arrived.wait()
            await first.kill()
            async with file_process(tmp_path, identities, *small) as second:
                front._target_port = port_of(second)
                await uploading
    async with ground_on(str(tmp_path / "registry.db")) as ground:
        assert await is_there(rig_on(ground, tmp_path / "objects"))
