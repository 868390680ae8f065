"""The tables. What changes here changes in `migrations/versions/` too; a test compares the two.

Only types that SQLite and PostgreSQL share. Times are milliseconds since 1970; 0 stands for "never". A row with a `seal` is
authenticated as a whole, but for the columns marked UNSEALED (`seals.py`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from runtime.database import Schema

HEAD = "0001"
"""The migration that makes these tables what they are here."""

UNSEALED = {"unsealed": True}
"""Of columns that change often and grant nothing."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in an INTEGER PRIMARY KEY


def _time(name: str, *, unsealed: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=False, default=0, info=UNSEALED if unsealed else {})


def _seal() -> Column[bytes]:
    return Column("seal", LargeBinary, nullable=False)


def _text(name: str, length: int, *arguments: Any, **options: Any) -> Column[str]:
    return Column(name, String(length), *arguments, nullable=False, **options)


tenants = Table(
    "tenants",
    metadata,
    Column("tenant", String(63), primary_key=True),
    _time("created_at_ms"),
    Column("quota_bytes", BigInteger, nullable=False, default=0),  # 0 = no limit
    _seal(),
)

users = Table(
    "users",
    metadata,
    Column("user_id", String(32), primary_key=True),
    _text("tenant", 63, ForeignKey("tenants.tenant"), index=True),
    _text("name", 128, unique=True),
    _text("role", 16),
    Column("password_hash", Text, nullable=False),
    _time("created_at_ms"),
    _time("disabled_at_ms"),
    _time("last_login_at_ms", unsealed=True),
    _seal(),
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_sha256", LargeBinary(32), primary_key=True),
    _text("user_id", 32, ForeignKey("users.user_id"), index=True),
    _time("created_at_ms"),
    Column("expires_at_ms", BigInteger, nullable=False, index=True),
    _seal(),
)

keys = Table(
    "keys",
    metadata,
    Column("key_id", String(32), primary_key=True),
    _text("tenant", 63, ForeignKey("tenants.tenant"), index=True),
    _text("name", 128),
    _text("role", 16),
    Column("scopes", JSON, nullable=False),
    Column("secret_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("allowed_models", JSON, nullable=False),
    Column("requests_per_s", Float(53), nullable=False),
    Column("burst", BigInteger, nullable=False),
    _time("created_at_ms"),
    _time("expires_at_ms"),
    _time("revoked_at_ms"),
    _text("rotated_to", 32),
    _time("last_used_at_ms", unsealed=True),
    _seal(),
)

models = Table(
    "models",
    metadata,
    Column("model", String(128), primary_key=True),
    _text("tenant", 63, ForeignKey("tenants.tenant"), index=True),
    Column("description", Text, nullable=False),
    Column("shared_with", JSON, nullable=False),
    _time("created_at_ms"),
    Column("generation", BigInteger, nullable=False, info=UNSEALED),
    _seal(),
)

versions = Table(
    "versions",
    metadata,
    Column("digest", String(64), primary_key=True),
    _text("model", 128, ForeignKey("models.model")),
    Column("number", BigInteger, nullable=False),
    _text("engine", 32),
    _text("task", 32),
    Column("size_bytes", BigInteger, nullable=False),
    _time("published_at_ms"),
    _text("signer_id", 20),
    Column("manifest", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("ed25519_public_key", LargeBinary, nullable=False),
    _time("withdrawn_at_ms"),
    Column("withdrawn_because", Text, nullable=False),
    _seal(),
    UniqueConstraint("model", "number"),
)

version_files = Table(
    "version_files",
    metadata,
    Column("digest", String(64), ForeignKey("versions.digest"), primary_key=True),
    Column("sha256", String(64), ForeignKey("files.sha256"), primary_key=True, index=True),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model", String(128), ForeignKey("models.model"), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),  # 0 = none yet: its first target is being warmed
    Column("weight", Integer, nullable=False),
    Column("generation", BigInteger, nullable=False),
    _time("moved_at_ms"),
    Column("pending_number", BigInteger, nullable=False),  # 0 = nothing is under way
    Column("pending_weight", Integer, nullable=False),
    _time("pending_since_ms"),
    _text("pending_promotes", 64),
    _text("pending_kind", 16),
    _text("pending_by", 64),
    _seal(),
)

alias_moves = Table(
    "alias_moves",
    metadata,
    Column("move", _Serial, primary_key=True, autoincrement=True, info=UNSEALED),
    _text("model", 128, ForeignKey("models.model")),
    _text("alias", 64),
    Column("generation", BigInteger, nullable=False),
    Column("from_number", BigInteger, nullable=False),
    Column("to_number", BigInteger, nullable=False),
    Column("weight", Integer, nullable=False),
    _time("at_ms"),
    _text("by", 64),
    _text("kind", 16),
    Column("reason", Text, nullable=False),
    _seal(),
    UniqueConstraint("model", "alias", "generation"),
)

signers = Table(
    "signers",
    metadata,
    Column("signer_id", String(20), primary_key=True),
    Column("tenant", String(63), ForeignKey("tenants.tenant"), primary_key=True),
    _text("name", 128),
    Column("endorsement", LargeBinary, nullable=False),  # a serialised SignedEndorsement
    _time("endorsed_at_ms"),
    _time("expires_at_ms"),
    _time("revoked_at_ms"),
    _text("endorsed_by", 20),
    _seal(),
)

files = Table(
    "files",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("object_id", LargeBinary(16), nullable=False, unique=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("part_bytes", BigInteger, nullable=False),
    Column("wrapped_key", LargeBinary, nullable=False),
    _text("master_key_id", 16),
    _time("created_at_ms"),
)

file_owners = Table(
    "file_owners",
    metadata,
    Column("tenant", String(63), ForeignKey("tenants.tenant"), primary_key=True),
    Column("sha256", String(64), ForeignKey("files.sha256"), primary_key=True, index=True),
    _time("since_ms"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("upload_id", String(32), primary_key=True),
    _text("tenant", 63, ForeignKey("tenants.tenant")),
    _text("sha256", 64),
    Column("size_bytes", BigInteger, nullable=False),
    Column("part_bytes", BigInteger, nullable=False),
    Column("object_id", LargeBinary(16), nullable=False, unique=True),
    Column("wrapped_key", LargeBinary, nullable=False),
    _text("master_key_id", 16),
    _time("created_at_ms"),
    _time("touched_at_ms"),
    _time("verifying_until_ms"),
    UniqueConstraint("tenant", "sha256"),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("upload_id", String(32), ForeignKey("uploads.upload_id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
)

join_tokens = Table(
    "join_tokens",
    metadata,
    Column("token_id", String(32), primary_key=True),
    Column("secret_sha256", LargeBinary(32), nullable=False),
    _text("role", 16),
    Column("tenants", JSON, nullable=False),
    _time("created_at_ms"),
    _time("expires_at_ms"),
    _time("used_at_ms"),
    _text("node_id", 20),
    _time("revoked_at_ms"),
    _seal(),
)

nodes = Table(
    "nodes",
    metadata,
    Column("node_id", String(20), primary_key=True),
    _text("role", 16),
    Column("tenants", JSON, nullable=False),
    Column("hosts", JSON, nullable=False),
    Column("ed25519_public_key", LargeBinary, nullable=False),
    _text("hardware_fingerprint", 64),
    _time("enrolled_at_ms"),
    _time("certificate_expires_at_ms"),
    _time("renewed_at_ms"),
    _time("revoked_at_ms"),
    Column("revoked_because", Text, nullable=False),
    _seal(),
)

audit = Table(
    "audit",
    metadata,
    Column("entry", _Serial, primary_key=True, autoincrement=True, info=UNSEALED),
    Column("at_ms", BigInteger, nullable=False, index=True),
    _text("actor_kind", 16),
    _text("actor_id", 64),
    _text("tenant", 63),
    _text("action", 64),
    _text("subject", 256),
    _text("outcome", 16),
    _text("detail", 500),
    _text("request_id", 128),
    _seal(),
    Index("ix_audit_tenant_entry", "tenant", "entry"),
)

outbox = Table(
    # What the mesh is still to be told: written with the change it tells of, gone when etcd has it.
    "outbox",
    metadata,
    Column("notice", _Serial, primary_key=True, autoincrement=True),
    _text("kind", 16),
    _text("subject", 128),
    _time("at_ms"),
)

REGISTRY = Schema("registry", metadata, HEAD, "registry.migrations")
