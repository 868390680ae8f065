from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runtime.identity import NodeIdentity, Role
from tests.registry.harness import Ground, enrol_all, ground_on
from tests.support.postgres import Postgres, running_postgres
from tests.support.s3 import S3Server, running_s3


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, NodeIdentity]:
    return enrol_all(tmp_path_factory.mktemp("identities"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield str(tmp_path / "registry.db")
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
    async with ground_on(str(tmp_path / "registry.db")) as opened:
        yield opened
