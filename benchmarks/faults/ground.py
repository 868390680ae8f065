"""A mesh for the faults, each of its services a process of its own, and what came of the load on it."""

from __future__ import annotations

import json
import statistics
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from penstock.scheduler.v1 import scheduler_pb2

from benchmarks.serving import machine
from tests.support.hosts import HostedMesh, Service, hosted_mesh
from tests.support.steady_load import SteadyLoad, until_answered

REGION = "here"
MANY = 5_000
"""Copies: every worker there is gets one."""


@dataclass(frozen=True, slots=True)
class Ground:
    mesh: HostedMesh
    scheduler: Service
    gateway: Service

    @property
    def address(self) -> str:
        """Of the gateway, for applications."""
        return self.gateway.address("edge_port")

    async def members(self) -> frozenset[str]:
        """Ids of the workers that the scheduler believes in."""
        async with self.mesh.fleet(self.scheduler) as fleet:
            there = await fleet.ListWorkers(scheduler_pb2.ListWorkersRequest(), timeout=10)
        return frozenset(worker.worker_id for worker in there.workers)


@asynccontextmanager
async def opened_ground(folder: Path, workers: int) -> AsyncIterator[Ground]:
    """Answering, with the demo model `digits` on every worker there is and every one that comes."""
    async with hosted_mesh(folder) as mesh:
        registry = (await mesh.registry().started()).address()
        scheduler = mesh.start("scheduler", "scheduler", region=REGION, registry_address=registry)
        for number in range(workers):
            mesh.worker(f"worker-{number}", region=REGION)
        address = (await scheduler.started()).address()
        gateway = mesh.start(
            "gateway", "gateway", region=REGION, registry_address=registry, scheduler_address=address, auth="off", edge_port=0
        )
        for service in mesh.services.values():
            await service.started()
        wish = (await mesh.publish("digits"))["digits"]
        wish.copies = MANY
        await mesh.place(scheduler, wish)
        await until_answered(gateway.address("edge_port"))
        yield Ground(mesh, scheduler, gateway)


def came_of(load: SteadyLoad) -> Mapping[str, object]:
    """How the requests went."""
    took_ms = sorted(each * 1000 for each in load.took_s)
    cuts = statistics.quantiles(took_ms, n=1000) if len(took_ms) > 1 else [0.0] * 999
    return {
        "outcomes": dict(load.outcomes),
        "p50_ms": round(cuts[499], 2),
        "p99_ms": round(cuts[989], 2),
        "p99_9_ms": round(cuts[998], 2),
        "longest_s": round(load.longest_s, 3),
    }


def write(output: Path, what: str, content: Mapping[str, object]) -> None:
    """As the other benchmarks do: when, where, what."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"when": when, "machine": machine(), "what": what, **content}, indent=1))
