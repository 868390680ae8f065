"""A new master key takes everything over, beside what else happens, and the old one may go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import LargeBinary, Table, func, insert, select, update

from registry.files import rotation
from registry.files.data_keys import DataKeyAltered, DataKeys, WrappedKey
from registry.files.rotation import Rotation, RotationIncomplete
from registry.master_keys import MasterKeyFile, add_master_key, remove_master_keys, write_master_keys
from registry.schema import aliases, audit, files, metadata, models, tenants, uploads
from registry.seals import RowAltered, Seals, insert_sealed, seal_prefix, update_sealed
from runtime.errors import Unavailable
from tests.registry.harness import MASTER_KEYS, NOTE, OPERATOR, Ground

SEALED = [table for table in metadata.sorted_tables if "seal" in table.columns]
MODEL = {"model": "digits", "tenant": "acme", "description": "", "shared_with": ["globex"], "generation": 1}
ALIAS = {
    "model": "digits", "number": 1, "weight": 0, "generation": 1, "pending_number": 0, "pending_weight": 0,
    "pending_promotes": "", "pending_kind": "", "pending_by": "",
}  # fmt: skip


class Rig:
    """A registry with a file of keys, and something of everything under the oldest."""

    def __init__(self, ground: Ground, file: Path) -> None:
        write_master_keys(file, MASTER_KEYS)
        self.ground, self.file = ground, file
        self.object_keys: dict[bytes, bytes] = {}

    def pieces(self) -> tuple[Seals, DataKeys]:
        """As a registry that starts now has them."""
        source = MasterKeyFile(self.file)
        return Seals(source), DataKeys(source)

    def rotation(self) -> Rotation:
        return Rotation(self.ground.database, *self.pieces(), self.ground.trail)

    async def fill(self, rows: int = 5) -> None:
        seals, data_keys = self.pieces()
        async with self.ground.database.writing() as connection:
            await insert_sealed(connection, seals, models, MODEL)
            for number in range(rows):
                await insert_sealed(connection, seals, aliases, {**ALIAS, "alias": f"a{number}"})
                await self.ground.trail.write(connection, NOTE)
                object_id = number.to_bytes(16, "big")
                self.object_keys[object_id], kept = data_keys.make(object_id, f"{number:064x}")
                row = {
                    "sha256": f"{number:064x}", "object_id": object_id, "size_bytes": 1, "part_bytes": 1,
                    "wrapped_key": kept.wrapped, "master_key_id": kept.master_key_id,
                }  # fmt: skip
                table, more = (uploads, {"upload_id": str(number), "tenant": "acme"}) if number % 2 else (files, {})
                await connection.execute(insert(table).values({**row, **more}))

    async def check_all(self) -> int:
        """Everything opens with what a registry that starts now has; how much that is."""
        seals, data_keys = self.pieces()
        count = 0
        async with self.ground.database.reading() as connection:
            for table in SEALED:
                for row in await connection.execute(select(table)):
                    seals.check(table, row)
                    count += 1
            for table in (files, uploads):
                for row in await connection.execute(select(table)):
                    kept = WrappedKey(bytes(row.wrapped_key), row.master_key_id)
                    object_id = bytes(row.object_id)
                    assert data_keys.open(object_id, row.sha256, kept) == self.object_keys[object_id]
                    count += 1
        return count


@pytest.fixture
async def rig(ground: Ground, tmp_path: Path) -> Rig:
    return Rig(ground, tmp_path / "master.keys")


@pytest.fixture
async def small(sqlite_ground: Ground, tmp_path: Path) -> Rig:
    return Rig(sqlite_ground, tmp_path / "master.keys")


async def ran(run: AsyncIterator[tuple[int, int]]) -> list[tuple[int, int]]:
    return [each async for each in run]


async def old_rows(rig: Rig, table: Table, key_id: str = "k1") -> int:
    prefix = func.substr(table.c.seal, 1, 16, type_=LargeBinary)
    async with rig.ground.database.reading() as connection:
        return int(await connection.scalar(select(func.count()).where(prefix == seal_prefix(key_id))) or 0)


async def test_after_it_the_old_key_may_go_and_everything_opens(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "BATCH_ROWS", 4)
    await rig.fill(9)
    total = await rig.check_all()
    added = add_master_key(rig.file)
    steps = await ran(rig.rotation().run(OPERATOR))
    assert steps[0] == (0, total)
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert remove_master_keys(rig.file) == 1
    # The last note is the rotation's own, by the trail, which still has the old key: what another registry may do meanwhile.
    async with rig.ground.database.writing() as connection:
        await connection.execute(audit.delete().where(audit.c.action == "master_key.rotate", audit.c.subject == added))
    assert await rig.check_all() == total


async def test_without_it_they_would_not(small: Rig) -> None:
    await small.fill()
    add_master_key(small.file)
    remove_master_keys(small.file)
    with pytest.raises((RowAltered, DataKeyAltered), match="not among this registry's"):
        await small.check_all()


async def test_again_it_has_nothing_to_do(small: Rig) -> None:
    await small.fill()
    small.ground.trail._seals, _ = small.pieces()
    assert await ran(small.rotation().run()) == [(0, 0)]
    small.ground.trail._seals._keys._looked_s = -1e9  # type: ignore[attr-defined]  # as if a second had gone
    add_master_key(small.file)
    await ran(small.rotation().run())
    assert await ran(small.rotation().run()) == [(0, 0)]


async def test_one_that_was_stopped_goes_on_with_what_is_left(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "BATCH_ROWS", 2)
    await rig.fill(6)
    add_master_key(rig.file)
    running = rig.rotation().run()
    seen = [await anext(running) for _ in range(4)]
    await running.aclose()  # type: ignore[attr-defined]
    done, total = seen[-1]
    assert 0 < done < total
    await rig.check_all()
    assert (await ran(rig.rotation().run()))[0] == (0, total - done)
    await rig.check_all()


async def test_what_changes_meanwhile_keeps_its_change(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading and writing of each batch somebody changes one of its rows, and a new row comes."""
    await rig.fill()
    add_master_key(rig.file)
    seals, _ = rig.pieces()
    turning = rig.rotation()
    written, changes = turning._written, 0

    async def late(course: rotation.Course, given: object) -> None:
        nonlocal changes
        if course.table is aliases and not changes:
            changes += 1
            async with rig.ground.database.writing() as connection:
                await update_sealed(connection, seals, aliases, {"weight": 7}, aliases.c.alias == "a1")
                await insert_sealed(connection, seals, aliases, {**ALIAS, "alias": "a00"})
        if course.table is files and changes == 0:
            async with rig.ground.database.writing() as connection:
                await connection.execute(update(files).where(files.c.sha256 == f"{0:064x}").values(wrapped_key=b"other"))
        await written(course, given)  # type: ignore[arg-type]

    monkeypatch.setattr(turning, "_written", late)
    with pytest.raises(RotationIncomplete, match=f"files/{0:064x}"):
        await ran(turning.run())
    async with rig.ground.database.reading() as connection:
        rows = {row.alias: row for row in await connection.execute(select(aliases))}
        kept = await connection.scalar(select(files.c.wrapped_key).where(files.c.sha256 == f"{0:064x}"))
    assert changes == 1
    assert seals.check(aliases, rows["a1"]).weight == 7
    assert bytes(kept or b"") == b"other", "what somebody else wrote is not written over"
    assert {bytes(row.seal)[:16] for row in rows.values()} == {seals.newest_prefix}


async def test_two_at_once_do_no_harm(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "BATCH_ROWS", 3)
    await rig.fill(10)
    add_master_key(rig.file)
    await asyncio.gather(ran(rig.rotation().run()), ran(rig.rotation().run()))
    await rig.check_all()


async def test_what_was_altered_is_left_noted_and_told(rig: Rig) -> None:
    await rig.fill()
    added = add_master_key(rig.file)
    await rig.ground.execute("UPDATE aliases SET weight = 99 WHERE alias = 'a2'")
    await rig.ground.execute("UPDATE files SET master_key_id = 'gone' WHERE size_bytes = 1")
    with pytest.raises(RotationIncomplete, match="4 were altered and stay under an older one") as refused:
        await ran(rig.rotation().run(OPERATOR))
    assert refused.value.message.count("aliases/digits/a2") == 1
    assert await old_rows(rig, tenants) == 0
    assert await old_rows(rig, aliases) == 1
    noted = [each for each in await rig.ground.actions() if each[0] != "test"]
    assert noted[-1] == ("master_key.rotate", added, "failed")
    assert ("tampering", "aliases/digits/a2", "failed") in noted
    assert len(noted) == 5
    with pytest.raises(RowAltered):
        await rig.check_all()


async def test_a_registry_that_goes_on_with_the_old_key_is_told_of(small: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await small.fill(1)
    behind, _ = small.pieces()
    monkeypatch.setattr(behind, "_keys", MASTER_KEYS)
    add_master_key(small.file)
    turning = small.rotation()
    count, number = turning._count, 0

    async def one_more(courses: list[rotation.Course]) -> int:
        nonlocal number
        number += 1
        async with small.ground.database.writing() as connection:
            await insert_sealed(connection, behind, aliases, {**ALIAS, "alias": f"b{number}"})
        return await count(courses)

    monkeypatch.setattr(turning, "_count", one_more)
    with pytest.raises(Unavailable, match="give every registry the same key file"):
        await ran(turning.run())
