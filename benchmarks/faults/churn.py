"""Workers come and go under load, half of those that go without a word: no request hangs.

Every worker is a process of its own with a model loaded, as anyone would run it (about 65 MiB each). Source of the numbers:
ai-dynamo/dynamo#13088, where 248 joins and 149 leaves in 12 minutes left 24 of 1,536 requests hanging.

Run: python -m benchmarks.faults.churn [--minutes 12] [--joins 250] [--leaves 150] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import psutil
import uvloop

from benchmarks.faults.ground import REGION, Ground, came_of, opened_ground, write
from tests.support.hosts import Service
from tests.support.steady_load import SteadyLoad

HUNG_S = 10.0
"""A request that takes longer hung, however it ended."""

FIRST = 3
"""Workers there before anybody comes or goes."""

STAY = 2
"""So many answer at any time."""


@dataclass
class Churn:
    """Who is there, and what happened."""

    ground: Ground
    rng: random.Random
    there: list[Service]
    done: Counter[str] = field(default_factory=Counter)
    most: int = 0
    memory_bytes: int = 0
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(FIRST))

    async def join(self) -> None:
        service = self.ground.mesh.worker(f"worker-{next(self._numbers)}", region=REGION)
        self.there.append(service)
        self.done["joined"] += 1
        await service.started()

    async def leave(self) -> None:
        """One of those that answer; every other one is killed."""
        while len(answering := [service for service in self.there if service.ready.exists()]) <= STAY:
            await asyncio.sleep(0.1)
        leaving = self.rng.choice(answering)
        self.there.remove(leaving)
        if self.done["killed"] <= self.done["ended"]:
            self.done["killed"] += 1
            await leaving.kill()
        else:
            self.done["ended"] += 1
            await leaving.stop()

    def look(self) -> None:
        """How many there are, and what they take."""
        if len(self.there) > self.most:
            self.most = len(self.there)
            mine = (psutil.Process(service.pid) for service in self.there if not service.has_ended)
            self.memory_bytes = sum(process.memory_full_info().pss for process in mine)


def shuffled(joins: int, leaves: int, rng: random.Random) -> Iterator[str]:
    """In random order, but nobody leaves before somebody is there to leave."""
    joined = left = 0
    while joined < joins or left < leaves:
        may_leave = left < leaves and FIRST + joined - left > STAY + 1
        if joined < joins and (not may_leave or rng.random() < (joins - joined) / (joins - joined + leaves - left)):
            joined += 1
            yield "join"
        else:
            left += 1
            yield "leave"


async def churned(churn: Churn, joins: int, leaves: int, over_s: float) -> None:
    """Spread evenly over the time."""
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number, event in enumerate(shuffled(joins, leaves, churn.rng)):
            await asyncio.sleep(max(0.0, began_s + over_s * number / (joins + leaves) - time.monotonic()))
            group.create_task(churn.join() if event == "join" else churn.leave())
            churn.look()
            if number % 20 == 0:
                print(f"{time.monotonic() - began_s:6.0f} s: {dict(churn.done)}, {len(churn.there)} there")


async def measure(folder: Path, arguments: argparse.Namespace) -> tuple[SteadyLoad, Churn]:
    async with opened_ground(folder, FIRST) as ground:
        first = [service for service in ground.mesh.services.values() if service.name.startswith("worker-")]
        churn = Churn(ground, random.Random(arguments.seed), first)
        load = SteadyLoad(ground.address, arguments.callers)
        async with load.running():
            await load.goes_on(100)
            await churned(churn, arguments.joins, arguments.leaves, arguments.minutes * 60)
            await load.goes_on(100)
        return load, churn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--joins", type=int, default=250)
    parser.add_argument("--leaves", type=int, default=150)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=None, help="write the result as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-faults-") as name:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            grpc.aio.init_grpc_aio()
            load, churn = runner.run(measure(Path(name), arguments))
    hung = sum(took_s > HUNG_S for took_s in load.took_s) + len(load.open_since_s)
    print(f"{dict(load.outcomes)}; {hung} hung; the longest took {load.longest_s:.2f} s")
    print(
        f"{dict(churn.done)}; at most {churn.most} workers, {churn.memory_bytes / 2**30:.1f} GiB, what they share counted once"
    )
    if arguments.output:
        content = {
            "minutes": arguments.minutes,
            "happened": dict(churn.done),
            "workers_at_most": churn.most,
            "their_memory_bytes": churn.memory_bytes,
            "hung": hung,
            "requests": came_of(load),
        }
        write(arguments.output, "churn", content)
    if load.failed or hung:
        sys.exit(1)


if __name__ == "__main__":
    main()
