"""How full a mesh is, by what its processes tell Prometheus: who waits, who is at work, what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tests.support.fleet_calls import metric
from tests.support.mesh import RunningMesh

WORKERS = ("worker-1", "worker-2")
_PATIENCE_S = 20.0


async def until_waiting(mesh: RunningMesh, number: int) -> None:
    """At least so many requests wait at the scheduler."""
    await _until(lambda: metric(mesh, "scheduler", "penstock_capacity_waiting"), lambda seen: seen >= number, f"{number} wait")


async def until_busy(mesh: RunningMesh, number: int) -> None:
    """Both workers together have so many requests."""
    await _until(lambda: _both(mesh, "penstock_worker_in_flight"), lambda seen: seen == number, f"{number} are at work")


async def until_empty(mesh: RunningMesh) -> None:
    """Nobody waits and nothing is kept, anywhere."""
    await _until(lambda: _left(mesh), lambda seen: seen == 0, "nothing is left")


async def size(mesh: RunningMesh, process: str) -> tuple[float, float]:
    """Bytes in memory, and files that are open."""
    return await metric(mesh, process, "process_resident_memory_bytes"), await metric(mesh, process, "process_open_fds")


async def _left(mesh: RunningMesh) -> float:
    told = [
        metric(mesh, "scheduler", "penstock_capacity_waiting"),
        metric(mesh, "scheduler", "penstock_capacity_holds"),
        metric(mesh, "gateway", "penstock_gateway_capacity_waiting"),
        metric(mesh, "gateway", "penstock_gateway_in_flight"),
        *(_both(mesh, f"penstock_worker_{name}") for name in ("in_flight", "holds_waiting", "holds_kept", "queued_rows")),
    ]
    return sum(await asyncio.gather(*told))


async def _both(mesh: RunningMesh, name: str) -> float:
    return sum(await asyncio.gather(*(metric(mesh, worker, name) for worker in WORKERS)))


async def _until(look: Callable[[], Awaitable[float]], condition: Callable[[float], bool], what: str) -> None:
    seen = 0.0
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                with suppress(OSError):  # of a process that is being started again
                    if condition(seen := await look()):
                        return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"after {_PATIENCE_S:.0f} s it is not so that {what}: {seen:.0f} are seen") from None
