"""The tables of the request log. What changes here changes in `migrations/versions/` too; a test compares the two.

Times are milliseconds since 1970. Where the database is PostgreSQL, `request_log` is split into one partition for each day.
Requests go with their days; the sums stay for longer. Registry and scheduler may keep their tables in the same database.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, MetaData, PrimaryKeyConstraint, String, Table, Text

from gateway.request_log.types import SUMS
from runtime.database import Schema

HEAD = "0001"
"""The migration that makes these tables what they are here."""

PARTITION_BY = "RANGE (at_ms)"
metadata = MetaData()


def _number(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _small(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False)


def _text(name: str, length: int) -> Column[str]:
    return Column(name, String(length), nullable=False)


requests = Table(
    "request_log",
    metadata,
    _number("at_ms"),
    _number("row_id"),
    _text("request_id", 128),
    _text("tenant", 63),
    _text("key_id", 64),
    _text("method", 64),
    _text("asked", 256),
    _text("model", 256),
    _text("version", 64),
    _text("worker_id", 64),
    _text("code", 32),
    _text("reason", 64),
    _flag("streamed"),
    _small("attempts"),
    _flag("hedged"),
    _small("migrations"),
    _text("fell_back", 256),
    _text("cache", 8),
    _number("prompt_tokens"),
    _number("completion_tokens"),
    _number("request_bytes"),
    _number("answer_bytes"),
    Column("elapsed_ms", Double, nullable=False),
    Column("first_answer_ms", Double),
    _text("region", 32),
    _text("gateway", 64),
    _small("process"),
    _text("trace_id", 32),
    Column("request_body", Text),
    Column("answer_body", Text),
    PrimaryKeyConstraint("at_ms", "row_id", name="pk_request_log"),
    Index("ix_request_log_tenant", "tenant", "at_ms", "row_id"),
    Index("ix_request_log_request_id", "request_id"),
    postgresql_partition_by=PARTITION_BY,
    sqlite_with_rowid=False,
)

usage = Table(
    # What each key did with each model on each day (UTC): added to in the transaction that writes the requests.
    "request_usage",
    metadata,
    _text("tenant", 63),
    _number("day_ms"),
    _text("key_id", 64),
    _text("model", 256),
    *(_number(name) for name in SUMS),
    PrimaryKeyConstraint("tenant", "day_ms", "key_id", "model", name="pk_request_usage"),
    Index("ix_request_usage_day_ms", "day_ms"),
)

REQUEST_LOG = Schema(
    "request log", metadata, HEAD, "gateway.request_log.migrations", version_table="request_log_version", gives_back=True
)
