"""What this machine has, and which tiers that qualifies for.

Owns the reading (psutil; NVML where there is one) and the thresholds' default table. Decides tiers purely: a worker joins
every tier whose thresholds it meets. Cores are physical ones that this process may use. Of several GPUs the largest counts,
because a copy of a model runs on one device. Sizes in the table are decimal gigabytes, as memory and disks are sold: a
machine with "64 GB" offers a little less than 64 GiB.
"""

from __future__ import annotations

import os
import platform
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from runtime.errors import Code, PenstockError

GB = 1_000_000_000
_FIELDS = ("cpu_cores", "memory_gb", "gpu_memory_gb", "disk_gb")


class TiersRefused(PenstockError, code=Code.FAILED_PRECONDITION, reason="TIERS_REFUSED"):
    """The tiers file cannot be read as one."""


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_bytes: int
    compute_capability: str
    """Such as 9.0."""


@dataclass(frozen=True, slots=True)
class Hardware:
    cpu_model: str
    cpu_cores: int
    memory_bytes: int
    disk_free_bytes: int
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class Tier:
    """The least that a worker of this tier has."""

    name: str
    cpu_cores: int
    memory_bytes: int
    gpu_memory_bytes: int
    disk_bytes: int

    def admits(self, hardware: Hardware) -> bool:
        gpu_memory_bytes = max((gpu.memory_bytes for gpu in hardware.gpus), default=0)
        return (
            hardware.cpu_cores >= self.cpu_cores
            and hardware.memory_bytes >= self.memory_bytes
            and gpu_memory_bytes >= self.gpu_memory_bytes
            and hardware.disk_free_bytes >= self.disk_bytes
        )


DEFAULT_TIERS = (
    Tier("A", 4, 8 * GB, 0, 20 * GB),
    Tier("B", 4, 12 * GB, 0, 30 * GB),  # 8 GB of GPU memory are recommended, not needed
    Tier("C", 8, 32 * GB, 24 * GB, 150 * GB),
    Tier("D", 16, 64 * GB, 48 * GB, 500 * GB),
)


def tiers_of(hardware: Hardware, tiers: Iterable[Tier] = DEFAULT_TIERS) -> tuple[str, ...]:
    """Names of all tiers that admit it, in the table's order."""
    return tuple(tier.name for tier in tiers if tier.admits(hardware))


def read_tiers(file: Path) -> tuple[Tier, ...]:
    """The table in a TOML file: one table per tier, with cpu_cores, memory_gb, gpu_memory_gb, disk_gb. Raises TiersRefused."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TiersRefused(f"cannot read the tiers in {file}: {error}") from error
    return tuple(_tier(file, name, fields) for name, fields in content.items())


def read_hardware(folder: Path) -> Hardware:
    """This machine, with the free space where `folder` lies (or will lie)."""
    return Hardware(
        _cpu_model(), _cpu_cores(), int(psutil.virtual_memory().total), read_disk_free_bytes(folder), _nvidia_gpus()
    )


def read_disk_free_bytes(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return int(psutil.disk_usage(str(folder)).free)


def _tier(file: Path, name: str, fields: Any) -> Tier:
    if not isinstance(fields, Mapping) or (unknown := sorted(set(fields) - set(_FIELDS))):
        seen = repr(fields) if not isinstance(fields, Mapping) else unknown[0]
        raise TiersRefused(f"{file}: tier {name!r} holds {seen}; its fields are: {', '.join(_FIELDS)}")
    numbers = [fields.get(field, 0) for field in _FIELDS]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise TiersRefused(
            f"{file}: tier {name!r} holds a value that is no number from 0; its fields are: {', '.join(_FIELDS)}"
        )
    cores, memory_gb, gpu_memory_gb, disk_gb = numbers
    return Tier(name, int(cores), int(memory_gb * GB), int(gpu_memory_gb * GB), int(disk_gb * GB))


def _cpu_cores() -> int:
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return min(cores, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else cores


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _nvidia_gpus() -> tuple[Gpu, ...]:
    """What NVML shows; none where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_nvidia_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _nvidia_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    text = name.decode() if isinstance(name, bytes) else str(name)
    return Gpu(text, int(nvml.nvmlDeviceGetMemoryInfo(handle).total), f"{major}.{minor}")
