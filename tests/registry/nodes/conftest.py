from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from runtime.identity import NodeIdentity, Role
from tests.registry.harness import Ground
from tests.registry.nodes.world import NodeWorld, node_world


@pytest.fixture
async def world(ground: Ground, identities: dict[Role, NodeIdentity]) -> AsyncIterator[NodeWorld]:
    """On both databases."""
    async with node_world(ground, identities) as opened:
        yield opened


@pytest.fixture
async def sqlite_world(sqlite_ground: Ground, identities: dict[Role, NodeIdentity]) -> AsyncIterator[NodeWorld]:
    """For what does not depend on the database."""
    async with node_world(sqlite_ground, identities) as opened:
        yield opened
