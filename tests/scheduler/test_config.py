"""What a scheduler tells others of where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.config import read_settings
from runtime.errors import FailedPrecondition
from scheduler.config import SchedulerSettings, own_address


def settings(tmp_path: Path, *words: str) -> SchedulerSettings:
    return read_settings(SchedulerSettings, ["--identity-dir", str(tmp_path), *words])


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ((), "127.0.0.1:7"),
        (("--host", "10.0.0.3"), "10.0.0.3:7"),
        (("--host", "fd00::1"), "[fd00::1]:7"),
        (("--host", "0.0.0.0", "--advertise", "scheduler.mesh:50052"), "scheduler.mesh:50052"),
    ],
)
def test_where_gateways_reach_it(tmp_path: Path, words: tuple[str, ...], address: str) -> None:
    assert own_address(settings(tmp_path, *words), 7) == address


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_nobody_could_call_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(FailedPrecondition, match="--advertise"):
        own_address(settings(tmp_path, "--host", host), 7)
