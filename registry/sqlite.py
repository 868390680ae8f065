"""What SQLite needs to behave like a database server: real transactions, foreign keys, readers beside a writer, patience.

The one file that knows SQLite. `database.py` prepares its engine here; other databases pass through untouched.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.ext.asyncio import AsyncEngine

DRIVER = "sqlite+aiosqlite"
_BUSY_TIMEOUT_MS = 5_000
_TURNS = 20


def prepare_folder(url: URL) -> None:
    """SQLite makes the file, but not the folder it lies in."""
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)


def prepare_engine(engine: AsyncEngine) -> None:
    """Set every connection up, and open transactions that write as writers.

    A reader that turns writer fails at once if another wrote meanwhile, whatever the busy timeout
    (https://www.sqlite.org/isolation.html); BEGIN IMMEDIATE waits its turn instead.
    """

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: DBAPIConnection, _: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself; `begin` below does
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={_BUSY_TIMEOUT_MS}", "foreign_keys=ON", "synchronous=FULL"):
            cursor.execute(f"PRAGMA {pragma}")
        _write_ahead(cursor)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("penstock_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


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
