"""A row that was edited behind the registry's back is noticed, on every database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Float,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    create_engine,
    insert,
    literal,
    select,
    update,
)

from registry.master_keys import MasterKeys
from registry.schema import metadata, tenants
from registry.seals import RowAltered, Seals, select_checked, update_sealed
from tests.registry.harness import MASTER_KEYS, NOTE, Ground

SEALED = [table for table in metadata.sorted_tables if "seal" in table.columns]


async def test_a_row_is_read_back_as_it_was_sealed(ground: Ground) -> None:
    async with ground.database.reading() as connection:
        row = await select_checked(connection, ground.seals, tenants, tenants.c.tenant == "acme")
    assert row is not None
    assert row.quota_bytes == 0


async def test_an_edited_row_is_refused(ground: Ground) -> None:
    await ground.execute("UPDATE tenants SET quota_bytes = 5 WHERE tenant = 'acme'")
    async with ground.database.reading() as connection:
        with pytest.raises(RowAltered, match="row acme of tenants is not as the registry wrote it"):
            await select_checked(connection, ground.seals, tenants, tenants.c.tenant == "acme")


async def test_a_change_by_the_registry_is_sealed_anew(ground: Ground) -> None:
    async with ground.database.writing() as connection:
        row = await update_sealed(connection, ground.seals, tenants, {"quota_bytes": 7}, tenants.c.tenant == "acme")
    assert row is not None
    assert ground.seals.check(tenants, row).quota_bytes == 7


async def test_the_trail_is_written_with_what_it_tells_of(ground: Ground) -> None:
    async with ground.database.writing() as connection:
        await ground.trail.write(connection, NOTE)
    await ground.trail.note(NOTE)
    assert await ground.actions() == [("test", "nothing", "done")] * 2


def value_of(column: Column[Any], which: int) -> Any:
    """Of the column's kind; another for each number."""
    if isinstance(column.type, LargeBinary):
        return bytes([which]) * (column.type.length or 24)
    if isinstance(column.type, JSON):
        return [f"x{which}", "ü"]
    if isinstance(column.type, Float):
        return which  # a whole number, as callers pass it
    if isinstance(column.type, String):
        return f"ü{which}"
    return which


@pytest.fixture
def lone_rows() -> Iterator[Connection]:
    """A database that asks nothing of a row but its types: SQLite without foreign keys."""
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        metadata.create_all(connection)
        yield connection
    engine.dispose()


@pytest.mark.parametrize("table", SEALED, ids=[table.name for table in SEALED])
def test_every_column_that_is_sealed_counts_and_no_other(lone_rows: Connection, table: Table) -> None:
    """A row with a seal, each of its columns changed alone and changed back."""
    seals = Seals(MASTER_KEYS)
    columns = [column for column in table.columns if column.name != "seal"]
    lone_rows.execute(insert(table).values(seals.sealed(table, {column.name: value_of(column, 3) for column in columns})))

    def read() -> Row[Any]:
        return lone_rows.execute(select(table)).one()

    seals.check(table, read())
    for column in columns:
        lone_rows.execute(update(table).values({column.name: value_of(column, 4)}))
        if column.info.get("unsealed"):
            seals.check(table, read())
        else:
            with pytest.raises(RowAltered, match=table.name):
                seals.check(table, read())
            with pytest.raises(RowAltered):
                seals.sealed_anew(table, read())
        lone_rows.execute(update(table).values({column.name: value_of(column, 3)}))
        seals.check(table, read())


@given(at=st.integers(0, 47), bit=st.integers(0, 7))
def test_no_bit_of_a_seal_is_idle(at: int, bit: int) -> None:
    seals, values = Seals(MASTER_KEYS), {"tenant": "acme", "created_at_ms": 1, "quota_bytes": 0}
    seal = bytearray(seals.sealed(tenants, values)["seal"])
    seal[at] ^= 1 << bit
    with pytest.raises(RowAltered):
        seals.check(tenants, lone(tenants, {**values, "seal": bytes(seal)}))


def test_a_seal_is_for_its_table_and_under_its_key() -> None:
    seals, values = Seals(MASTER_KEYS), {"tenant": "acme", "created_at_ms": 1, "quota_bytes": 0}
    row = lone(tenants, seals.sealed(tenants, values))
    more = Seals(MasterKeys("k2", {"k1": b"m" * 32, "k2": b"n" * 32}))
    more.check(tenants, row)
    assert more.sealed_anew(tenants, row)[:16] == more.newest_prefix == b"k2".ljust(16, b"\0")
    other = Table("others", MetaData(), *(column._copy() for column in tenants.columns))
    with pytest.raises(RowAltered, match="of others"):
        seals.check(other, row)
    with pytest.raises(RowAltered):
        Seals(MasterKeys("k1", {"k1": b"n" * 32})).check(tenants, row)


def lone(table: Table, values: Mapping[str, Any]) -> Row[Any]:
    """As if it came from a database."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        asked = select(*(literal(values[column.name], column.type).label(column.name) for column in table.columns))
        return connection.execute(asked).one()
