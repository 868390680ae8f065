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
from sqlalchemy import Connection, func, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError

from registry.schema import HEAD, REGISTRY, file_owners, metadata, tenants
from runtime import database as database_module
from runtime.database import Database, DatabaseBusy, DatabaseUnavailable, SchemaUnknown, database_url, open_database
from runtime.errors import FailedPrecondition
from tests.support.postgres import Postgres


def shape(connection: Connection) -> dict[str, Any]:
    """All that the database knows of its tables."""
    inspector = inspect(connection)
    return {
        table: {
            "columns": [{**column, "type": str(column["type"])} for column in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table),
            "foreign": sorted(map(str, inspector.get_foreign_keys(table))),
            "unique": sorted(map(str, inspector.get_unique_constraints(table))),
            "indexes": sorted(map(str, inspector.get_indexes(table))),
        }
        for table in sorted(set(inspector.get_table_names()) - {"alembic_version"})
    }


async def shape_of(database: Database) -> dict[str, Any]:
    async with database.reading() as connection:
        return await connection.run_sync(shape)


async def test_all_migrations_together_make_what_a_new_database_gets(
    database_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(database_address, REGISTRY) as database:
        created = await shape_of(database)
        async with database.writing() as connection:
            await connection.run_sync(metadata.drop_all)
            await connection.execute(text("DROP TABLE alembic_version"))
    monkeypatch.setattr(database_module, "_create", database_module._upgrade)
    async with open_database(database_address, REGISTRY) as database:
        assert await shape_of(database) == created
        async with database.reading() as connection:
            assert await connection.run_sync(lambda sync: compare_metadata(MigrationContext.configure(sync), metadata)) == []
            assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar() == HEAD
    assert set(created) == set(metadata.tables)


def test_head_is_the_last_migration() -> None:
    assert ScriptDirectory(database_module.migrations_folder(REGISTRY)).get_current_head() == HEAD


async def add_tenant(database: Database, *names: str) -> None:
    async with database.writing() as connection:
        for name in names:
            await connection.execute(insert(tenants).values(tenant=name, created_at_ms=5, seal=b""))


async def add_tenant_with_file(database: Database) -> None:
    async with database.writing() as connection:
        await connection.execute(insert(tenants).values(tenant="acme", created_at_ms=5, seal=b""))
        await connection.execute(insert(file_owners).values(tenant="acme", sha256="none", since_ms=0))


async def tenant_count(database: Database) -> int:
    async with database.reading() as connection:
        return int((await connection.execute(select(func.count()).select_from(tenants))).scalar_one())


async def test_what_was_written_is_there_after_a_restart(database_address: str) -> None:
    async with open_database(database_address, REGISTRY) as database:
        await add_tenant(database, "acme")
    async with open_database(database_address, REGISTRY) as database:
        assert await tenant_count(database) == 1


async def test_a_path_and_a_url_are_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "registry.db"
    async with open_database(str(file), REGISTRY) as database:
        await add_tenant(database, "acme")
    async with open_database(f"sqlite:///{file}", REGISTRY) as database:
        assert await tenant_count(database) == 1


async def test_a_failed_transaction_leaves_nothing(database_address: str) -> None:
    async with open_database(database_address, REGISTRY) as database:
        commits: list[int] = []
        database.on_commit.append(lambda: commits.append(1))
        with pytest.raises(IntegrityError, match=r"(?i)unique"):
            await add_tenant(database, "acme", "acme")
        with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
            await add_tenant_with_file(database)
        assert await tenant_count(database) == 0
        assert commits == []
        await add_tenant(database, "acme")
        assert commits == [1]


async def test_replicas_may_start_at_the_same_time(database_address: str) -> None:
    async def start() -> None:
        async with open_database(database_address, REGISTRY):
            pass

    await asyncio.gather(*[start() for _ in range(4)])


async def test_writers_wait_their_turn(database_address: str) -> None:
    async with open_database(database_address, REGISTRY) as one, open_database(database_address, REGISTRY) as other:

        async def add(database: Database, number: int) -> None:
            async with database.writing() as connection:
                await connection.execute(select(func.count()).select_from(tenants))
                await asyncio.sleep(0)
                await connection.execute(insert(tenants).values(tenant=f"t{number}", created_at_ms=0, seal=b""))

        await asyncio.gather(*[add(one if number % 2 else other, number) for number in range(20)])
        assert await tenant_count(one) == 20


_MIGRATE_SLOWLY = """
import asyncio, os, sys
from alembic import op
from registry.schema import REGISTRY
from runtime import database
made = 0
create = op.create_table
def slowly(*arguments, **options):
    global made
    made += 1
    if made == 9:
        print("half", flush=True)
        import time; time.sleep(60)
    return create(*arguments, **options)
op.create_table = slowly
database._create = database._upgrade
async def main():
    async with database.open_database(sys.argv[1], REGISTRY): pass
asyncio.run(main())
"""


async def test_a_process_killed_in_the_middle_of_a_migration_leaves_no_half_schema(database_address: str) -> None:
    command = [sys.executable, "-c", _MIGRATE_SLOWLY, database_address]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)}
    )
    try:
        assert process.stdout is not None
        assert (await process.stdout.readline()).strip() == b"half"
    finally:
        process.kill()
        await process.wait()
    async with open_database(database_address, REGISTRY) as database:
        assert set(await shape_of(database)) == set(metadata.tables)
        await add_tenant(database, "acme")


async def test_a_lost_connection_is_unavailable_and_the_next_call_has_another(postgres: Postgres) -> None:
    address = postgres.new_database("lost_connection")
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'lost_connection' AND pid <> pg_backend_pid()"

    async def write(database: Database) -> None:
        async with database.writing() as connection:
            await connection.execute(insert(tenants).values(tenant="acme", created_at_ms=5, seal=b""))
            await asyncio.to_thread(postgres.execute, "postgres", cut)
            await connection.execute(select(tenants))

    async with open_database(address, REGISTRY) as database:
        with pytest.raises(DatabaseUnavailable):
            await write(database)
        assert await tenant_count(database) == 0
    postgres.drop_database("lost_connection")


async def test_a_deadlock_is_told_as_a_lost_race(postgres: Postgres) -> None:
    address = postgres.new_database("deadlock")
    async with open_database(address, REGISTRY) as database:
        await add_tenant(database, "one", "two")
        both = asyncio.Barrier(2)

        async def change(*names: str) -> None:
            async with database.writing() as connection:
                for name in names:
                    await connection.execute(update(tenants).where(tenants.c.tenant == name).values(quota_bytes=1))
                    if name == names[0]:
                        await both.wait()

        results = await asyncio.gather(change("one", "two"), change("two", "one"), return_exceptions=True)
        assert [type(result) for result in results if result is not None] == [DatabaseBusy]
    postgres.drop_database("deadlock")


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(DatabaseUnavailable):
        async with open_database("postgresql://someone@127.0.0.1:1/penstock", REGISTRY):
            pass


async def test_a_database_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    async with open_database(str(tmp_path / "registry.db"), REGISTRY) as database, database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaUnknown, match="9999"):
        async with open_database(str(tmp_path / "registry.db"), REGISTRY):
            pass


async def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(FailedPrecondition, match="not a database"):
        async with open_database(str(tmp_path / "registry.db"), REGISTRY):
            pass


async def test_a_driver_that_is_missing_is_named_and_no_password_is(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        async with open_database("nosuchdialect://someone:hunter2@nowhere/penstock", REGISTRY):
            pass
    assert "nosuchdialect" in refused.value.message
    assert "hunter2" not in refused.value.message
    with pytest.raises(FailedPrecondition):
        async with open_database("://hunter2", REGISTRY):
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
        "from registry.schema import REGISTRY\n"
        "from runtime.database import open_database\n"
        "async def start():\n"
        "    async with open_database(sys.argv[1], REGISTRY): pass\n"
        "asyncio.run(start()); asyncio.run(start())\n"
        "assert 'alembic' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "registry.db")], check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )


async def test_errors_say_nothing_of_what_a_statement_was_about(tmp_path: Path) -> None:
    """They are logged, and hashes of passwords and of keys are among it."""
    row = insert(tenants).values(tenant="acme", seal=b"s", created_at_ms=1)
    async with open_database(str(tmp_path / "registry.db"), REGISTRY) as database:
        async with database.writing() as connection:
            await connection.execute(row)
            with pytest.raises(IntegrityError) as caught:
                await connection.execute(row)
        assert "acme" not in str(caught.value)
        assert "INSERT INTO tenants" in str(caught.value)
