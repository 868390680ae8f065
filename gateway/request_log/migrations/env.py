"""Alembic's entry: run the steps on the connection that was handed over, inside its transaction.

The version stands in a table of its own: the registry and the scheduler may keep theirs in the same database.
"""

from __future__ import annotations

from alembic import context

from gateway.request_log.schema import REQUEST_LOG, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=REQUEST_LOG.version_table
)
context.run_migrations()
