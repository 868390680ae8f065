"""Two gateway processes behind Envoy and a port of their own, with one killed; and a worker killed under streams over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psutil
import pytest

from tests.support.doors import OK, Doors, Told, doors_of
from tests.support.fleet_calls import operator_of
from tests.support.mesh import RunningMesh, running_mesh
from tests.support.waiting import eventually

PATIENCE_S = 60.0
CALLERS = 4
MORE = 60
TEXT = "12 + 34 = 46"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("gateways") / "data", "--gateways", "2") as running:
        yield running


@dataclass(slots=True)
class Asking:
    """Callers in a closed loop, and how each of their requests ended."""

    outcomes: Counter[str] = field(default_factory=Counter)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def failed(self) -> int:
        return self.outcomes.total() - self.outcomes[OK]

    async def ask_on(self, ask: Callable[[], Awaitable[Told]]) -> None:
        while not self.stop.is_set():
            self.outcomes[(await ask()).outcome] += 1

    async def goes_on(self, more: int = MORE) -> None:
        goal = self.outcomes[OK] + more
        await eventually(lambda: self.outcomes[OK] >= goal, patience_s=PATIENCE_S)


@asynccontextmanager
async def asking(mesh: RunningMesh, ask: Callable[[Doors], Awaitable[Told]]) -> AsyncIterator[Asking]:
    """Over a few connections."""
    async with doors_of(mesh, mesh.api_key) as doors, asyncio.TaskGroup() as callers:
        made = Asking()
        for _ in range(CALLERS):
            callers.create_task(made.ask_on(lambda: ask(doors)))
        try:
            yield made
        finally:
            made.stop.set()


async def streamed(doors: Doors) -> Told:
    """A chat in events, whole or not."""
    told = await doors.chat_stream()
    if told.outcome != OK:
        return told
    lines = [line.removeprefix("data: ") for line in told.text.splitlines() if line.startswith("data: ")]
    said = "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines if line.startswith('{"id"'))
    return told if said == TEXT and lines[-1] == "[DONE]" else Told(f"broken: {told.text[-500:]}")


async def test_a_killed_process_takes_no_more_than_what_it_had_in_hand(mesh: RunningMesh) -> None:
    async with asking(mesh, Doors.rest) as tensors, asking(mesh, streamed) as chats:
        await asyncio.gather(tensors.goes_on(), chats.goes_on())
        before = members(mesh)
        os.kill(before[0], signal.SIGKILL)
        await asyncio.gather(tensors.goes_on(), chats.goes_on())
        await eventually(lambda: len(members(mesh)) == 2 and members(mesh) != before, patience_s=PATIENCE_S)
        failed = tensors.failed, chats.failed
        assert max(failed) <= CALLERS, (tensors.outcomes, chats.outcomes)
        await asyncio.gather(tensors.goes_on(2 * MORE), chats.goes_on())
        assert (tensors.failed, chats.failed) == failed, "nothing fails once it is gone, nor when another has come"


async def test_a_killed_worker_breaks_no_stream_over_http(mesh: RunningMesh) -> None:
    async with operator_of(mesh) as operator, asking(mesh, streamed) as chats, asking(mesh, Doors.rest) as tensors:
        await asyncio.gather(*(operator.until_ready(model, 2, within_s=PATIENCE_S) for model in ("sums", "digits")))
        await asyncio.gather(tensors.goes_on(), chats.goes_on())
        os.kill(mesh.pid_of("worker-1"), signal.SIGKILL)
        await asyncio.gather(tensors.goes_on(2 * MORE), chats.goes_on(2 * MORE))
        assert (tensors.failed, chats.failed) == (0, 0), (tensors.outcomes, chats.outcomes)


def members(mesh: RunningMesh) -> list[int]:
    children = psutil.Process(mesh.process.pid).children(recursive=True)
    return sorted(each.pid for each in children if "gateway.member" in words_of(each))


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []
