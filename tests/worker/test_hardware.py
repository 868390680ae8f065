"""Which machine joins which tier, by the documented table and by one of one's own."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from worker.hardware import (
    DEFAULT_TIERS,
    GB,
    Gpu,
    Hardware,
    TiersRefused,
    read_disk_free_bytes,
    read_hardware,
    read_tiers,
    tiers_of,
)

MIB = 1024 * 1024
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", 24_564 * MIB, "8.9")
EXAMPLE = Hardware("AMD Ryzen 9 5950X", 16, 62 * 1024 * MIB, 1000 * GB, (RTX_4090,))
"""The documented worker in Manila, as its operating system tells it: "64 GB" are a little less than 64 GiB."""


def test_the_documented_example_joins_a_b_and_c_but_not_d() -> None:
    assert tiers_of(EXAMPLE) == ("A", "B", "C")


@pytest.mark.parametrize(
    ("hardware", "tiers"),
    [
        (replace(EXAMPLE, gpus=(Gpu("H200", 141 * GB, "9.0"),)), ("A", "B", "C", "D")),
        (replace(EXAMPLE, gpus=()), ("A", "B")),
        (replace(EXAMPLE, gpus=(RTX_4090, RTX_4090)), ("A", "B", "C")),  # one copy runs on one device
        (replace(EXAMPLE, cpu_cores=4), ("A", "B")),
        (replace(EXAMPLE, cpu_cores=3), ()),
        (replace(EXAMPLE, memory_bytes=8 * GB), ("A",)),
        (replace(EXAMPLE, disk_free_bytes=25 * GB), ("A",)),
        (replace(EXAMPLE, disk_free_bytes=19 * GB), ()),
    ],
)
def test_a_worker_joins_every_tier_whose_thresholds_it_meets(hardware: Hardware, tiers: tuple[str, ...]) -> None:
    assert tiers_of(hardware) == tiers


def test_a_threshold_is_met_exactly() -> None:
    for tier in DEFAULT_TIERS:
        least = Hardware("any", tier.cpu_cores, tier.memory_bytes, tier.disk_bytes, (Gpu("any", tier.gpu_memory_bytes, "9.0"),))
        assert tier.admits(least)
        assert not tier.admits(replace(least, cpu_cores=tier.cpu_cores - 1))
        assert not tier.admits(replace(least, memory_bytes=tier.memory_bytes - 1))
        assert not tier.admits(replace(least, disk_free_bytes=tier.disk_bytes - 1))


def test_tiers_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "tiers.toml"
    file.write_text("[edge]\ncpu_cores = 1\nmemory_gb = 0.5\n\n[big]\ngpu_memory_gb = 80\n")
    tiers = read_tiers(file)
    assert [(tier.name, tier.cpu_cores, tier.memory_bytes, tier.gpu_memory_bytes, tier.disk_bytes) for tier in tiers] == [
        ("edge", 1, GB // 2, 0, 0),
        ("big", 0, 0, 80 * GB, 0),
    ]
    assert tiers_of(EXAMPLE, tiers) == ("edge",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[edge]\ncpus = 1\n", "'edge' holds cpus; its fields are: cpu_cores"),
        ("edge = 1\n", "'edge' holds 1"),
        ("[edge]\ncpu_cores = 'four'\n", "no number"),
        ("[edge]\ncpu_cores = -1\n", "no number"),
        ("[edge\n", "cannot read the tiers"),
    ],
)
def test_a_file_that_is_no_table_of_tiers_is_refused_with_what_is_wrong(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "tiers.toml"
    file.write_text(content)
    with pytest.raises(TiersRefused, match=sentence):
        read_tiers(file)


def test_this_machine_can_be_read_also_before_the_cache_exists(tmp_path: Path) -> None:
    hardware = read_hardware(tmp_path / "not" / "yet")
    assert hardware.cpu_cores >= 1
    assert hardware.memory_bytes > MIB
    assert hardware.disk_free_bytes == pytest.approx(read_disk_free_bytes(tmp_path), rel=0.2)
    assert hardware.cpu_model


class FakeNvml:
    """One GPU, or a driver that fails where it is told to."""

    class NVMLError(Exception):
        pass

    def __init__(self, failing: str = "") -> None:
        self._failing = failing
        self.open = 0

    def _check(self, call: str) -> None:
        if call == self._failing:
            raise self.NVMLError(call)

    def nvmlInit(self) -> None:
        self._check("init")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._check("count")
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"NVIDIA H200"

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return 9, 0

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=141 * GB)


@pytest.mark.parametrize(
    ("failing", "gpus"),
    [("", (Gpu("NVIDIA H200", 141 * GB, "9.0"),)), ("init", ()), ("count", ())],
    ids=["one", "none", "broken"],
)
def test_gpus_are_those_that_nvml_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, gpus: tuple[Gpu, ...]
) -> None:
    nvml = FakeNvml(failing)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert read_hardware(tmp_path).gpus == gpus
    assert nvml.open == 0


def test_without_the_nvml_package_there_are_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_hardware(tmp_path).gpus == ()
