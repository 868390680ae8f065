"""The database comes up to date, quickly, from wherever it is; what it cannot do it says."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import IntegrityError

from registry import database as database_module
from registry.database import Database, SchemaUnknown, database_url, open_database
from registry.schema import HEAD, metadata
from runtime.errors import FailedPrecondition


def shape(connection: Connection) -> dict[str, Any]:
    """All that the database knows of its tables."""
    inspector = inspect(connection)
    return {
        table: {
            "columns": [{**column, "type": str(column["type"])} for column in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table),
            "foreign": inspector.get_foreign_keys(table),
            "unique": inspector.get_unique_constraints(table),
            "indexes": inspector.get_indexes(table),
        }
        for table in sorted(set(inspector.get_table_names()) - {"alembic_version"})
    }


async def shape_of(database: Database) -> dict[str, Any]:
    async with database.reading() as connection:
        return await connection.run_sync(shape)


async def test_all_migrations_together_make_what_a_new_database_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_database(str(tmp_path / "created.db")) as database:
        created = await shape_of(database)
    monkeypatch.setattr(database_module, "_create", database_module._upgrade)
    async with open_database(str(tmp_path / "migrated.db")) as database:
        assert await shape_of(database) == created
        async with database.reading() as connection:
            assert await connection.run_sync(lambda sync: compare_metadata(MigrationContext.configure(sync), metadata)) == []
            assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar() == HEAD
    assert set(created) == set(metadata.tables)


def test_head_is_the_last_migration() -> None:
    assert ScriptDirectory(database_module._migrations_folder()).get_current_head() == HEAD


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "registry.db"
    async with open_database(str(file)) as database, database.writing() as connection:
        await connection.execute(text("INSERT INTO tenants VALUES ('acme', 5)"))
    async with open_database(f"sqlite:///{file}") as database, database.reading() as connection:
        assert (await connection.execute(text("SELECT tenant FROM tenants"))).scalar() == "acme"


async def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    async def write(database: Database, *statements: str) -> None:
        async with database.writing() as connection:
            for statement in statements:
                await connection.execute(text(statement))

    async with open_database(str(tmp_path / "registry.db")) as database:
        acme = "INSERT INTO tenants VALUES ('acme', 5)"
        with pytest.raises(IntegrityError, match="UNIQUE"):
            await write(database, acme, acme)
        with pytest.raises(IntegrityError, match="FOREIGN KEY"):
            await write(database, acme, "INSERT INTO keys VALUES ('k', 'nobody', '', 'caller', 'x', '[]', 0, 0, 0, 0, 0)")
        async with database.reading() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM tenants"))).scalar() == 0


async def test_replicas_may_start_at_the_same_time(tmp_path: Path) -> None:
    async def start() -> None:
        async with open_database(str(tmp_path / "registry.db")):
            pass

    await asyncio.gather(*[start() for _ in range(4)])


async def test_writers_wait_their_turn(tmp_path: Path) -> None:
    async with open_database(str(tmp_path / "registry.db")) as one, open_database(str(tmp_path / "registry.db")) as other:

        async def add(database: Database, number: int) -> None:
            async with database.writing() as connection:
                await connection.execute(text("SELECT count(*) FROM tenants"))
                await asyncio.sleep(0)
                await connection.execute(text(f"INSERT INTO tenants VALUES ('t{number}', 0)"))

        await asyncio.gather(*[add(one if number % 2 else other, number) for number in range(20)])
        async with one.reading() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM tenants"))).scalar() == 20


async def test_a_database_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    async with open_database(str(tmp_path / "registry.db")) as database, database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaUnknown, match="9999"):
        async with open_database(str(tmp_path / "registry.db")):
            pass


async def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(FailedPrecondition, match="not a database"):
        async with open_database(str(tmp_path / "registry.db")):
            pass


async def test_a_driver_that_is_missing_is_named_and_no_password_is(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        async with open_database("nosuchdialect://someone:hunter2@nowhere/penstock"):
            pass
    assert "nosuchdialect" in refused.value.message
    assert "hunter2" not in refused.value.message
    with pytest.raises(FailedPrecondition):
        async with open_database("://hunter2"):
            pass


@pytest.mark.parametrize(
    ("address", "driver"),
    [
        ("registry.db", "sqlite+aiosqlite"),
        ("sqlite:////data/registry.db", "sqlite+aiosqlite"),
        ("postgresql://someone@host/penstock", "postgresql+asyncpg"),
        ("postgres://someone@host/penstock", "postgresql+asyncpg"),
        ("postgresql+psycopg://someone@host/penstock", "postgresql+psycopg"),
    ],
)
def test_an_address_becomes_a_url(address: str, driver: str) -> None:
    assert database_url(address).drivername == driver


def test_neither_a_new_nor_a_known_database_needs_alembic(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from registry.database import open_database\n"
        "async def start():\n"
        "    async with open_database(sys.argv[1]): pass\n"
        "asyncio.run(start()); asyncio.run(start())\n"
        "assert 'alembic' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "registry.db")], check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
