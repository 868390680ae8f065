"""Machine and process for Prometheus, and GPUs as NVML tells of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from worker.machine_metrics import GpuCollector, register_machine


class NvmlError(Exception):
    """As pynvml's."""


def two_gpus() -> Any:
    """NVML of a machine with two GPUs, of which one does not measure energy. No driver is here to ask."""

    def energy(handle: int) -> int:
        if handle:
            raise NvmlError
        return 4000

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=1000, used=10 * (handle + 1)),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=50),
        nvmlDeviceGetPowerUsage=lambda handle: 90_500,
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000,
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )


def page_of(registry: CollectorRegistry) -> list[str]:
    return generate_latest(registry).decode().splitlines()


def test_cpu_memory_and_process_under_their_usual_names() -> None:
    registry = CollectorRegistry()
    register_machine(registry)
    page = page_of(registry)
    names = {line.split(" ")[0].partition("{")[0] for line in page if not line.startswith("#")}
    assert {"nv_cpu_utilization", "nv_cpu_memory_total_bytes", "nv_cpu_memory_used_bytes"} <= names
    assert "python_gc_collections_total" in names
    (utilisation,) = (float(line.split(" ")[1]) for line in page if line.startswith("nv_cpu_utilization "))
    assert 0 <= utilisation <= 1


def test_gpus_under_tritons_names_in_tritons_units() -> None:
    registry = CollectorRegistry()
    registry.register(GpuCollector(two_gpus()))
    page = page_of(registry)
    for line in (
        'nv_gpu_utilization{gpu_uuid="GPU-0"} 0.5',
        'nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 1000.0',
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 20.0',
        'nv_gpu_power_usage{gpu_uuid="GPU-0"} 90.5',
        'nv_gpu_power_limit{gpu_uuid="GPU-0"} 700.0',
        'nv_energy_consumption{gpu_uuid="GPU-0"} 4.0',
    ):
        assert line in page
    assert not any(line.startswith('nv_energy_consumption{gpu_uuid="GPU-1"}') for line in page)
