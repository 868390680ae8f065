"""The tables. What changes here changes in `migrations/versions/` too; a test compares the two.

Only types that SQLite and PostgreSQL share. Times are milliseconds since 1970; 0 stands for "never".
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, ForeignKey, LargeBinary, MetaData, String, Table, Text, UniqueConstraint

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

models = Table(
    "models",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("description", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("model", String(128), ForeignKey("models.model"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("engine", String(32), nullable=False),
    Column("task", String(32), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("published_at_ms", BigInteger, nullable=False),
    Column("signer_id", String(20), nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("ed25519_public_key", LargeBinary, nullable=False),
    UniqueConstraint("model", "number"),
)

tenants = Table(
    "tenants",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("created_at_ms", BigInteger, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("tenant", String(63), ForeignKey("tenants.tenant"), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("role", String(16), nullable=False),
    Column("secret_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("allowed_models", JSON, nullable=False),
    Column("requests_per_s", Float(53), nullable=False),
    Column("burst", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger, nullable=False),
)
