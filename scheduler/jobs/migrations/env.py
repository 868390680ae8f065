"""Alembic's entry: run the steps on the connection that was handed over, inside its transaction.

The version stands in a table of its own: the registry may keep its own in the same database.
"""

from __future__ import annotations

from alembic import context

from scheduler.jobs.schema import JOBS, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=JOBS.version_table
)
context.run_migrations()
