"""etcd gone for minutes under load, and back with nothing in it: no warm request fails, no process is started again.

Run: python -m benchmarks.faults.etcd_away [--minutes 5] [--workers 3] [--keep] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import uvloop
from penstock.scheduler.v1 import scheduler_pb2

from benchmarks.faults.ground import Ground, came_of, opened_ground, write
from tests.support.steady_load import SteadyLoad

RECOVERY_S = 10.0
"""The bar."""

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds after etcd answered again."""

    leader_s: float
    fleet_s: float
    """Until every worker had registered, every wish and every assignment was written again."""


async def until_led(ground: Ground) -> None:
    """The scheduler sees etcd, and leads."""
    while True:
        async with ground.mesh.fleet(ground.scheduler) as fleet:
            watch = fleet.WatchFleet(scheduler_pb2.WatchFleetRequest())
            first = await watch.read()
            watch.cancel()
        if isinstance(first, scheduler_pb2.WatchFleetResponse) and not first.stale and first.leaders.leaders:
            return
        await asyncio.sleep(0.05)


async def until_registered(ground: Ground, workers: int) -> None:
    while True:
        keys = await asyncio.to_thread(ground.mesh.etcd.control, "get", "/penstock/", "--prefix", "--keys-only")
        found = [keys.count(part) for part in ("/presence/", "/assignments/", "/placements/")]
        if found == [workers, workers, 1]:
            return
        await asyncio.sleep(0.05)


async def after(began_s: float, condition: object) -> float:
    async with asyncio.timeout(PATIENCE_S):
        await condition  # type: ignore[misc]
    return round(time.monotonic() - began_s, 2)


async def measure(folder: Path, *, away_s: float, workers: int, callers: int, wiped: bool) -> tuple[SteadyLoad, Recovery, bool]:
    """The load, the recovery, and whether every process is the one it was."""
    async with opened_ground(folder, workers) as ground:
        pids = {name: service.pid for name, service in ground.mesh.services.items()}
        load = SteadyLoad(ground.address, callers)
        async with load.running():
            await load.goes_on(200)
            await ground.mesh.etcd.akill()
            print(f"etcd is gone for {away_s:.0f} s")
            await asyncio.sleep(away_s)
            await load.goes_on(200)
            if wiped:
                ground.mesh.etcd.empty()
            await ground.mesh.etcd.astart()
            began_s = time.monotonic()
            leader_s, fleet_s = await asyncio.gather(
                after(began_s, until_led(ground)), after(began_s, until_registered(ground, workers))
            )
            await load.goes_on(200)
        same = {name: service.pid for name, service in ground.mesh.services.items() if not service.has_ended} == pids
        return load, Recovery(leader_s, fleet_s), same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--keep", action="store_true", help="etcd keeps its data; else it comes back empty")
    parser.add_argument("--output", type=Path, default=None, help="write the result as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-faults-") as name:
        measuring = measure(
            Path(name),
            away_s=arguments.minutes * 60,
            workers=arguments.workers,
            callers=arguments.callers,
            wiped=not arguments.keep,
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            grpc.aio.init_grpc_aio()
            load, recovery, same = runner.run(measuring)
    worst_s = max(recovery.leader_s, recovery.fleet_s)
    print(f"{dict(load.outcomes)}; the longest took {load.longest_s:.2f} s")
    print(f"led again after {recovery.leader_s} s, whole after {recovery.fleet_s} s; every process is the one it was: {same}")
    if arguments.output:
        content = {
            "away_minutes": arguments.minutes,
            "wiped": not arguments.keep,
            "workers": arguments.workers,
            "recovery": {"leader_s": recovery.leader_s, "fleet_s": recovery.fleet_s},
            "no_process_restarted": same,
            "requests": came_of(load),
        }
        write(arguments.output, "etcd away", content)
    if load.failed or worst_s > RECOVERY_S or not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
