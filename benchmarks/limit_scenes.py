"""Gateways in three regions that share one limit: what each scene is, and how exactly the limit holds in it.

What lets in and what gives out is the code that does so in production, on a loop whose clock jumps; requests come as chance has
it, from a seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from gateway.limits.types import Limit
from tests.support.shared_limits import World
from tests.worker.virtual_time import VirtualLoop, run_virtually

REGIONS = 3
SECONDS = 60.0
_LEADS_S = 5.0

Mishap = Callable[[World], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scene:
    name: str
    rate: float
    loads: Sequence[float]
    """Requests a second of each gateway."""
    mishap: Mishap | None = None
    """Happens after a third of the time."""
    waves: bool = False
    """One gateway after the other has ten times its load."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of one scene. `off`: what was admitted beside what one bucket for all would have."""

    name: str
    rate: float
    gateways: int
    allowed: float
    asked: int
    admitted: int
    off: float


async def _joins(world: World) -> None:
    limit = Limit("l", requests_per_s=world_rate(world))
    for number in range(7):
        world.load(world.gateway(number % REGIONS), [limit], lambda _: 20.0)
        await asyncio.sleep(1)


async def _deaths(world: World) -> None:
    for gateway in world.gateways[:3]:
        await world.die(gateway)
        await asyncio.sleep(1)


async def _cut(world: World) -> None:
    world.gateways[0].cut_off = True
    await asyncio.sleep(15)
    world.gateways[0].cut_off = False


def world_rate(world: World) -> float:
    """What all gateways may admit, as the leader has it."""
    book = world.rooms[world.leader].book
    assert book is not None
    return next(iter(book.pots.values())).stock.terms.units


SCENES = (
    Scene("7 gateways, even", 100.0, [20.0] * 7),
    Scene("7 gateways, one has 90 %", 100.0, [180.0, *[3.0] * 6]),
    Scene("7 gateways, one has all", 100.0, [200.0, *[0.0] * 6]),
    Scene("7 gateways, waves", 100.0, [15.0] * 7, waves=True),
    Scene("21 gateways, little of a little", 5.0, [1.0] * 21),
    Scene("7 gateways, less than allowed", 100.0, [10.0] * 7),
    Scene("5 gateways, 7 join", 100.0, [30.0] * 5, _joins),
    Scene("7 gateways, 3 die", 100.0, [40.0] * 7, _deaths),
    Scene("7 gateways, one cut off for 15 s", 100.0, [30.0] * 7, _cut),
    Scene("7 gateways, the leader dies", 100.0, [30.0] * 7, World.kill_leader),
)


def played(scene: Scene) -> Accuracy:
    async def play(loop: VirtualLoop) -> Accuracy:
        async with World(loop) as world:
            await asyncio.sleep(_LEADS_S)
            begun_s, limit = loop.time(), Limit("l", requests_per_s=scene.rate)
            for number, load in enumerate(scene.loads):
                per_s = partial(_load, load, number, len(scene.loads) if scene.waves else 0)
                world.load(world.gateway(number % REGIONS), [limit], per_s)
            await asyncio.sleep(SECONDS / 3)
            if scene.mishap is not None:
                await scene.mishap(world)
            await asyncio.sleep(begun_s + SECONDS - loop.time())
            admitted = world.admitted()
            asked = admitted + sum(each.refused for each in world.gateways)
            allowed = min(scene.rate * (SECONDS + 1.0), asked)
            return Accuracy(scene.name, scene.rate, len(world.gateways), allowed, asked, admitted, admitted / allowed - 1)

    return run_virtually(play)


def _load(load: float, number: int, waves: int, at_s: float) -> float:
    return load * 10 if waves and int(at_s / 3) % waves == number else load
