"""A registry's accounts, and a profile that leads to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cli.profile import Profile
from runtime.identity import NodeIdentity, Role
from tests.registry.accounts.rig import Office, office_on
from tests.registry.harness import enrol_all, ground_on


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, NodeIdentity]:
    return enrol_all(tmp_path_factory.mktemp("identities"))


@pytest.fixture
async def office(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Office]:
    async with ground_on(str(tmp_path / "registry.db")) as ground, office_on(ground, identities) as opened:
        yield opened


@pytest.fixture
def profile(office: Office, tmp_path: Path) -> Profile:
    operator = str(office.identities[Role.OPERATOR].folder)
    made = Profile("", "", "", f"127.0.0.1:{office.ports[0]}", "", operator, "local")
    made.write(tmp_path)
    return made
