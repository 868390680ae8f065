from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.identity import NodeIdentity, Role
from tests.registry.mesh import Mesh, enrol_all, running_mesh


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, NodeIdentity]:
    return enrol_all(tmp_path_factory.mktemp("identities"))


@pytest.fixture
async def mesh(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path, identities) as running:
        yield running
