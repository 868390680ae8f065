"""The registry while its disk or its clock fail: full, read-only, taken away, cut short, locked by others, an hour behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import grpc.aio
import pytest
import structlog
from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc, models_pb2, models_pb2_grpc

from registry.notices.loop import Teller
from runtime.clock import SystemClock
from runtime.errors import Code, PenstockError
from runtime.identity import NodeIdentity, Role
from runtime.ids import REGISTRY_PREFIX, ModelName, model_notice_key
from runtime.memory_store import MemoryStore
from runtime.model_folder import read_model_folder
from runtime.status import error_of
from tests.registry import harness
from tests.registry.harness import refusal
from tests.registry.mesh import Mesh, running_mesh
from tests.registry.notices.world import QUICK, World
from tests.support.registry import Ground, registry_process
from tests.support.registry_files import Files, moving_files
from tests.support.registry_load import model_folder
from tests.support.small_disk import MIB, small_disk
from tests.support.waiting import events_of, eventually, snapshot_of

Identities = dict[Role, NodeIdentity]
PARTS = 3
PART_BYTES = 8 * MIB
SIZE_BYTES = PARTS * PART_BYTES
PASSWORD = "correct horse battery staple"
NOWHERE = "127.0.0.1:1"


@pytest.fixture
def shared(tmp_path: Path, identities: Identities) -> Ground:
    (tmp_path / "trusted").write_text(identities[Role.OPERATOR].ed25519_public_key.hex() + "\n")
    return Ground(
        database=str(tmp_path / "data" / "registry.db"),
        objects=str(tmp_path / "disk" / "objects"),
        etcd=NOWHERE,
        master_keys=tmp_path / "master.keys",
        trusted_signers=tmp_path / "trusted",
        environment={},
    )


@asynccontextmanager
async def standing(folder: Path, identities: Identities, shared: Ground) -> AsyncIterator[Files]:
    """A registry process; whatever happens to it, nothing is answered that it did not foresee."""
    async with registry_process(folder, "one", identities[Role.REGISTRY].folder, shared) as process:
        async with moving_files(process.address, identities) as files:
            yield files
        written = process.log.read_text()
        assert "unmapped_error" not in written, written[written.index("unmapped_error") - 500 :][:5000]


@pytest.fixture
async def files(tmp_path: Path, identities: Identities, shared: Ground) -> AsyncIterator[Files]:
    async with standing(tmp_path, identities, shared) as moving:
        yield moving


@pytest.fixture
def content() -> bytes:
    return secrets.token_bytes(SIZE_BYTES)


def named(error: PenstockError) -> tuple[Code, str]:
    return error.code, error.reason


async def test_an_upload_goes_on_once_a_full_disk_has_room(
    tmp_path: Path, identities: Identities, shared: Ground, content: bytes
) -> None:
    with small_disk(tmp_path / "disk", 20 * MIB) as disk:
        async with standing(tmp_path, identities, shared) as files:
            begun = await files.begin(content)
            for number in (0, 1):
                await files.send(begun, content, number)
            error = await refusal(files.send(begun, content, 2))
            assert named(error) == (Code.RESOURCE_EXHAUSTED, "STORAGE_FULL")
            assert not list((tmp_path / "disk" / "objects" / "drafts").iterdir()), "what did not fit takes no room"
            disk.resize(64 * MIB)
            again = await files.begin(content)
            assert (again.upload_id, list(again.received_parts)) == (begun.upload_id, [0, 1])
            await files.send(again, content, 2)
            assert await files.complete(again)


async def test_a_read_only_disk_is_read(tmp_path: Path, identities: Identities, shared: Ground, content: bytes) -> None:
    with small_disk(tmp_path / "disk", 128 * MIB) as disk:
        async with standing(tmp_path, identities, shared) as files:
            wish = await files.publish(tmp_path / "model", "large", SIZE_BYTES)
            begun = await files.begin(content)
            disk.close_for_writing()
            assert named(await refusal(files.send(begun, content, 0))) == (Code.FAILED_PRECONDITION, "STORE_REFUSED")
            assert await files.fetched_bytes(wish) > SIZE_BYTES
            disk.open_for_writing()
            await files.send(begun, content, 0)


async def test_a_folder_that_is_taken_away_says_nothing_about_what_was_in_it(
    tmp_path: Path, files: Files, content: bytes
) -> None:
    wish = await files.publish(tmp_path / "model", "large", SIZE_BYTES)
    begun = await files.begin(content)
    for number in range(PARTS):
        await files.send(begun, content, number)
    folder = tmp_path / "disk" / "objects"
    folder.rename(tmp_path / "away")
    for attempt in (
        files.fetched_bytes(wish),
        files.complete(begun),
        files.send(await files.begin(content[1:]), content[1:], 0),
    ):
        assert named(await refusal(attempt)) == (Code.FAILED_PRECONDITION, "STORE_REFUSED")
    assert not folder.exists(), "nothing is written where a disk ought to be mounted"
    assert not await files.actions("tampering")
    (tmp_path / "away").rename(folder)
    assert await files.fetched_bytes(wish) > SIZE_BYTES
    assert await files.complete(begun), "nothing of the upload was dropped"


async def test_a_stored_part_that_was_cut_short_is_data_loss(tmp_path: Path, files: Files, content: bytes) -> None:
    wish = await files.publish(tmp_path / "model", "large", SIZE_BYTES)
    begun = await files.begin(content)
    for number in range(PARTS):
        await files.send(begun, content, number)
    for part in (tmp_path / "disk" / "objects" / "objects").glob("*/1"):
        os.truncate(part, PART_BYTES // 2)
    for attempt, action in ((files.fetched_bytes(wish), "file.fetch"), (files.complete(begun), "upload.complete")):
        assert named(await refusal(attempt)) == (Code.DATA_LOSS, "OBJECT_MISSING"), action
    subjects = {entry.subject for entry in await files.actions("tampering")}
    assert subjects == {wish.sha256, begun.upload_id}
    for lost in (content, (tmp_path / "model" / "model.py").read_bytes()):
        again = await files.begin(lost)
        assert (again.upload_id not in ("", begun.upload_id), list(again.received_parts)) == (True, []), "it is sent anew"
        for number in range(-(-len(lost) // again.part_bytes)):
            await files.send(again, lost, number)
        assert await files.complete(again)
    assert await files.fetched_bytes(wish) > SIZE_BYTES, "and is there for the versions that consist of it"


async def create_model(files: Files, name: str) -> models_pb2.CreateModelResponse:
    stub = models_pb2_grpc.ModelServiceStub(files.operator)
    return await stub.CreateModel(models_pb2.CreateModelRequest(model=name), timeout=25)


async def models_of(files: Files) -> list[str]:
    stub = models_pb2_grpc.ModelServiceStub(files.operator)
    return [model.model for model in (await stub.ListModels(models_pb2.ListModelsRequest(), timeout=25)).models]


@contextmanager
def locked(database: str) -> Iterator[None]:
    """By somebody else who writes to it."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


async def test_a_database_that_another_process_has_locked_is_waited_for(shared: Ground, files: Files) -> None:
    with locked(shared.database):
        creating = asyncio.create_task(create_model(files, "patient"))
        await asyncio.wait((creating,), timeout=2.0)
        assert not creating.done()
        assert await models_of(files) == [], "who reads waits for nobody"
    await creating
    assert await models_of(files) == ["patient"]


async def test_a_database_that_stays_locked_is_unavailable(shared: Ground, files: Files) -> None:
    with locked(shared.database):
        errors = await asyncio.gather(*(refusal(create_model(files, f"m{number}")) for number in range(10)))
        assert {named(error) for error in errors} == {(Code.UNAVAILABLE, "DATABASE_UNAVAILABLE")}
        assert all(error.retry_after_s for error in errors)
        assert await models_of(files) == []
    await create_model(files, "m0")


async def test_a_database_on_a_full_disk_is_read_and_writes_again_once_there_is_room(
    tmp_path: Path, identities: Identities, shared: Ground
) -> None:
    with small_disk(tmp_path / "data", 8 * MIB) as disk:
        async with standing(tmp_path, identities, shared) as files:
            await create_model(files, "before")
            with disk.full():
                for number in range(100):
                    last = await _refused(create_model(files, f"m{number}"))
                    if last is not None:
                        break
                assert last is not None, "a disk without room takes no more rows"
                assert named(last) == (Code.UNAVAILABLE, "DATABASE_UNAVAILABLE")
                assert await models_of(files) == sorted(["before", *(f"m{each}" for each in range(number))])
            await create_model(files, "after")
            assert "after" in await models_of(files)


async def _refused(call: object) -> PenstockError | None:
    try:
        await call  # type: ignore[misc]
    except grpc.aio.AioRpcError as failure:
        return error_of(failure)
    return None


async def test_a_database_whose_file_is_taken_away_is_not_begun_anew(tmp_path: Path, shared: Ground, files: Files) -> None:
    await create_model(files, "kept")
    database, away = shared.database, str(tmp_path / "away.db")
    os.rename(database, away)
    errors = await asyncio.gather(
        *(refusal(create_model(files, f"m{number}")) for number in range(20)), *(refusal(models_of(files)) for _ in range(20))
    )
    assert {named(error) for error in errors} == {(Code.UNAVAILABLE, "DATABASE_UNAVAILABLE")}
    assert "taken away" in errors[0].message
    with pytest.raises(FileNotFoundError):
        os.stat(database)  # an empty one in its place would be used for good
    os.rename(away, database)
    await create_model(files, "again")
    assert await models_of(files) == ["again", "kept"]


async def test_another_database_in_its_place_needs_a_restart(tmp_path: Path, shared: Ground, files: Files) -> None:
    await create_model(files, "kept")
    database = Path(shared.database)
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(tmp_path / "backup.db")) as backup:
        source.backup(backup)
    (tmp_path / "backup.db").rename(database)
    error = await refusal(create_model(files, "lost"))
    assert named(error) == (Code.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert "restart" in error.message


async def test_a_database_that_is_damaged_is_data_loss(shared: Ground, files: Files) -> None:
    await create_model(files, "kept")
    with closing(sqlite3.connect(shared.database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size_bytes = os.stat(shared.database).st_size
    with open(shared.database, "r+b") as file:  # noqa: ASYNC230
        file.seek(4096)
        file.write(secrets.token_bytes(size_bytes - 4096))
    # Connections that have the pages in memory go on for a while.
    answers = await asyncio.gather(*(_refused(models_of(files)) for _ in range(20)))
    assert {named(error) for error in answers if error is not None} == {(Code.DATA_LOSS, "DATABASE_DAMAGED")}


class JumpingClock(SystemClock):
    """The machine's, but for somebody who sets it wrong."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def wall_s(self) -> float:
        return super().wall_s() + self.ahead_s


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


@pytest.fixture
async def mesh(tmp_path: Path, identities: Identities, clock: JumpingClock) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path, identities, clock=clock) as running:
        yield running


HOUR_S = 3600.0


async def test_an_hour_back_gives_nobody_back_what_was_taken(mesh: Mesh, clock: JumpingClock) -> None:
    accounts, gateway = await mesh.accounts(), await mesh.accounts(Role.GATEWAY)
    user = accounts_pb2.CreateUserRequest(tenant="default", name="ann", role="owner", password=PASSWORD)
    await accounts.CreateUser(user)
    revoked = await accounts.CreateKey(accounts_pb2.CreateKeyRequest(tenant="default", name="revoked", role="caller"))
    rotated = await accounts.CreateKey(accounts_pb2.CreateKeyRequest(tenant="default", name="rotated", role="caller"))
    await accounts.RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=revoked.key.key_id))
    successor = await accounts.RotateKey(accounts_pb2.RotateKeyRequest(key_id=rotated.key.key_id, overlap_s=60))
    session = await accounts.LogIn(accounts_pb2.LogInRequest(name="ann", password=PASSWORD))
    ended = await accounts.LogIn(accounts_pb2.LogInRequest(name="ann", password=PASSWORD))
    await gateway.LogOut(accounts_pb2.LogOutRequest(), metadata=bearer(ended.session))

    clock.ahead_s = -HOUR_S
    who = await gateway.WhoAmI(accounts_pb2.WhoAmIRequest(), metadata=bearer(session.session))
    assert (who.kind, who.tenant) == ("user", "default")
    error = await refusal(gateway.WhoAmI(accounts_pb2.WhoAmIRequest(), metadata=bearer(ended.session)))
    assert error.code is Code.UNAUTHENTICATED
    assert (await refusal(resolve(gateway, revoked.secret))).code is Code.NOT_FOUND
    assert (await resolve(gateway, successor.secret)).key.name == "rotated"
    again = await accounts.LogIn(accounts_pb2.LogInRequest(name="ann", password=PASSWORD))
    assert again.expires_at_ms < session.expires_at_ms, "as long as any other, from the hour it is"
    twice = await accounts.RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=revoked.key.key_id))
    assert twice.key.revoked_at_ms > clock.wall_s() * 1000, "when it was revoked stays as it was"


async def test_an_hour_back_leaves_aliases_their_order(tmp_path: Path, mesh: Mesh, clock: JumpingClock) -> None:
    models = await mesh.models()
    for number in range(1, 5):
        folder = read_model_folder(model_folder(tmp_path / f"v{number}", "first", 10_000 + number))
        await mesh.publish(folder)
    for version, ahead_s in (("1", 0.0), ("2", 0.0), ("3", -HOUR_S), ("4", -2 * HOUR_S)):
        clock.ahead_s = ahead_s
        await models.MoveAlias(models_pb2.MoveAliasRequest(model="first", alias="stable", version=version, immediate=True))
    for expected in ("3", "2", "1"):
        rolled = await models.RollBackAlias(models_pb2.RollBackAliasRequest(model="first", alias="stable", immediate=True))
        assert rolled.alias.version == expected
    moves = (await models.ListAliasMoves(models_pb2.ListAliasMovesRequest(model="first"))).moves
    assert [move.generation for move in moves] == [7, 6, 5, 4, 3, 2, 1]
    listed = (await models.ListModels(models_pb2.ListModelsRequest())).models
    assert listed[0].generation == 1 + 4 + 7


async def test_an_hour_back_an_upload_whose_verifier_died_is_gone_on_with(
    tmp_path: Path, mesh: Mesh, clock: JumpingClock, content: bytes
) -> None:
    files = Files(await mesh.channel(), await mesh.channel(Role.WORKER), mesh.identities)
    begun = await files.begin(content)
    for number in range(PARTS):
        await files.send(begun, content, number)
    leased_until_ms = int(clock.wall_s() * 1000) + 15_000
    with closing(sqlite3.connect(tmp_path / "registry.db")) as connection, connection:
        connection.execute("UPDATE uploads SET verifying_until_ms = ?", (leased_until_ms,))
    assert named(await refusal(files.complete(begun))) == (Code.ABORTED, "UPLOAD_BUSY")
    clock.ahead_s = -HOUR_S
    assert await files.complete(begun)


async def test_a_registry_whose_certificate_has_ended_writes_nothing(
    sqlite_ground: harness.Ground, identities: Identities, clock: JumpingClock
) -> None:
    ground, world, identity = sqlite_ground, World(sqlite_ground), identities[Role.REGISTRY]
    clock.ahead_s = identity.certificate.expires_wall_s - clock.wall_s() + HOUR_S
    with structlog.testing.capture_logs() as logs:
        async with MemoryStore() as store, store.watch(REGISTRY_PREFIX) as watch:
            assert await snapshot_of(watch) == {}
            async with Teller(ground.database, ground.seals, ground.trail, store, identity, clock, QUICK).running():
                await world.add_model("m")
                await eventually(lambda: any("ended at" in line.get("why", "") for line in logs))
                assert (await store.range(REGISTRY_PREFIX)).items == ()
                assert await world.outbox() == 1, "another registry tells it, or this one later"
                clock.ahead_s = 0.0
                ((key, told),) = await events_of(watch, 1)
    assert (key, told is not None) == (model_notice_key(ModelName("m")), True)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def resolve(gateway: accounts_pb2_grpc.AccountServiceStub, secret: str) -> accounts_pb2.ResolveKeyResponse:
    request = accounts_pb2.ResolveKeyRequest(secret_sha256=hashlib.sha256(secret.encode()).digest())
    return await gateway.ResolveKey(request)
