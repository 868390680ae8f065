"""What PostgreSQL needs to be a service's database: bounded waits, one migration at a time, its failures in our words.

The one file that knows PostgreSQL. `database.py` asks it; other databases pass it by.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

BACKEND = "postgresql"
DRIVER = "postgresql+asyncpg"
_MIGRATION_LOCK = 7_366_736_475  # any number, as long as it is ours alone
_CONNECT_TIMEOUT_S, _COMMAND_TIMEOUT_S, _POOL_TIMEOUT_S = 5.0, 60.0, 5.0
_NOT_NOW = ("08", "53", "57P", "58", "25006")
"""SQLSTATEs, by how they begin: connection gone, out of resources, going down or coming up, I/O, a read-only standby.

Source: PostgreSQL, Appendix A, Error Codes.
"""
_AGAIN = ("40001", "40P01", "55P03")
"""Serialisation failure, deadlock, lock timeout."""

_DAMAGE = ("XX001", "XX002")
"""Corrupt data, corrupt index."""


def engine_options(owner: str) -> dict[str, Any]:
    """Of `create_async_engine`; `owner` is the service that the server sees."""
    return {
        "pool_pre_ping": True,
        "pool_timeout": _POOL_TIMEOUT_S,
        "pool_size": 8,
        "max_overflow": 8,
        "connect_args": {
            "timeout": _CONNECT_TIMEOUT_S,
            "command_timeout": _COMMAND_TIMEOUT_S,
            "server_settings": {
                "application_name": f"penstock-{owner}",
                "lock_timeout": "10s",
                "idle_in_transaction_session_timeout": "60s",
            },
        },
    }


async def one_at_a_time(connection: AsyncConnection) -> None:
    """Until the end of the transaction: two replicas that start on an empty database would both make its tables."""
    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})


def is_not_now(error: DBAPIError) -> bool:
    """Whether the database could not answer, and may soon."""
    return error.connection_invalidated or _sqlstate(error).startswith(_NOT_NOW)


def is_lost_race(error: DBAPIError) -> bool:
    """Whether another transaction was in the way: the same again may do."""
    return _sqlstate(error) in _AGAIN


def is_damage(error: DBAPIError) -> bool:
    """Whether what is stored cannot be read any more."""
    return _sqlstate(error) in _DAMAGE


def _sqlstate(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")
