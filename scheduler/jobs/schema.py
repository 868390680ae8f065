"""The tables of jobs, files and batches. What changes here changes in `migrations/versions/` too; a test compares the two.

Only types that SQLite and PostgreSQL share. Times are milliseconds since 1970; 0 stands for "never". The registry may keep its
tables in the same database, so the names say whose they are. What is large stands in tables of its own: SQLite writes the whole
of a row that changes.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from runtime.database import Schema

HEAD = "0001"
"""The migration that makes these tables what they are here."""

NO_DUE_MS = 2**62
"""Of a tenant that has no queued job."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _number(name: str, **options: Any) -> Column[int]:
    return Column(name, BigInteger, nullable=False, default=0, **options)


def _text(name: str, length: int, *arguments: Any, **options: Any) -> Column[str]:
    return Column(name, String(length), *arguments, nullable=False, default="", **options)


tenants = Table(
    # What each tenant has here, counted as it changes, and whose turn it is.
    "job_tenants",
    metadata,
    Column("tenant", String(63), primary_key=True),
    _number("open_jobs"),
    _number("stored_bytes"),
    _number("next_due_ms", index=True),  # no queued job of the tenant is due before; NO_DUE_MS: there is none
    _number("served"),  # grows with each claim: the least is next
)

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String(48), primary_key=True),
    _text("tenant", 63),
    _text("key_id", 64),
    Column("allowed_models", JSON, nullable=False),
    _text("model", 256),
    _text("state", 16),
    _number("priority"),
    _number("rank_ms"),  # jobs of a tenant are claimed in this order
    _number("attempts"),
    _number("tries"),
    _number("max_attempts"),
    _number("created_at_ms"),
    _number("due_at_ms"),
    _number("ended_at_ms"),
    _number("expires_at_ms"),
    _number("keep_ms"),
    _number("forgotten_at_ms"),
    _number("look_at_ms", index=True),  # when time alone changes it: it expires, its claim runs out, it is forgotten
    Column("claim", String(64), unique=True),
    Column("idempotency_key", String(128)),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("batch_id", String(40)),
    Column("line", Integer),
    _text("custom_id", 512),
    _number("call_bytes"),
    _number("answer_bytes"),
    _number("revision"),
    _text("reason", 1000),
    UniqueConstraint("tenant", "idempotency_key"),
    UniqueConstraint("batch_id", "line"),
    Index("ix_jobs_turn", "tenant", "state", "rank_ms", "job_id"),  # all of it: lines of a batch have one rank
    Index("ix_jobs_tenant_page", "tenant", "created_at_ms", "job_id"),
    Index("ix_jobs_state_page", "state", "created_at_ms", "job_id"),
    Index("ix_jobs_batch_state", "batch_id", "state"),
)


def _of_job() -> Column[str]:
    return Column("job_id", String(48), ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True)


calls = Table("job_calls", metadata, _of_job(), _text("path", 128), Column("body", LargeBinary, nullable=False))

answers = Table("job_answers", metadata, _of_job(), _number("status"), Column("body", LargeBinary, nullable=False))

attempts = Table(
    "job_attempts",
    metadata,
    _of_job(),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    _text("claimed_by", 64),
    _number("began_at_ms"),
    _number("ended_at_ms"),
    _text("outcome", 32),
    _text("message", 1000),
)

files = Table(
    "job_files",
    metadata,
    Column("file_id", String(40), primary_key=True),
    _text("tenant", 63),
    _text("name", 512),
    _text("purpose", 32),
    _number("size_bytes"),
    _text("sha256", 64),
    _number("created_at_ms"),
    _number("stored_at_ms"),  # 0: it is still being written, and nobody's to see
    _number("expires_at_ms", index=True),
    Index("ix_job_files_page", "tenant", "created_at_ms", "file_id"),
)

chunks = Table(
    "job_file_chunks",
    metadata,
    Column("file_id", String(40), ForeignKey("job_files.file_id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("batch_id", String(40), primary_key=True),
    _text("tenant", 63),
    _text("key_id", 64),
    Column("allowed_models", JSON, nullable=False),
    _text("endpoint", 64),
    _text("completion_window", 8),
    _text("input_file_id", 40, index=True),
    _text("output_file_id", 40),
    _text("error_file_id", 40),
    _text("status", 16),
    _number("total"),
    _number("completed"),
    _number("failed"),
    _number("created_at_ms"),
    _number("in_progress_at_ms"),
    _number("finalizing_at_ms"),
    _number("completed_at_ms"),
    _number("failed_at_ms"),
    _number("expired_at_ms"),
    _number("cancelling_at_ms"),
    _number("cancelled_at_ms"),
    _number("expires_at_ms"),
    Column("metadata", JSON, nullable=False),
    Column("errors", JSON, nullable=False),
    _number("lines_made"),  # jobs were made of so many lines,
    _number("lines_read"),  # which are so many of the file's, the empty ones among them,
    _number("bytes_read"),  # and so many of its bytes
    _text("lease", 32),
    _number("lease_until_ms"),
    _number("look_at_ms", index=True),  # when somebody is to go on with it; once it ended: when it is forgotten
    Index("ix_batches_page", "tenant", "created_at_ms", "batch_id"),
)

JOBS = Schema("scheduler", metadata, HEAD, "scheduler.jobs.migrations", version_table="scheduler_version")
