"""In which region a process finds itself to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import GatewaySettings
from runtime.config import LocatedSettings, read_settings
from runtime.errors import FailedPrecondition, InvalidArgument, PenstockError
from runtime.own_region import located
from scheduler.config import SchedulerSettings
from tests.runtime.test_geolocation import known
from tests.support.manual_clock import ManualClock
from worker.config import WorkerSettings

OVERRIDES = "10.1.0.0/16=asia,2001:db8::/32=africa"


def region(*words: str) -> str:
    settings = read_settings(LocatedSettings, ["--identity-dir=x", *words])
    return located(settings, ManualClock()).region


def test_a_region_that_is_named_is_the_one() -> None:
    assert region("--region=europe", "--public-address=10.1.2.3", f"--region-overrides={OVERRIDES}") == "europe"
    assert region() == "local"


def test_the_public_address_says_it_else_the_advertised_one(tmp_path: Path) -> None:
    file = f"--geolocation-database={known(tmp_path)}"
    assert region("--region=auto", "--public-address=81.2.69.160", "--advertise=8.8.8.8:7000", file) == "europe"
    assert region("--region=auto", "--advertise=8.8.8.8:7000", file) == "north-america"
    assert region("--region=auto", "--advertise=[2a02:8000::1]:7000", file) == "europe"
    assert region("--region=auto", "--advertise=10.1.2.3:7000", f"--region-overrides={OVERRIDES}") == "asia"
    assert region("--region=auto", "--advertise=[2001:db8::1]:7000", f"--region-overrides={OVERRIDES}") == "africa"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "nothing to look an address up in"),
        ([f"--region-overrides={OVERRIDES}"], "needs an address to go by"),
        ([f"--region-overrides={OVERRIDES}", "--advertise=node1.example:7000"], "--advertise names 'node1.example'"),
        ([f"--region-overrides={OVERRIDES}", "--public-address=here"], "--public-address names 'here'"),
        ([f"--region-overrides={OVERRIDES}", "--advertise=10.2.0.1:7000"], "10.2.0.1 is, a private address"),
        ([f"--region-overrides={OVERRIDES}", "--public-address=9.9.9.9"], "in which region 9.9.9.9 is;"),
        (["--region-overrides=10.1.0.0/16", "--public-address=9.9.9.9"], "--region-overrides: '10.1.0.0/16' names no region"),
        (["--geolocation-database=/nowhere.mmdb", "--public-address=9.9.9.9"], "/nowhere.mmdb"),
    ],
)
def test_where_nothing_says_it_the_process_does_not_start(words: list[str], sentence: str) -> None:
    with pytest.raises(PenstockError) as caught:
        region("--region=auto", *words)
    assert isinstance(caught.value, FailedPrecondition | InvalidArgument)
    assert sentence in caught.value.message


def test_only_those_that_go_by_an_address_take_auto() -> None:
    with pytest.raises(InvalidArgument, match=r"--region: .*name the region"):
        read_settings(SchedulerSettings, ["--identity-dir=x", "--region=auto"])
    assert read_settings(WorkerSettings, ["--region=auto"]).region == "auto"
    words = ["--identity-dir=x", "--scheduler-address=a:1", "--registry-address=a:1", "--region=auto"]
    assert read_settings(GatewaySettings, words).region == "auto"
    with pytest.raises(InvalidArgument, match="--region"):
        read_settings(WorkerSettings, ["--region=Europe!"])
