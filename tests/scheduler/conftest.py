"""A mesh on a clock that stands still."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scheduler.mesh import Mesh
from tests.support.manual_clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def mesh(tmp_path: Path, clock: ManualClock) -> Mesh:
    return Mesh(tmp_path, clock)
