"""One limit that two gateway processes share: as much is let in as it allows, through Envoy and past it, whoever is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil
import pytest

from tests.support.commands import done
from tests.support.doors import LIMITED, OK, Doors, doors_of
from tests.support.mesh import RunningMesh, running_mesh
from tests.support.waiting import eventually

PER_S = 30.0
BURST = 30
LOAD_S = 8.0
WITHIN = 0.05
PATIENCE_S = 60.0
CALLERS = 2
"""At each door of each connection."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("shared") / "data", "--gateways", "2", "--workers", "1") as running:
        yield running


@dataclass(slots=True)
class Load:
    """More requests than are let in, at both doors, on several connections: the kernel spreads those over the processes."""

    doors: list[Doors]
    began_s: float = 0.0

    async def ask_on(self, doors: Doors, stop: asyncio.Event, *, over_http: bool) -> None:
        while not stop.is_set():
            told = await (doors.rest() if over_http else doors.grpc())
            doors.outcomes[told.outcome] += 1
            await asyncio.sleep(0.01)

    @property
    def admitted(self) -> int:
        return sum(each.outcomes[OK] for each in self.doors)

    @property
    def failures(self) -> dict[str, int]:
        return {what: n for each in self.doors for what, n in each.outcomes.items() if what not in (OK, LIMITED)}

    @property
    def allowed(self) -> float:
        return BURST + PER_S * (time.monotonic() - self.began_s)

    async def lets_in_more(self, more: int = 20) -> None:
        goal = self.admitted + more
        await eventually(lambda: self.admitted >= goal, patience_s=PATIENCE_S)


@asynccontextmanager
async def loaded(mesh: RunningMesh, name: str, *words: str) -> AsyncIterator[Load]:
    secret = (await done(mesh, "keys", "create", name, "--tenant", name)).strip()
    subject = ("--tenant", name, "--key-id", secret.split("-")[2])
    await done(mesh, "limits", "set", *subject, "--requests-per-s", str(PER_S), "--burst", str(BURST), *words)
    async with doors_of(mesh, secret) as one, doors_of(mesh, secret) as two, doors_of(mesh, secret) as three:
        load, stop = Load([one, two, three], time.monotonic()), asyncio.Event()
        async with asyncio.TaskGroup() as callers:
            for doors in load.doors:
                for number in range(2 * CALLERS):
                    callers.create_task(load.ask_on(doors, stop, over_http=bool(number % 2)))
            try:
                yield load
            finally:
                stop.set()


async def test_two_gateways_let_in_what_one_limit_allows(mesh: RunningMesh) -> None:
    async with loaded(mesh, "rate") as load:
        await asyncio.sleep(LOAD_S)
        admitted, allowed = load.admitted, load.allowed
    assert (1 - WITHIN) * allowed <= admitted <= (1 + WITHIN) * allowed, (admitted, allowed, load.failures)
    assert not load.failures


async def test_no_more_is_let_in_when_a_gateway_is_killed(mesh: RunningMesh) -> None:
    async with loaded(mesh, "killed") as load:
        await load.lets_in_more(2 * BURST)
        before = _members(mesh)
        os.kill(before[0], signal.SIGKILL)
        await load.lets_in_more(2 * BURST)
        await eventually(lambda: len(_members(mesh)) == 2 and _members(mesh) != before, patience_s=PATIENCE_S)
        await load.lets_in_more(2 * BURST)
        admitted, allowed = load.admitted, load.allowed
    assert admitted <= (1 + WITHIN) * allowed, (admitted, allowed)


async def test_without_the_scheduler_a_limit_does_what_it_says_of_that(mesh: RunningMesh) -> None:
    scheduler = mesh.pid_of("scheduler")
    async with loaded(mesh, "shares") as shares, loaded(mesh, "refuses", "--when-unsure", "refuse") as refuses:
        await shares.lets_in_more(2 * BURST)
        await refuses.lets_in_more(2 * BURST)
        os.kill(scheduler, signal.SIGSTOP)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while "cannot be learnt now" not in (await refuses.doors[0].rest()).message:
                    await asyncio.sleep(0.1)
            refused_at, began_s = refuses.admitted, time.monotonic()
            await shares.lets_in_more(2 * BURST)
            assert time.monotonic() - began_s < PATIENCE_S
            assert refuses.admitted - refused_at <= BURST
        finally:
            os.kill(scheduler, signal.SIGCONT)
        await refuses.lets_in_more(2 * BURST)
        assert shares.admitted <= (1 + WITHIN) * shares.allowed + BURST, (shares.admitted, shares.allowed)
        assert refuses.admitted <= (1 + WITHIN) * refuses.allowed, (refuses.admitted, refuses.allowed)
        os.kill(scheduler, signal.SIGKILL)
        await refuses.lets_in_more(4 * BURST)
        await shares.lets_in_more(2 * BURST)
        assert mesh.pid_of("scheduler") != scheduler
        assert not shares.failures
        assert not refuses.failures


def _members(mesh: RunningMesh) -> list[int]:
    told = json.loads((mesh.data / "run" / "gateway.json").read_text())
    assert len(told["processes"]) == 2
    children = psutil.Process(mesh.process.pid).children(recursive=True)
    return sorted(each.pid for each in children if "gateway.member" in _words(each))


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []
