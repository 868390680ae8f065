"""Who has the disk or the bucket, and not the file of master keys, has nothing of a model and no key."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from sqlalchemy import select

from registry.files.data_keys import DataKeys, WrappedKey
from registry.files.rotation import Rotation
from registry.schema import files
from registry.seals import Seals
from runtime.identity import NodeIdentity, Role
from tests.registry.harness import MASTER_KEYS, Ground
from tests.registry.tampering.world import CONTENT, ROOT, SIGNER, World, world_on

RUN_BYTES = 16


@pytest.fixture
async def world(sqlite_ground: Ground, tmp_path: Path, identities: dict[Role, NodeIdentity]) -> AsyncIterator[World]:
    async with world_on(sqlite_ground, tmp_path, identities) as opened:
        yield opened


def runs_of(secret: bytes) -> set[bytes]:
    """Every run of so many bytes in it; of a long one those that begin at every 16th byte, which any longer run contains."""
    step = 1 if len(secret) < 1024 else RUN_BYTES
    return {secret[start : start + RUN_BYTES] for start in range(0, len(secret) - RUN_BYTES + 1, step)}


def found_in(stolen: Iterable[Path], runs: set[bytes]) -> list[str]:
    found = []
    for file in stolen:
        raw = file.read_bytes()
        if any(raw[start : start + RUN_BYTES] in runs for start in range(len(raw) - RUN_BYTES + 1)):
            found.append(file.name)
    return found


async def secrets_of(world: World) -> list[bytes]:
    async with world.ground.database.reading() as connection:
        (row,) = (await connection.execute(select(files))).all()
    data_key = DataKeys(MASTER_KEYS).open(
        bytes(row.object_id), row.sha256, WrappedKey(bytes(row.wrapped_key), row.master_key_id)
    )
    master = MASTER_KEYS.current
    sealing = hashlib.blake2b(b"penstock-row-seal-v1", key=master).digest()
    return [CONTENT, data_key, master, sealing, bytes(ROOT), bytes(SIGNER)]


def stolen_from(world: World) -> list[Path]:
    """The database, its write-ahead log, and every object."""
    database = Path(world.ground.address)
    return [*database.parent.glob(f"{database.name}*"), *world.parts()]


async def test_a_stolen_disk_or_bucket_yields_nothing(world: World) -> None:
    await world.load()
    stolen = stolen_from(world)
    assert sum(file.stat().st_size for file in stolen) > len(CONTENT)
    runs = set().union(*map(runs_of, await secrets_of(world)))
    assert found_in(stolen, runs) == []


async def test_nor_does_one_in_the_middle_of_a_rotation(world: World) -> None:
    keys = MASTER_KEYS.with_new()
    rotation = Rotation(world.ground.database, Seals(keys), DataKeys(keys), world.ground.trail)
    async for _ in rotation.run():
        pass
    assert found_in(stolen_from(world), runs_of(keys.current) | runs_of(MASTER_KEYS.current)) == []


async def test_what_was_not_encrypted_would_be_found(world: World) -> None:
    part = next(world.parts())
    part.chmod(0o600)
    part.write_bytes(b"x" * 5 + CONTENT[500_003:500_040])
    assert found_in([part], runs_of(CONTENT)) == [part.name]
