"""The tables of the log come up to date from wherever they are, also beside those of others."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from gateway.request_log.schema import HEAD, REQUEST_LOG, metadata
from runtime import database as database_module
from runtime.database import Database, open_database


def shape(connection: Connection) -> dict[str, Any]:
    inspector = inspect(connection)
    return {
        table: {
            "columns": [{**column, "type": str(column["type"])} for column in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table),
            "foreign": sorted(map(str, inspector.get_foreign_keys(table))),
            "unique": sorted(map(str, inspector.get_unique_constraints(table))),
            "indexes": sorted(map(str, inspector.get_indexes(table))),
        }
        for table in sorted(set(inspector.get_table_names()) & set(metadata.tables))
    }


def _differences(connection: Connection) -> Any:
    context = MigrationContext.configure(connection, opts={"version_table": REQUEST_LOG.version_table})
    return compare_metadata(context, metadata)


async def shape_of(database: Database) -> dict[str, Any]:
    async with database.reading() as connection:
        return await connection.run_sync(shape)


async def test_all_migrations_together_make_what_a_new_database_gets(
    database_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(database_address, REQUEST_LOG) as database:
        created = await shape_of(database)
        async with database.writing() as connection:
            await connection.run_sync(metadata.drop_all)
            await connection.execute(text(f"DROP TABLE {REQUEST_LOG.version_table}"))
    monkeypatch.setattr(database_module, "_create", database_module._upgrade)
    async with open_database(database_address, REQUEST_LOG) as database:
        assert await shape_of(database) == created
        async with database.reading() as connection:
            assert await connection.run_sync(_differences) == []
            assert (await connection.execute(text(f"SELECT version_num FROM {REQUEST_LOG.version_table}"))).scalar() == HEAD
    assert set(created) == set(metadata.tables)


def test_head_is_the_last_migration() -> None:
    assert ScriptDirectory(database_module.migrations_folder(REQUEST_LOG)).get_current_head() == HEAD


@pytest.mark.parametrize("log_first", [True, False])
async def test_other_services_may_keep_their_tables_in_the_same_database(database_address: str, log_first: bool) -> None:
    from registry.schema import REGISTRY
    from scheduler.jobs.schema import JOBS

    all_of_them = (REQUEST_LOG, REGISTRY, JOBS) if log_first else (REGISTRY, JOBS, REQUEST_LOG)
    for schema in all_of_them * 2:  # and again, where all are there
        async with open_database(database_address, schema):
            pass
    async with open_database(database_address, REQUEST_LOG) as database:
        assert set(await shape_of(database)) == set(metadata.tables)
