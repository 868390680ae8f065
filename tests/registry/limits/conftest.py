from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from runtime.identity import NodeIdentity, Role
from tests.registry.accounts.rig import Office, office_on
from tests.registry.harness import Ground


@pytest.fixture
async def office(ground: Ground, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Office]:
    """On SQLite and on PostgreSQL."""
    async with office_on(ground, identities) as opened:
        yield opened


@pytest.fixture
async def sqlite_office(sqlite_ground: Ground, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Office]:
    """For what does not depend on the database."""
    async with office_on(sqlite_ground, identities) as opened:
        yield opened
