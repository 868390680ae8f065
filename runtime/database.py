"""A service's SQL database: its engine, its transactions, its schema brought up to date.

Owns the pool's lifetime. Knows no table but the schema's own version. Any database SQLAlchemy's asyncio speaks to will do;
SQLite's ways are in `sqlite.py`, PostgreSQL's in `postgres.py`.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from runtime import postgres, sqlite
from runtime.errors import Code, FailedPrecondition, PenstockError

_ASYNC_DRIVERS = {"sqlite": sqlite.DRIVER, "postgresql": postgres.DRIVER, "postgres": postgres.DRIVER}
_CLOSE_S = 3.0
_NOT_NOW = (OperationalError, InterfaceError, PoolTimeout, OSError, TimeoutError)

_log = structlog.get_logger("penstock.database")


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables that one service keeps, and which of its migrations makes them what they are."""

    owner: str
    """The service, for people: "registry"."""
    metadata: MetaData
    head: str
    migrations: str
    """The package with Alembic's `env.py` and `versions/`."""
    version_table: str = "alembic_version"
    """Of its own where services may share a database."""
    gives_back: bool = False
    """Rows are deleted for good, many of them: an SQLite file is made so that it can shrink."""


class DatabaseUnavailable(PenstockError, code=Code.UNAVAILABLE, reason="DATABASE_UNAVAILABLE"):
    """The database did not answer."""


class DatabaseDamaged(DatabaseUnavailable, code=Code.DATA_LOSS, reason="DATABASE_DAMAGED"):
    """What the database has stored cannot be read any more."""


class DatabaseBusy(PenstockError, code=Code.ABORTED, reason="DATABASE_BUSY"):
    """Another transaction was in the way."""


class SchemaUnknown(PenstockError, code=Code.FAILED_PRECONDITION, reason="SCHEMA_UNKNOWN"):
    """The database was written by another release."""


class Database:
    """Transactions on one engine."""

    def __init__(self, engine: AsyncEngine, schema: Schema) -> None:
        self._engine, self._schema = engine, schema
        self._writer = engine.execution_options(penstock_writes=True)
        self.on_commit: list[Callable[[], None]] = []
        """Called after each writing transaction that was committed; they must not fail."""

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        async with self._available(), self._engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Committed on leaving, rolled back on an exception. Leaving constraint violations to the caller."""
        async with self._available(), self._writer.begin() as connection:
            yield connection
        for called in self.on_commit:
            called()

    async def migrate(self) -> None:
        """Bring the schema up to date. Decided again inside the transaction: another replica may start at the same time."""
        async with self.reading() as connection:
            if await connection.run_sync(_revision, self._schema) == self._schema.head:
                return
        async with self.writing() as connection:
            if self._engine.dialect.name == postgres.BACKEND:
                await postgres.one_at_a_time(connection)
            await connection.run_sync(_bring_up_to_date, self._schema)

    @asynccontextmanager
    async def _available(self) -> AsyncIterator[None]:
        owner = self._schema.owner
        try:
            yield
        except _NOT_NOW as error:
            raise self._unavailable(error) from error
        except DBAPIError as error:
            if postgres.is_lost_race(error):
                raise DatabaseBusy(
                    "another change of the same was in the way; read again, then retry", retry_after_s=0.1
                ) from error
            if postgres.is_not_now(error):
                raise self._unavailable(error) from error
            if sqlite.is_damage(error) or postgres.is_damage(error):
                raise DatabaseDamaged(
                    f"the {owner}'s database is damaged ({error.orig}); stop the {owner} and restore it from a backup"
                ) from error
            raise

    def _unavailable(self, error: Exception) -> DatabaseUnavailable:
        cause = error.orig if isinstance(error, DBAPIError) else error
        shown = str(cause).partition("\n")[0] or type(cause).__name__
        return DatabaseUnavailable(
            f"the {self._schema.owner}'s database does not answer ({shown}); try again", retry_after_s=1.0
        )


@asynccontextmanager
async def open_database(address: str, schema: Schema) -> AsyncIterator[Database]:
    """A database by URL, or an SQLite file by path; its schema is up to date when this is entered.

    Raises FailedPrecondition on an address that means nothing, DatabaseUnavailable where nobody answers.
    """
    url = database_url(address)
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite:
        sqlite.prepare_folder(url)
    engine = _engine(url, schema)
    if is_sqlite:
        sqlite.prepare_engine(engine, gives_back=schema.gives_back)
    try:
        database = Database(engine, schema)
        await _migrated(database, url, schema)
        yield database
    finally:
        await _closed(engine)


async def _closed(engine: AsyncEngine) -> None:
    """Politely, where the database answers: each connection waits for its word. Else the end of the process closes them."""
    try:
        async with asyncio.timeout(_CLOSE_S):
            await engine.dispose()
    except TimeoutError:
        _log.warning("database_not_closed", why=f"it did not answer for {_CLOSE_S:g} s")


async def _migrated(database: Database, url: URL, schema: Schema) -> None:
    try:
        await database.migrate()
    except (DBAPIError, DatabaseDamaged) as error:
        shown, why = url.render_as_string(hide_password=True), error.orig if isinstance(error, DBAPIError) else error.message
        raise FailedPrecondition(
            f"cannot use the database {shown}: {why}; give the {schema.owner} another, or repair it"
        ) from error


def database_url(address: str) -> URL:
    """The SQLAlchemy URL of an address; a bare path means an SQLite file."""
    if "://" not in address:
        return URL.create(sqlite.DRIVER, database=str(Path(address).absolute()))
    try:
        url = make_url(address)
    except (ArgumentError, ValueError) as error:
        # Not shown: it may hold a password.
        raise FailedPrecondition("the database address is neither a path nor a URL like postgresql://user@host/name") from error
    return url.set(drivername=_ASYNC_DRIVERS.get(url.drivername, url.drivername))


def _engine(url: URL, schema: Schema) -> AsyncEngine:
    try:
        options = postgres.engine_options(schema.owner) if url.drivername == postgres.DRIVER else {}
        # What statements were about stays out of errors, which are logged: hashes of passwords and of keys are among it.
        return create_async_engine(url, hide_parameters=True, **options)
    except (ModuleNotFoundError, NoSuchModuleError, ArgumentError) as error:
        shown = url.render_as_string(hide_password=True)
        raise FailedPrecondition(f"no driver for the database {shown}: {error}; install it beside penstock") from error


def _revision(connection: Connection, schema: Schema) -> str | None:
    if not inspect(connection).has_table(schema.version_table):
        return None
    found = connection.execute(text(f"SELECT version_num FROM {schema.version_table}")).scalar()  # noqa: S608 (our own name)
    return None if found is None else str(found)


def _bring_up_to_date(connection: Connection, schema: Schema) -> None:
    revision = _revision(connection, schema)
    if revision == schema.head:
        return
    if revision is None and not inspect(connection).get_table_names():
        _create(connection, schema)
    else:
        _upgrade(connection, schema)


def _create(connection: Connection, schema: Schema) -> None:
    """An empty database gets the tables as they are now: what all steps together make, as a test proves.

    It spares the first start the loading of Alembic, most of a second of CPU.
    """
    schema.metadata.create_all(connection)
    connection.execute(text(f"CREATE TABLE {schema.version_table} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text(f"INSERT INTO {schema.version_table} VALUES (:head)"), {"head": schema.head})  # noqa: S608


def _upgrade(connection: Connection, schema: Schema) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", migrations_folder(schema))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise SchemaUnknown(
            f"the {schema.owner}'s database is at revision {_revision(connection, schema)}, which this release "
            f"(at {schema.head}) does not know; run the release that wrote it, or give it another database"
        ) from error


def migrations_folder(schema: Schema) -> str:
    """Where the steps lie. Raises FailedPrecondition."""
    spec = importlib.util.find_spec(schema.migrations)
    if spec is None or not spec.submodule_search_locations:
        raise FailedPrecondition(f"the {schema.owner}'s migrations are not installed; reinstall penstock")
    # A percent sign in the path would be taken for interpolation by the configuration.
    return spec.submodule_search_locations[0].replace("%", "%%")
