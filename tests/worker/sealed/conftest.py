"""A sealed port, open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.worker.sealed.rig import SealedPort, sealed_port


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[SealedPort]:
    async with sealed_port(tmp_path) as opened:
        yield opened
