"""What SQLite needs to behave like a database server: real transactions, foreign keys, readers beside a writer, patience.

The one file that knows SQLite. `database.py` prepares its engine here; other databases pass through untouched.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

DRIVER = "sqlite+aiosqlite"
_BUSY_TIMEOUT_MS = 5_000
_TURNS = 20


def prepare_folder(url: URL) -> None:
    """SQLite makes the file, but not the folder it lies in."""
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)


def prepare_engine(engine: AsyncEngine, *, gives_back: bool = False) -> None:
    """Set every connection up, open transactions that write as writers, and work on one file alone.

    `gives_back`: a file that is new can be shrunk later, by PRAGMA incremental_vacuum.

    A reader that turns writer fails at once if another wrote meanwhile, whatever the busy timeout
    (https://www.sqlite.org/isolation.html); BEGIN IMMEDIATE waits its turn instead.
    """

    file = _File(engine.url.database)

    @event.listens_for(engine.sync_engine, "do_connect")
    def look(*_: Any) -> None:
        file.check()  # before SQLite would make an empty one where it is missing

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: DBAPIConnection, _: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself; `begin` below does
        cursor = connection.cursor()
        # Before anything is written: https://www.sqlite.org/pragma.html#pragma_auto_vacuum
        shrinks = ("auto_vacuum=INCREMENTAL",) if gives_back else ()
        for pragma in (f"busy_timeout={_BUSY_TIMEOUT_MS}", *shrinks, "foreign_keys=ON", "synchronous=FULL"):
            cursor.execute(f"PRAGMA {pragma}")
        _write_ahead(cursor)
        cursor.close()
        file.remember()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        file.check()
        writes = connection.get_execution_options().get("penstock_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def is_damage(error: DBAPIError) -> bool:
    """Whether the file is none of SQLite's any more, or not in order."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)  # extended codes say more


class _File:
    """Which file the database is. Connections go on with one that was deleted or replaced, and what they write is lost."""

    def __init__(self, path: str | None) -> None:
        self._path = path if path and path != ":memory:" else None
        self._known: tuple[int, int] | None = None

    def remember(self) -> None:
        self._known = self._known or self._now()

    def check(self) -> None:
        """Raises OSError."""
        if self._known is None or (now := self._now()) == self._known:
            return
        if now is None:
            raise FileNotFoundError(f"its file {self._path} was taken away; put it back, or stop the service and restore it")
        raise OSError(f"its file {self._path} was replaced by another; restart the service if that one is to be used")

    def _now(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino


def _write_ahead(cursor: DBAPICursor) -> None:
    """Readers beside a writer. Two who turn a new file to it at once fail at once, whatever the busy timeout; one wins."""
    for attempt in range(1, _TURNS + 1):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if attempt == _TURNS:
                raise
            cursor.execute("BEGIN IMMEDIATE")  # waits, as the timeout says, until the other is done
            cursor.execute("COMMIT")
