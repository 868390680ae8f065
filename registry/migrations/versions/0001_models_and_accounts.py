"""Models, versions, tenants and keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("model", name="pk_models"),
    )
    op.create_table(
        "versions",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("engine", sa.String(32), nullable=False),
        sa.Column("task", sa.String(32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("published_at_ms", sa.BigInteger, nullable=False),
        sa.Column("signer_id", sa.String(20), nullable=False),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("ed25519_public_key", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_versions"),
        sa.ForeignKeyConstraint(["model"], ["models.model"], name="fk_versions_model"),
        sa.UniqueConstraint("model", "number", name="uq_versions_model"),
    )
    op.create_table(
        "tenants",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", name="pk_tenants"),
    )
    op.create_table(
        "keys",
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("allowed_models", sa.JSON, nullable=False),
        sa.Column("requests_per_s", sa.Float(53), nullable=False),
        sa.Column("burst", sa.BigInteger, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_keys"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name="fk_keys_tenant"),
        sa.UniqueConstraint("secret_sha256", name="uq_keys_secret_sha256"),
    )
    op.create_index("ix_keys_tenant", "keys", ["tenant"])


def downgrade() -> None:
    for table in ("keys", "tenants", "versions", "models"):
        op.drop_table(table)
