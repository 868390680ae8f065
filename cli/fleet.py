"""`penstock fleet`: the workers as the scheduler sees them, and how busy each says it is."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc.aio
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import presence_pb2, worker_pb2, worker_pb2_grpc

from cli.models import state_name
from cli.profile import Profile
from cli.tables import console, table
from runtime.channel import inner_channel
from runtime.identity import NodeIdentity, Role, load_identity
from runtime.ids import NodeId

_STATUS_TIMEOUT_S = 1.0


async def show_fleet(profile: Profile) -> None:
    """A row per worker."""
    async with profile.scheduler_channel() as scheduler:
        fleet = scheduler_pb2_grpc.FleetServiceStub(scheduler)
        workers = (await fleet.ListWorkers(scheduler_pb2.ListWorkersRequest())).workers
    identity = load_identity(Path(profile.operator_identity))
    loads = await asyncio.gather(*(_load(worker, identity) for worker in workers))
    rows = table("worker", "machine", "models", "in flight", "heartbeat")
    for worker, load in zip(workers, loads, strict=True):
        age_s = time.time() - worker.wall_time_ms / 1000
        models = "\n".join(f"{copy.model} {copy.version}: {state_name(copy)}" for copy in worker.models)
        rows.add_row(
            f"{worker.worker_id}\n{worker.address}",
            f"{worker.region}, tiers {' '.join(worker.tiers) or 'none'}\n{_hardware(worker.hardware)}",
            models or "-",
            "no answer" if load is None else f"{load.in_flight} of {worker.max_in_flight}",
            f"{age_s:.0f} s ago",
        )
    console().print(rows if workers else "no worker is in the fleet; look at `penstock doctor` and the workers' logs")


async def _load(worker: presence_pb2.Presence, identity: NodeIdentity) -> worker_pb2.WorkerLoad | None:
    channel = inner_channel(worker.address, identity, Role.WORKER, node_id=NodeId(worker.worker_id))
    async with channel:
        try:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            return (await stub.Status(worker_pb2.StatusRequest(), timeout=_STATUS_TIMEOUT_S)).load
        except grpc.aio.AioRpcError:
            return None


def _hardware(hardware: presence_pb2.Hardware) -> str:
    gpus = ", ".join(f"{gpu.name} {gpu.memory_bytes >> 30} GiB" for gpu in hardware.gpus)
    return f"{hardware.cpu_cores} cores, {hardware.memory_bytes >> 30} GiB" + (f", {gpus}" if gpus else "")
