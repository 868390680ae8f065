"""What an operator asks of a running mesh over gRPC where commands are too slow or say less: wishes, copies, metrics."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from penstock.registry.v1 import models_pb2, models_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import presence_pb2, worker_pb2
from prometheus_client.parser import text_string_to_metric_families

from cli.profile import read_profile
from tests.support.mesh import RunningMesh

READY = worker_pb2.MODEL_STATE_READY
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Operator:
    """Over channels that are open while it lasts; they find a scheduler that was started again."""

    mesh: RunningMesh
    fleet: Any
    models: Any

    async def wish(self, model: str, copies: int, max_copies: int = 0, *, idle_s: int = 0, memory_bytes: int = 0) -> None:
        """For the version that unversioned requests get."""
        found = (await self.models.GetVersion(models_pb2.GetVersionRequest(model=model))).version
        wanted = scheduler_pb2.Placement(
            model=model,
            version=found.version,
            digest=found.digest,
            copies=copies,
            max_copies=max_copies,
            idle_s=idle_s,
            memory_bytes=memory_bytes,
        )
        await self.fleet.PlaceModel(scheduler_pb2.PlaceModelRequest(placement=wanted))

    async def workers(self) -> Mapping[str, presence_pb2.Presence]:
        told = (await self.fleet.ListWorkers(scheduler_pb2.ListWorkersRequest(), wait_for_ready=True)).workers
        return {worker.worker_id: worker for worker in told}

    async def copies(self, model: str) -> Mapping[str, int]:
        """The states of its copies by worker."""
        workers = await self.workers()
        return {who: copy.state for who, worker in workers.items() for copy in worker.models if copy.model == model}

    async def until(self, model: str, condition: Callable[[Mapping[str, int]], bool], within_s: float = PATIENCE_S) -> None:
        """Return once that holds of its copies."""
        seen: Mapping[str, int] = {}
        try:
            async with asyncio.timeout(within_s):
                while not condition(seen := await self.copies(model)):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"after {within_s:.0f} s the copies of {model} are {dict(seen)}") from None

    async def until_ready(self, model: str, number: int, within_s: float = PATIENCE_S) -> None:
        """Exactly so many copies, all of them ready."""
        await self.until(model, lambda copies: list(copies.values()) == [READY] * number, within_s)


@asynccontextmanager
async def operator_of(mesh: RunningMesh) -> AsyncIterator[Operator]:
    profile = read_profile(mesh.data)
    async with profile.scheduler_channel() as scheduler, profile.registry_channel() as registry:
        fleet, models = scheduler_pb2_grpc.FleetServiceStub(scheduler), models_pb2_grpc.ModelServiceStub(registry)
        yield Operator(mesh, fleet, models)


async def metric(mesh: RunningMesh, process: str, name: str, **labels: str) -> float:
    """The sum of a process's samples of that name whose labels have these values."""
    port = json.loads((mesh.data / "run" / f"{process}.json").read_text())["metrics_port"]
    families = text_string_to_metric_families(await asyncio.to_thread(_page, f"http://127.0.0.1:{port}/metrics"))
    samples = [each for family in families for each in family.samples if each.name == name]
    assert samples or labels, f"{process} tells no {name}"
    return sum(each.value for each in samples if labels.items() <= each.labels.items())


def _page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read(), "utf-8")
