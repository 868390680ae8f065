"""The tables. What changes here changes in `migrations/versions/` too; a test compares the two.

Only types that SQLite and PostgreSQL share. Times are milliseconds since 1970; 0 stands for "never". A row with a `seal` is
authenticated as a whole, but for the columns marked UNSEALED (`seals.py`).
"""

from __future__ import annotations

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

from registry.columns import UNSEALED, Serial, moment, seal, words
from runtime.database import Schema

HEAD = "0001"
"""The migration that makes these tables what they are here."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

tenants = Table(
    "tenants",
    metadata,
    Column("tenant", String(63), primary_key=True),
    moment("created_at_ms"),
    Column("quota_bytes", BigInteger, nullable=False, default=0),  # 0 = no limit
    seal(),
)

users = Table(
    "users",
    metadata,
    Column("user_id", String(32), primary_key=True),
    words("tenant", 63, ForeignKey("tenants.tenant"), index=True),
    words("name", 128, unique=True),
    words("role", 16),
    Column("password_hash", Text, nullable=False),
    moment("created_at_ms"),
    moment("disabled_at_ms"),
    moment("last_login_at_ms", unsealed=True),
    seal(),
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_sha256", LargeBinary(32), primary_key=True),
    words("user_id", 32, ForeignKey("users.user_id"), index=True),
    moment("created_at_ms"),
    Column("expires_at_ms", BigInteger, nullable=False, index=True),
    seal(),
)

keys = Table(
    "keys",
    metadata,
    Column("key_id", String(32), primary_key=True),
    words("tenant", 63, ForeignKey("tenants.tenant"), index=True),
    words("name", 128),
    words("role", 16),
    Column("scopes", JSON, nullable=False),
    Column("secret_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("allowed_models", JSON, nullable=False),
    Column("requests_per_s", Float(53), nullable=False),
    Column("burst", BigInteger, nullable=False),
    moment("created_at_ms"),
    moment("expires_at_ms"),
    moment("revoked_at_ms"),
    words("rotated_to", 32),
    moment("last_used_at_ms", unsealed=True),
    seal(),
)

limits = Table(
    "limits",
    metadata,
    Column("limit_id", String(32), primary_key=True),
    # No foreign keys: an empty name means all of them, and a key's limits may outlive it until somebody needs their room.
    words("tenant", 63),
    words("key_id", 32),
    words("model", 128),
    words("scope", 16),
    words("set_by", 16),
    Column("requests_per_s", Float(53), nullable=False),
    Column("burst", BigInteger, nullable=False),
    Column("tokens_per_min", BigInteger, nullable=False),
    Column("concurrent_requests", BigInteger, nullable=False),
    Column("requests_per_day", BigInteger, nullable=False),
    Column("tokens_per_day", BigInteger, nullable=False),
    words("when_unsure", 16),
    Column("generation", BigInteger, nullable=False),
    seal(),
    Index("ix_limits_tenant_key_id", "tenant", "key_id"),
)

limit_changes = Table(
    # One row, once there ever was a limit: how new what the database says of limits is. Who changes them holds it.
    "limit_changes",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("generation", BigInteger, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("model", String(128), primary_key=True),
    words("tenant", 63, ForeignKey("tenants.tenant"), index=True),
    Column("description", Text, nullable=False),
    Column("shared_with", JSON, nullable=False),
    moment("created_at_ms"),
    Column("generation", BigInteger, nullable=False, info=UNSEALED),
    seal(),
)

versions = Table(
    "versions",
    metadata,
    Column("digest", String(64), primary_key=True),
    words("model", 128, ForeignKey("models.model")),
    Column("number", BigInteger, nullable=False),
    words("engine", 32),
    words("task", 32),
    Column("size_bytes", BigInteger, nullable=False),
    moment("published_at_ms"),
    words("signer_id", 20),
    Column("manifest", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("ed25519_public_key", LargeBinary, nullable=False),
    moment("withdrawn_at_ms"),
    Column("withdrawn_because", Text, nullable=False),
    seal(),
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
    moment("moved_at_ms"),
    Column("pending_number", BigInteger, nullable=False),  # 0 = nothing is under way
    Column("pending_weight", Integer, nullable=False),
    moment("pending_since_ms"),
    words("pending_promotes", 64),
    words("pending_kind", 16),
    words("pending_by", 64),
    seal(),
)

alias_moves = Table(
    "alias_moves",
    metadata,
    Column("move", Serial, primary_key=True, autoincrement=True, info=UNSEALED),
    words("model", 128, ForeignKey("models.model")),
    words("alias", 64),
    Column("generation", BigInteger, nullable=False),
    Column("from_number", BigInteger, nullable=False),
    Column("to_number", BigInteger, nullable=False),
    Column("weight", Integer, nullable=False),
    moment("at_ms"),
    words("by", 64),
    words("kind", 16),
    Column("reason", Text, nullable=False),
    seal(),
    UniqueConstraint("model", "alias", "generation"),
)

signers = Table(
    "signers",
    metadata,
    Column("signer_id", String(20), primary_key=True),
    Column("tenant", String(63), ForeignKey("tenants.tenant"), primary_key=True),
    words("name", 128),
    Column("endorsement", LargeBinary, nullable=False),  # a serialised SignedEndorsement
    moment("endorsed_at_ms"),
    moment("expires_at_ms"),
    moment("revoked_at_ms"),
    words("endorsed_by", 20),
    seal(),
)

files = Table(
    "files",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("object_id", LargeBinary(16), nullable=False, unique=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("part_bytes", BigInteger, nullable=False),
    Column("wrapped_key", LargeBinary, nullable=False),
    words("master_key_id", 16),
    moment("created_at_ms"),
)

file_owners = Table(
    "file_owners",
    metadata,
    Column("tenant", String(63), ForeignKey("tenants.tenant"), primary_key=True),
    Column("sha256", String(64), ForeignKey("files.sha256"), primary_key=True, index=True),
    moment("since_ms"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("upload_id", String(32), primary_key=True),
    words("tenant", 63, ForeignKey("tenants.tenant")),
    words("sha256", 64),
    Column("size_bytes", BigInteger, nullable=False),
    Column("part_bytes", BigInteger, nullable=False),
    Column("object_id", LargeBinary(16), nullable=False, unique=True),
    Column("wrapped_key", LargeBinary, nullable=False),
    words("master_key_id", 16),
    moment("created_at_ms"),
    moment("touched_at_ms"),
    moment("verifying_until_ms"),
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
    words("role", 16),
    Column("tenants", JSON, nullable=False),
    moment("created_at_ms"),
    moment("expires_at_ms"),
    moment("used_at_ms"),
    words("node_id", 20),
    moment("revoked_at_ms"),
    seal(),
)

nodes = Table(
    "nodes",
    metadata,
    Column("node_id", String(20), primary_key=True),
    words("role", 16),
    Column("tenants", JSON, nullable=False),
    Column("hosts", JSON, nullable=False),
    Column("ed25519_public_key", LargeBinary, nullable=False),
    words("hardware_fingerprint", 64),
    moment("enrolled_at_ms"),
    moment("certificate_expires_at_ms"),
    moment("renewed_at_ms"),
    moment("revoked_at_ms"),
    Column("revoked_because", Text, nullable=False),
    seal(),
)

audit = Table(
    "audit",
    metadata,
    Column("entry", Serial, primary_key=True, autoincrement=True, info=UNSEALED),
    Column("at_ms", BigInteger, nullable=False, index=True),
    words("actor_kind", 16),
    words("actor_id", 64),
    words("tenant", 63),
    words("action", 64),
    words("subject", 256),
    words("outcome", 16),
    words("detail", 500),
    words("request_id", 128),
    seal(),
    Index("ix_audit_tenant_entry", "tenant", "entry"),
)

outbox = Table(
    # What the mesh is still to be told: written with the change it tells of, gone when etcd has it.
    "outbox",
    metadata,
    Column("notice", Serial, primary_key=True, autoincrement=True),
    words("kind", 16),
    words("subject", 128),
    moment("at_ms"),
)

REGISTRY = Schema("registry", metadata, HEAD, "registry.migrations")
