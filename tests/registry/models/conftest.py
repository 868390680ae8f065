from __future__ import annotations

import pytest

from tests.registry.harness import Ground
from tests.registry.models.rig import Desk, furnished


@pytest.fixture
async def desk(ground: Ground) -> Desk:
    """On SQLite and on PostgreSQL."""
    return await furnished(ground)


@pytest.fixture
async def sqlite_desk(sqlite_ground: Ground) -> Desk:
    """For what does not depend on the database."""
    return await furnished(sqlite_ground)
