"""What is done to a registry that runs: it is killed in the midst of a push, and its disk is altered under it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest
from penstock.registry.v1 import audit_pb2, audit_pb2_grpc

from cli.profile import read_profile
from tests.support.adding import adding
from tests.support.commands import done, ran, refused, until_shown
from tests.support.kserve_calls import Answer, Gateway, gateway_of
from tests.support.mesh import RunningMesh, running_mesh
from tests.support.waiting import eventually

WITHIN_S = 1.0
BALLAST_BYTES = 200 * 1024 * 1024


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """One of its own, to be harmed."""
    with running_mesh(tmp_path_factory.mktemp("harm") / "data", "--no-demo") as running:
        yield running


@pytest.fixture
async def gateway(mesh: RunningMesh) -> AsyncIterator[Gateway]:
    async with gateway_of(mesh) as gateway:
        yield gateway


class Disk:
    """What the registry keeps, as somebody with the disk in hand sees and alters it."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._database = mesh.data / "registry" / "registry.db"
        self._objects = mesh.data / "registry" / "objects" / "objects"

    def rows(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self._database, timeout=20)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def number(self, statement: str, *values: object) -> int:
        found = self.rows(statement, *values)
        return int(str(found[0][0])) if found else 0

    def parts_of(self, model: str) -> list[Path]:
        """Every stored piece of a model's files."""
        owned = self.rows(
            "SELECT hex(object_id) FROM files JOIN version_files USING (sha256) JOIN versions USING (digest) WHERE model = ?",
            model,
        )
        return sorted(part for (object_id,) in owned for part in (self._objects / str(object_id).lower()).iterdir())

    def digest_of(self, model: str) -> str:
        return str(self.rows("SELECT digest FROM versions WHERE model = ?", model)[0][0])

    def flip(self, model: str) -> None:
        """One bit, in the midst of the largest piece."""
        part = max(self.parts_of(model), key=lambda each: each.stat().st_size)
        with part.open("r+b") as file:
            file.seek(part.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    @contextmanager
    def flipped(self, table: str, column: str, where: str, *values: object) -> Iterator[None]:
        """One bit of a column, while the context lasts."""
        ((blob,),) = self.rows(f"SELECT {column} FROM {table} WHERE {where}", *values)
        assert isinstance(blob, bytes)
        middle = len(blob) // 2
        altered = blob[:middle] + bytes([blob[middle] ^ 1]) + blob[middle + 1 :]
        change = f"UPDATE {table} SET {column} = ? WHERE {where}"
        self.rows(change, altered, *values)
        try:
            yield
        finally:
            self.rows(change, blob, *values)

    def strays(self) -> set[str]:
        """Objects that belong to no file and no upload."""
        known = {
            str(row[0]).lower()
            for row in self.rows("SELECT hex(object_id) FROM files UNION SELECT hex(object_id) FROM uploads")
        }
        return {folder.name for folder in self._objects.iterdir()} - known


@pytest.fixture
def disk(mesh: RunningMesh) -> Disk:
    return Disk(mesh)


async def kill(mesh: RunningMesh, name: str) -> None:
    """kill -9, and wait until another has taken its place."""
    before = mesh.pid_of(name)
    os.kill(before, signal.SIGKILL)

    def replaced() -> bool:
        try:
            return mesh.pid_of(name) != before
        except (LookupError, psutil.Error, IndexError):
            return False

    await eventually(replaced)


async def test_a_push_finishes_by_itself_when_the_registry_is_killed(
    mesh: RunningMesh, gateway: Gateway, disk: Disk, tmp_path: Path
) -> None:
    folder = await asyncio.to_thread(lambda: adding(tmp_path / "heavy", "heavy", 4, ballast_bytes=BALLAST_BYTES))
    pushing = asyncio.create_task(ran(mesh, "models", "push", str(folder), "--copies", "1"))
    for moment in ("SELECT count(*) >= 5 FROM upload_parts", "SELECT count(*) FROM uploads WHERE verifying_until_ms > 0"):
        await eventually(lambda moment=moment: pushing.done() or disk.number(moment) > 0, patience_s=60)  # type: ignore[misc]
        assert not pushing.done(), "it was to be killed while something was under way"
        assert disk.number("SELECT count(*) FROM versions") == 0, "no version before all of its files are there"
        await kill(mesh, "registry")
    pushed = await pushing
    assert pushed.returncode == 0, pushed.stderr
    assert "1 of 1 copies are ready" in pushed.stdout, "a worker fetched it all and found every digest right"
    assert await gateway.ask("heavy") == Answer(4.0, "1")
    assert disk.number("SELECT count(*) FROM versions") == 1
    assert disk.number("SELECT count(*) FROM uploads") == 0
    assert disk.strays() == set()
    stored_bytes = sum(part.stat().st_size for part in disk.parts_of("heavy"))
    assert BALLAST_BYTES < stored_bytes < BALLAST_BYTES * 1.001
    assert "0 B would be freed" in await done(mesh, "storage", "collect", "--dry-run")
    assert "files: 0, uploads: 0" in await done(mesh, "storage", "collect")
    assert "READY" in await done(mesh, "models", "show", "heavy"), "collecting took nothing that is needed"
    assert disk.parts_of("heavy")
    assert "unchanged, already published" in await done(mesh, "models", "push", str(folder), "--copies", "1")


async def test_a_flipped_bit_in_an_object_is_found_and_nothing_loads(
    mesh: RunningMesh, gateway: Gateway, disk: Disk, tmp_path: Path
) -> None:
    folder = adding(tmp_path / "flipped", "flipped", 1, ballast_bytes=3_000_000)
    await done(mesh, "models", "push", str(folder), "--copies", "0")
    disk.flip("flipped")
    said = await refused(mesh, "models", "load", "flipped", "--copies", "1")
    assert "flipped version 1 did not load" in said
    assert "does not open" in said
    assert re.search(r"flipped 1: FAILED \(chunk \d+ of object", await done(mesh, "fleet"))
    assert "FAILED (chunk" in await done(mesh, "models", "list")
    with pytest.raises(grpc.aio.AioRpcError):
        await gateway.ask("flipped")
    assert disk.digest_of("flipped") in await found_altered(mesh, "incident.chunk_altered")
    assert "incident.chunk_altered" in await done(mesh, "audit")


FILE_OF_MODEL = "sha256 IN (SELECT sha256 FROM version_files JOIN versions USING (digest) WHERE model = ?)"
ALTERED = {
    "manifest": ("versions", "manifest", "model = ?"),
    "signature": ("versions", "signature", "model = ?"),
    "seal": ("versions", "seal", "model = ?"),
    "wrapped key": ("files", "wrapped_key", FILE_OF_MODEL),
}


@pytest.mark.parametrize("what", ALTERED)
async def test_a_flipped_bit_in_the_database_is_found_and_nothing_loads(
    mesh: RunningMesh, gateway: Gateway, disk: Disk, tmp_path: Path, what: str
) -> None:
    model = f"altered-{what.replace(' ', '-')}"
    await done(mesh, "models", "push", str(adding(tmp_path / model, model, len(what))), "--copies", "0")
    with disk.flipped(*ALTERED[what], model):
        said = await refused(mesh, "models", "load", model, "--copies", "1")
        assert "was altered" in said or ("DATA_LOSS" in said and disk.digest_of(model) in said)
        with pytest.raises(grpc.aio.AioRpcError):
            await gateway.ask(model)
        assert f"{model} 1: READY" not in await done(mesh, "fleet")
        assert subject_of(disk, model, what) in await found_altered(mesh, "tampering")
    assert "tampering" in await done(mesh, "audit")


def subject_of(disk: Disk, model: str, what: str) -> str:
    """What the trail calls it."""
    if what != "wrapped key":
        return f"row {disk.digest_of(model)} of versions"
    return str(disk.rows(f"SELECT sha256 FROM files WHERE {FILE_OF_MODEL}", model)[0][0])


async def found_altered(mesh: RunningMesh, action: str) -> set[str]:
    """What the trail says of this kind was not what it should be."""
    async with read_profile(mesh.data).registry_channel() as registry:
        request = audit_pb2.ListEntriesRequest(action=action)
        entries = (await audit_pb2_grpc.AuditServiceStub(registry).ListEntries(request, timeout=20)).entries
    return {entry.subject for entry in entries if entry.outcome == "failed"}


async def test_an_altered_row_of_one_model_keeps_nobody_from_the_others(
    mesh: RunningMesh, gateway: Gateway, disk: Disk, tmp_path: Path
) -> None:
    await done(mesh, "models", "push", str(adding(tmp_path / "rotten", "rotten", 1)), "--copies", "0")
    await done(mesh, "models", "push", str(adding(tmp_path / "sound", "sound", 2)), "--copies", "1")
    secret = (await done(mesh, "keys", "create", "to be revoked")).strip()
    assert await gateway.with_key(secret).ask("sound") == Answer(2.0, "1")
    with disk.flipped("versions", "manifest", "model = ?", "rotten"):
        await kill(mesh, "registry")
        await until_shown(mesh, "tenants", "list", says="default")
        await done(mesh, "keys", "revoke", secret.split("-")[2])
        assert await gateway.with_key(secret).until_refused("sound") < WITHIN_S
        await done(mesh, "models", "withdraw", "sound", "1", "--reason", "it is enough")
        assert await gateway.until_refused("sound") < WITHIN_S
        pushed = await ran(mesh, "models", "push", str(adding(tmp_path / "other", "other", 3)), "--copies", "1")
        assert pushed.returncode == 0, pushed.stderr


async def test_a_key_that_was_given_more_rights_on_disk_has_none(
    mesh: RunningMesh, gateway: Gateway, disk: Disk, tmp_path: Path
) -> None:
    await done(mesh, "models", "push", str(adding(tmp_path / "prized", "prized", 2)), "--copies", "1")
    secret = (await done(mesh, "keys", "create", "small", "--model", "another")).strip()
    key_id = secret.split("-")[2]
    disk.rows("UPDATE keys SET allowed_models = '[]' WHERE key_id = ?", key_id)
    code, said = await gateway.with_key(secret).refusal("prized")
    assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS), said
    assert f"row {key_id} of keys" in await found_altered(mesh, "tampering")


async def test_what_was_decided_stands_after_a_restart_on_an_empty_etcd(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_mesh(data, "--workers", "1", "--no-demo") as first:
        folders = {amount: adding(tmp_path / str(amount), "kept", amount) for amount in (1, 2, 3)}
        for amount, alias in ((1, "stable"), (2, "canary=50"), (3, "old")):
            await done(first, "models", "push", str(folders[amount]), "--copies", "1", "--alias", alias)
        await done(first, "models", "withdraw", "kept", "3", "--reason", "wrong")
        secret = (await done(first, "keys", "create", "ended")).strip()
        await done(first, "keys", "revoke", secret.split("-")[2])
        others = (await done(first, "keys", "create", "others", "--tenant", "others")).strip()
        history = await done(first, "models", "history", "kept")
    await asyncio.to_thread(shutil.rmtree, data / "etcd")
    with running_mesh(data, "--workers", "1", "--no-demo") as again:
        await until_shown(again, "models", "show", "kept", says="stable → version 1")
        assert await done(again, "models", "history", "kept") == history
        assert "was withdrawn" in await refused(again, "models", "load", "kept", "--version", "3")
        for version in ("1", "2"):
            await done(again, "models", "load", "kept", "--version", version, "--copies", "1")
        async with gateway_of(again) as gateway:
            answers = [await gateway.ask("kept") for _ in range(100)]
            assert set(answers) == {Answer(1.0, "1"), Answer(2.0, "2")}, "the canary has its share still"
            assert (await gateway.refusal("kept", "3"))[0] is grpc.StatusCode.NOT_FOUND
            assert (await gateway.with_key(secret).refusal("kept"))[0] is grpc.StatusCode.UNAUTHENTICATED
            hidden = (grpc.StatusCode.NOT_FOUND,)
            assert (await gateway.with_key(others).refusal("kept"))[0] in hidden
