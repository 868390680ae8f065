"""Whatever bytes come, every target holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.process import close_worker
from tests.fuzz.targets import TARGETS

EXAMPLES = 150
noise = st.one_of(st.binary(max_size=64), st.binary(min_size=64, max_size=600))


@pytest.fixture(scope="module", autouse=True)
def _worker() -> Iterator[None]:
    yield
    close_worker()


@pytest.mark.parametrize("name", TARGETS)
def test_holds_whatever_comes(name: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(noise)
    def holds(data: bytes) -> None:
        TARGETS[name](data)

    holds()
