"""The registry while PostgreSQL, S3 or etcd fail: it says so, serves what it can, and goes on by itself once they are back."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc, files_pb2

from cli.upload import upload_file
from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.errors import Code
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import NodeIdentity, Role
from runtime.ids import ModelName, model_notice_key
from runtime.notices import NoticeBoard
from runtime.records import RecordVerifier
from runtime.sealed_chunks import CHUNK_BYTES, OVERHEAD_BYTES
from tests.registry.harness import enrol_all, refusal
from tests.support.etcd import EtcdServer, running_etcd
from tests.support.forwarder import forwarder_to
from tests.support.outages import FailingPostgres, FailingS3, failing_postgres, failing_s3
from tests.support.registry import Ground, RegistryProcess, registry_process
from tests.support.registry_files import PIECE_BYTES, Files, moving_files
from tests.support.registry_load import Calls, Load, calling
from tests.support.waiting import eventually

Identities = dict[Role, NodeIdentity]
CATCHING_UP_S = 10.0
"""From etcd's return to everybody's knowing what changed meanwhile; as a rule a second or two."""
BUCKET = "faults"
LARGE_BYTES = 24 << 20
"""Three parts; two runs of chunks each."""
MIB = 1 << 20
READERS, WRITERS, READ_CHUNKS, FILE_BYTES = 200, 50, 8, 64 * MIB
"""Each reads the file's end: what they read at once counts, not how much in all."""
MOST_MIB = 400
GRACE_S = 10.0
LEAVING_S = 18.0
"""Beyond its grace, what a registry may take to end when nothing answers: in all less than the 30 s that Kubernetes waits."""


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return enrol_all(tmp_path_factory.mktemp("identities"))


@pytest.fixture(scope="module")
def failing() -> Iterator[FailingPostgres]:
    with failing_postgres() as server:
        yield server


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    """One for each test: what it was told of one database is not believed of another."""
    with running_etcd() as server:
        yield server


@pytest.fixture
def shared(tmp_path: Path, identities: Identities, etcd: EtcdServer) -> Ground:
    """An SQLite database and a folder; tests put other things in their places."""
    (tmp_path / "trusted").write_text(identities[Role.OPERATOR].ed25519_public_key.hex() + "\n")
    return Ground(
        database=str(tmp_path / "registry.db"),
        objects=str(tmp_path / "objects"),
        etcd=etcd.endpoint,
        master_keys=tmp_path / "master.keys",
        trusted_signers=tmp_path / "trusted",
        environment={},
    )


@dataclass(slots=True)
class Standing:
    """One registry that answers, and calls to it."""

    process: RegistryProcess
    calls: Calls
    database: str


@asynccontextmanager
async def standing(
    folder: Path, identities: Identities, ground: Ground, *more: str, timeout_s: float = 20.0
) -> AsyncIterator[Standing]:
    async with registry_process(folder, "one", identities[Role.REGISTRY].folder, ground, *more) as process:
        gateway, operator = identities[Role.GATEWAY], identities[Role.OPERATOR]
        async with calling(process.address, operator, gateway, folder, timeout_s=timeout_s) as calls:
            yield Standing(process, calls, ground.database.rpartition("/")[2])


@asynccontextmanager
async def listening(identities: Identities, etcd: EtcdServer) -> AsyncIterator[NoticeBoard]:
    """What a gateway hears of the registry."""
    board, identity = NoticeBoard(), identities[Role.GATEWAY]
    async with EtcdStore(EtcdSettings.at(etcd.endpoint)) as store:
        async with board.following(store, RecordVerifier(identity.authority_pem), SystemClock()):
            yield board


def told(board: NoticeBoard, model: str = "first", alias: str = "stable") -> str:
    notice = board.model(ModelName(model))
    return next((str(target.version) for target in notice.aliases if target.alias == alias), "") if notice else ""


async def answered_s(call: Awaitable[object]) -> float:
    began_s = time.monotonic()
    await call
    return time.monotonic() - began_s


def no_traceback(process: RegistryProcess) -> None:
    written = process.log.read_text()
    assert "unmapped_error" not in written, written[written.index("unmapped_error") - 500 :][:6000]


async def test_postgresql_restarts_under_load(
    tmp_path: Path, identities: Identities, shared: Ground, etcd: EtcdServer, failing: FailingPostgres
) -> None:
    shared = replace(shared, database=failing.server.new_database(f"faults-{secrets.token_hex(3)}"))
    load = Load()
    async with standing(tmp_path, identities, shared) as registry, listening(identities, etcd) as board:
        calls = registry.calls
        async with load.running(calls.all()):
            await load.more(2, *calls.KINDS)
            assert not load.failed
            for _ in range(2):
                await failing.stop()
                await load.more_failed("resolve", "list", "get", "move")
                await failing.start()
                await load.more(2, *calls.KINDS)
        assert load.reasons() == {("UNAVAILABLE", "DATABASE_UNAVAILABLE")}, load.failed
        assert all(error.retry_after_s for _, error in load.failed), "each says when to try again"
        await calls.check_history()
        stable = await calls.points_at()
        await eventually(lambda: told(board) == stable)
        assert await failing.fetched(registry.database, "SELECT count(*) FROM outbox") == 0
        no_traceback(registry.process)


async def test_postgresql_is_frozen(
    tmp_path: Path, identities: Identities, shared: Ground, etcd: EtcdServer, failing: FailingPostgres
) -> None:
    shared = replace(shared, database=failing.server.new_database(f"faults-{secrets.token_hex(3)}"))
    load = Load()
    async with standing(tmp_path, identities, shared, timeout_s=1.5) as registry, listening(identities, etcd) as board:
        calls, address = registry.calls, registry.process.address
        async with (
            inner_channel(address, identities[Role.OPERATOR], Role.REGISTRY) as channel,
            load.running({**calls.all(), **{f"list {number}": calls.list for number in range(30)}}),
        ):
            await load.more(2, *calls.KINDS)
            assert not load.failed
            failing.freeze()
            await load.more_failed("resolve", "list", "get", "move", *(f"list {number}" for number in range(30)), count=2)
            health, whoami = health_pb2_grpc.HealthStub(channel), accounts_pb2_grpc.AccountServiceStub(channel)
            assert await answered_s(health.Check(health_pb2.HealthCheckRequest())) < 1.0
            assert await answered_s(whoami.WhoAmI(accounts_pb2.WhoAmIRequest())) < 1.0
            failing.thaw()
            await load.more(2, *calls.KINDS, *(f"list {number}" for number in range(30)))
        assert {code for code, _ in load.reasons()} <= {Code.UNAVAILABLE.name, Code.DEADLINE_EXCEEDED.name}, load.reasons()
        await calls.check_history()
        stable = await calls.points_at()
        await eventually(lambda: told(board) == stable)
        no_traceback(registry.process)


async def test_a_signal_ends_it_while_postgresql_is_frozen(
    tmp_path: Path, identities: Identities, shared: Ground, failing: FailingPostgres
) -> None:
    shared = replace(shared, database=failing.server.new_database(f"faults-{secrets.token_hex(3)}"))
    async with standing(tmp_path, identities, shared, "--drain-grace-s", "1") as registry:
        await registry.calls.resolve()  # a use that is still to be written down
        await asyncio.gather(*(registry.calls.list() for _ in range(10)))  # several connections are open
        failing.freeze()
        try:
            async with asyncio.timeout(LEAVING_S):
                assert await registry.process.stop() == 0
        finally:
            failing.thaw()
        no_traceback(registry.process)


async def test_etcd_is_away_while_keys_are_revoked_and_aliases_moved(
    tmp_path: Path, identities: Identities, shared: Ground, etcd: EtcdServer
) -> None:
    load, heard = Load(), set[str]()
    async with standing(tmp_path, identities, shared) as registry, listening(identities, etcd) as board:
        board.on_key.append(heard.add)
        calls = registry.calls
        async with load.running(calls.all()):
            await load.more(1, *calls.KINDS)
            await eventually(lambda: calls.key_id in heard)
            await etcd.akill()
            heard.clear()
            await load.more(5, *calls.KINDS)
        assert not load.failed, "the registry needs no etcd to serve"
        await calls.revoke()
        stable = await calls.points_at()
        await etcd.astart()
        began_s = time.monotonic()
        await eventually(lambda: told(board) == stable and calls.key_id in heard)
        assert time.monotonic() - began_s < CATCHING_UP_S
        no_traceback(registry.process)


async def test_etcd_comes_back_empty(tmp_path: Path, identities: Identities, shared: Ground, etcd: EtcdServer) -> None:
    async with standing(tmp_path, identities, shared) as registry:
        calls = registry.calls
        await calls.move()
        async with listening(identities, etcd) as board:
            await eventually(lambda: told(board) == calls.stable)
        await etcd.astop()
        etcd.empty()
        await etcd.astart()
        began_s = time.monotonic()
        async with listening(identities, etcd) as board:
            await eventually(lambda: told(board) == calls.stable)
            await calls.move()
            await eventually(lambda: told(board) == calls.stable)
        assert time.monotonic() - began_s < CATCHING_UP_S
        no_traceback(registry.process)


async def test_etcd_forgets_its_history_while_the_registry_cannot_reach_it(
    tmp_path: Path, identities: Identities, shared: Ground, etcd: EtcdServer
) -> None:
    async with forwarder_to(etcd.port) as way:
        async with standing(tmp_path, identities, replace(shared, etcd=way.endpoint)) as registry:
            calls = registry.calls
            await calls.move()
            async with listening(identities, etcd) as board:
                await eventually(lambda: told(board) == calls.stable)
                await way.cut()
                await calls.move()
                notice = model_notice_key(ModelName("first"))
                await asyncio.to_thread(etcd.control, "del", notice)
                for number in range(5):
                    await asyncio.to_thread(etcd.control, "put", f"/penstock/registry/other-{number}", "of no account")
                await etcd.compact()
                await way.mend()
                await eventually(lambda: told(board) == calls.stable)
            no_traceback(registry.process)


@pytest.fixture
async def s3() -> AsyncIterator[FailingS3]:
    async with failing_s3() as server:
        yield server


@asynccontextmanager
async def on_s3(folder: Path, identities: Identities, shared: Ground, s3: FailingS3) -> AsyncIterator[Files]:
    """A registry with its files in a bucket."""
    shared = replace(shared, objects=await s3.new_bucket(BUCKET), environment=s3.server.environment())
    async with registry_process(folder, "one", identities[Role.REGISTRY].folder, shared) as process:
        async with moving_files(process.address, identities) as files:
            yield files
        no_traceback(process)


async def test_s3_stands_still_in_the_middle_of_an_upload_and_a_fetch(
    tmp_path: Path, identities: Identities, shared: Ground, s3: FailingS3
) -> None:
    async with on_s3(tmp_path, identities, shared, s3) as files:
        wish = await files.publish(tmp_path / "model", "large", LARGE_BYTES)
        file = tmp_path / "more.bin"
        file.write_bytes(secrets.token_bytes(LARGE_BYTES))
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        fetching = files.fetch(wish)
        await anext(fetching)
        arrived = asyncio.Event()
        uploading = asyncio.create_task(upload_file(files.uploads, file, sha256, on_progress=lambda *_: arrived.set()))
        await arrived.wait()
        s3.freeze()
        health = health_pb2_grpc.HealthStub(files.operator)
        assert await answered_s(health.Check(health_pb2.HealthCheckRequest())) < 1.0
        assert not (await files.begin(b"another")).complete, "what needs no objects goes on"
        s3.thaw()
        await uploading
        assert sum([len(part.sealed_chunk) async for part in fetching]) > LARGE_BYTES


async def test_s3_dies_in_the_middle_and_comes_back_without_its_objects(
    tmp_path: Path, identities: Identities, shared: Ground, s3: FailingS3
) -> None:
    content = secrets.token_bytes(LARGE_BYTES)
    async with on_s3(tmp_path, identities, shared, s3) as files:
        wish = await files.publish(tmp_path / "model", "large", LARGE_BYTES)
        begun = await files.begin(content)
        await files.send(begun, content, 0)
        fetching = files.fetch(wish)
        await anext(fetching)
        await s3.kill()

        in_fetch, in_part = await asyncio.gather(refusal(drained(fetching)), refusal(files.send(begun, content, 1)))
        for error in (in_fetch, in_part):
            assert (error.code, error.reason) == (Code.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert error.retry_after_s

        await s3.start()
        for attempt in (files.fetched_bytes(wish), files.send(begun, content, 1)):
            error = await refusal(attempt)
            assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "STORE_REFUSED"), (
                "somebody has to see to the bucket"
            )
        assert not await files.actions("tampering"), "a bucket that is away says nothing about what was in it"

        await s3.new_bucket(BUCKET)
        error = await refusal(files.fetched_bytes(wish))
        assert (error.code, error.reason) == (Code.DATA_LOSS, "OBJECT_MISSING")
        assert [entry.subject for entry in await files.actions("tampering")] == [wish.sha256]

        assert list((await files.begin(content)).received_parts) == [0]
        for number in range(1, LARGE_BYTES // begun.part_bytes):
            await files.send(begun, content, number)
        error = await refusal(files.complete(begun))
        assert (error.code, error.reason) == (Code.DATA_LOSS, "OBJECT_MISSING"), "part 0 is lost"
        assert "again" in error.message
        file = tmp_path / "again.bin"
        file.write_bytes(content)
        await upload_file(files.uploads, file, hashlib.sha256(content).hexdigest())
        assert (await files.begin(content)).complete


async def drained(parts: AsyncIterator[object]) -> int:
    return sum([1 async for _ in parts])


async def test_a_signal_in_the_middle_of_everything_leaves_nothing_half_done(
    tmp_path: Path, identities: Identities, shared: Ground
) -> None:
    content, load = secrets.token_bytes(2 * LARGE_BYTES), Load()
    file = tmp_path / "large.bin"
    file.write_bytes(content)
    folder, gateway, operator = identities[Role.REGISTRY].folder, identities[Role.GATEWAY], identities[Role.OPERATOR]
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(registry_process(tmp_path, "one", folder, shared))
        calls = await stack.enter_async_context(calling(first.address, operator, gateway, tmp_path))
        files = await stack.enter_async_context(moving_files(first.address, identities))
        wish = await files.publish(tmp_path / "model", "large", LARGE_BYTES)
        await calls.create_user()
        kinds = {**calls.all(), "login": calls.log_in, "fetch": lambda: files.fetched_bytes(wish)}
        async with load.running(kinds):
            await load.more(1, *kinds)
            arrived = asyncio.Event()
            sending = upload_file(
                files.uploads, file, hashlib.sha256(content).hexdigest(), on_progress=lambda *_: arrived.set()
            )
            uploading = asyncio.create_task(sending)
            await arrived.wait()
            assert not load.failed
            async with asyncio.timeout(GRACE_S + LEAVING_S):
                assert await first.stop() == 0
            assert not list((tmp_path / "objects" / "drafts").iterdir())
            second = await stack.enter_async_context(registry_process(tmp_path, "two", folder, shared, port=first.port))
            await load.more(1, *kinds)
            await uploading
        assert (await files.begin(content)).complete
        assert {code for code, _ in load.reasons()} <= {Code.UNAVAILABLE.name, Code.CANCELLED.name}, load.reasons()
        await calls.check_history()
        assert await calls.version_count() == len(await files.actions("version.publish"))
        for process in (first, second):
            no_traceback(process)


async def sent(files: Files, begun: files_pb2.BeginUploadResponse, content: bytes) -> None:
    """The only part of an upload, again where too many waited: the slower the machine, the more of them wait at once."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await files.send(begun, content, 0)
            except grpc.aio.AioRpcError as failure:
                if failure.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
            await asyncio.sleep(0.1)


async def test_two_hundred_readers_and_fifty_writers_at_once_cost_bounded_memory(
    tmp_path: Path, identities: Identities, shared: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    async with registry_process(tmp_path, "one", identities[Role.REGISTRY].folder, shared) as process:
        async with moving_files(process.address, identities) as files:
            wish = await files.publish(tmp_path / "model", "large", FILE_BYTES - 2)
            wish.first_chunk = FILE_BYTES // CHUNK_BYTES - READ_CHUNKS
            contents = [number.to_bytes(4, "big") + bytes(PIECE_BYTES) for number in range(WRITERS)]
            uploads = [await files.begin(content) for content in contents]
            async with watched(process, files) as seen:
                async with asyncio.TaskGroup() as group:
                    reading = [group.create_task(files.fetched_bytes(wish, timeout_s=60)) for _ in range(READERS)]
                    for begun, content in zip(uploads, contents, strict=True):
                        group.create_task(sent(files, begun, content))
            sealed_bytes = READ_CHUNKS * (CHUNK_BYTES + OVERHEAD_BYTES)
            assert {task.result() for task in reading} == {sealed_bytes}
            for begun in uploads:
                assert await files.complete(begun)
        no_traceback(process)
    with capsys.disabled():
        sys.stdout.write(f"\n{READERS} readers, {WRITERS} writers: {seen}\n")
    assert seen.peak_mib < MOST_MIB


@dataclass(slots=True)
class Seen:
    """Of a process under load, from outside."""

    before_mib: float = 0.0
    peak_mib: float = 0.0
    slowest_answer_s: float = 0.0
    """Of a call that needs nothing; this process's own slowness is in it."""

    def __str__(self) -> str:
        return f"{self.before_mib:.0f} MiB before, {self.peak_mib:.0f} at most; slowest answer {self.slowest_answer_s:.2f} s"


@asynccontextmanager
async def watched(process: RegistryProcess, files: Files) -> AsyncIterator[Seen]:
    measured, health = psutil.Process(process.process.pid), health_pb2_grpc.HealthStub(files.operator)
    seen = Seen(before_mib=measured.memory_info().rss / MIB)

    async def look() -> None:
        while True:
            seen.peak_mib = max(seen.peak_mib, measured.memory_info().rss / MIB)
            took_s = await answered_s(health.Check(health_pb2.HealthCheckRequest()))
            seen.slowest_answer_s = max(seen.slowest_answer_s, took_s)
            await asyncio.sleep(0.05)

    looking = asyncio.create_task(look())
    try:
        yield seen
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
