from __future__ import annotations

from pathlib import Path

import pytest

from tests.registry.files.rig import Rig, rig_on
from tests.registry.harness import Ground


@pytest.fixture
def rig(ground: Ground, tmp_path: Path) -> Rig:
    """On both databases."""
    return rig_on(ground, tmp_path / "objects")


@pytest.fixture
def sqlite_rig(sqlite_ground: Ground, tmp_path: Path) -> Rig:
    return rig_on(sqlite_ground, tmp_path / "objects")
