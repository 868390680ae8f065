"""An empty database of each kind, and the stores on it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.scheduler.jobs.ground import Ground, ground_on
from tests.support.postgres import Postgres, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "jobs.db")
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = f"test_{secrets.token_hex(4)}"
    yield server.new_database(name)
    server.drop_database(name)


@pytest.fixture
async def ground(database_address: str) -> AsyncIterator[Ground]:
    """On SQLite and on PostgreSQL."""
    async with ground_on(database_address) as opened:
        yield opened


@pytest.fixture
async def sqlite_ground(tmp_path: Path) -> AsyncIterator[Ground]:
    """For what does not depend on the database."""
    async with ground_on(str(tmp_path / "jobs.db")) as opened:
        yield opened
