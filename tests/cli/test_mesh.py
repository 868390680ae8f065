"""What `penstock up` refuses to begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.mesh import MeshOptions, plan_mesh
from runtime.errors import InvalidArgument


def test_a_mesh_on_one_machine_has_its_region_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="name the region of this mesh"):
        plan_mesh(MeshOptions(tmp_path / "data", region="auto"))
    assert not (tmp_path / "data").exists()
