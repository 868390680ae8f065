"""What this machine and this process do, for Prometheus: Triton's nv_cpu_* and nv_gpu_* and the usual process_*.

Read when scraped. GPUs are those that NVML shows when the endpoint opens; without a driver their metrics are not there. Source:
Triton's docs/user_guide/metrics.md for names, units and the label gpu_uuid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psutil
from prometheus_client import GCCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

_LABELS = ("gpu_uuid",)


@dataclass(frozen=True, slots=True)
class _Gpu:
    uuid: str
    handle: Any


def register_machine(registry: CollectorRegistry) -> None:
    """Have the registry read machine and process whenever it is scraped."""
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_CpuCollector())
    nvml = _nvml()
    if nvml is not None:
        registry.register(GpuCollector(nvml))


class _CpuCollector(Collector):
    def __init__(self) -> None:
        psutil.cpu_percent()  # from here to the first scrape

    def collect(self) -> Iterable[Metric]:
        memory = psutil.virtual_memory()
        for name, meaning, value in (
            ("nv_cpu_utilization", "Part of the machine's CPU time in use since the last scrape", psutil.cpu_percent() / 100),
            ("nv_cpu_memory_total_bytes", "The machine's memory", memory.total),
            ("nv_cpu_memory_used_bytes", "What of it is in use", memory.used),
        ):
            yield GaugeMetricFamily(name, meaning, value=value)


class GpuCollector(Collector):
    """Reads NVML, which is given as the module it is."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        self._gpus = [_Gpu(_text(nvml.nvmlDeviceGetUUID(handle)), handle) for handle in handles]
        self._readings: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
            ("nv_gpu_utilization", "Part of the time in which the GPU computed", self._utilisation),
            ("nv_gpu_memory_total_bytes", "The GPU's memory", lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).total),
            ("nv_gpu_memory_used_bytes", "What of it is in use", lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            ("nv_gpu_power_usage", "Watts", lambda handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            ("nv_gpu_power_limit", "Watts at most", lambda handle: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
            ("nv_energy_consumption", "Joules since the start of the driver", self._energy_j),
        )

    def collect(self) -> Iterable[Metric]:
        for name, meaning, read in self._readings:
            family = GaugeMetricFamily(name, meaning, labels=_LABELS)
            for gpu in self._gpus:
                try:
                    family.add_metric((gpu.uuid,), read(gpu.handle))
                except self._nvml.NVMLError:
                    continue  # not every GPU measures everything
            yield family

    def _utilisation(self, handle: Any) -> float:
        return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100

    def _energy_j(self, handle: Any) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000


def _nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
