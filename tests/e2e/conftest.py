"""One mesh for all end-to-end tests that only use it; those that break it start their own."""

from collections.abc import Iterator

import pytest

from tests.support.mesh import RunningMesh, running_mesh


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("mesh") / "data") as running:
        yield running
