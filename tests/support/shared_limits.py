"""Gateways in regions that share limits, their schedulers and etcd in memory, on a loop whose clock jumps.

What lets in and what gives out is the code that does so in production; ways between regions, requests and mishaps are made up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, Self

from gateway.admission import KeyFacts, RateLimited
from gateway.limits.limiter import Limiter
from gateway.limits.peers import Exchange, LedElsewhere
from gateway.limits.purse import Purse
from gateway.limits.sharing import Sharing
from gateway.limits.types import Limit
from placement.limits.types import Ask, Grant
from runtime.errors import Unavailable
from runtime.ids import KeyId, NodeId, TenantId
from runtime.memory_store import MemoryStore
from scheduler.limits.room import LimitsRoom
from tests.worker.virtual_time import VirtualLoop

NOON_S = 20_000 * 86_400 + 43_200

TTL_S = 5
_NEAR_S, _FAR_S = 0.0005, 0.05


class VirtualClock:
    """The loop's."""

    def __init__(self, loop: VirtualLoop, wall_s: float) -> None:
        self._loop, self._ahead_s = loop, wall_s - loop.time()

    def monotonic_s(self) -> float:
        return self._loop.time()

    def wall_s(self) -> float:
        return self._ahead_s + self._loop.time()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


class NoMetrics:
    def limited(self, kind: str) -> None: ...

    def refused(self, reason: str) -> None: ...


@dataclass(eq=False)
class Site:
    """A scheduler, as one gateway reaches it: a `gateway.limits.sharing.Scheduler` whose channel is itself."""

    world: World
    address: str
    gateway: Gateway

    @property
    def channel(self) -> Any:
        return self

    async def close(self) -> None: ...


@dataclass(eq=False)
class Gateway:
    """One gateway process, and what it let in."""

    name: str
    region: int
    limiter: Limiter
    cut_off: bool = False
    admitted_s: list[float] = field(default_factory=list)
    refused: int = 0
    tokens: int = 0
    under_way: int = 0
    told: list[RateLimited] = field(default_factory=list)
    dead: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class World:
    """Make one within `run_virtually`, and enter it."""

    def __init__(self, loop: VirtualLoop, *, seed: int = 1, schedulers: int = 2, wall_s: float = NOON_S) -> None:
        self.loop, self.clock, self.rng = loop, VirtualClock(loop, wall_s), Random(seed)
        self.store = MemoryStore(clock=self.clock, rng=self.rng)
        self.rooms: dict[str, LimitsRoom] = {}
        self.gateways: list[Gateway] = []
        self.most_under_way = 0
        self._schedulers = schedulers
        self._down: set[str] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.store)
        for number in range(self._schedulers):
            await self.scheduler(f"scheduler-{number}")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._running.values(), *(task for each in self.gateways for task in each.tasks)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stack.aclose()

    async def scheduler(self, address: str) -> None:
        """One more; returns once it leads or another does."""
        room = self.rooms[address] = LimitsRoom(self.store, self.clock, self.rng, NodeId(address), ttl_s=TTL_S)

        async def run() -> None:
            async with room.running(address):
                await asyncio.Event().wait()

        self._running[address] = asyncio.create_task(run())
        while room.book is None and not room.leader_address:
            await asyncio.sleep(0.01)

    @property
    def leader(self) -> str:
        return next(address for address, room in self.rooms.items() if room.book is not None and address not in self._down)

    async def kill_leader(self) -> None:
        """Its connections break; its lease is over when its time has passed."""
        address = self.leader
        self._down.add(address)
        await asyncio.sleep(TTL_S)
        task = self._running.pop(address)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del self.rooms[address]

    def gateway(self, region: int = 0) -> Gateway:
        limiter = Limiter(Purse(), self.clock, NoMetrics())
        made = Gateway(f"gateway-{len(self.gateways)}", region, limiter)
        sites = [Site(self, f"scheduler-{number}", made) for number in range(self._schedulers)]
        sharing = Sharing(limiter, sites, lambda address: Site(self, address, made), self.clock, made.name, share=self._share)
        made.tasks.add(asyncio.create_task(sharing.run()))
        self.gateways.append(made)
        return made

    async def die(self, gateway: Gateway) -> None:
        """Everything of it ends at once; what was under way at it is not under way any more."""
        gateway.dead = True
        for task in gateway.tasks:
            task.cancel()
        await asyncio.gather(*gateway.tasks, return_exceptions=True)
        gateway.under_way = 0

    def load(
        self,
        gateway: Gateway,
        limits: Sequence[Limit],
        per_s: Callable[[float], float],
        *,
        model: str = "m",
        takes_s: float = 0.0,
        tokens: Callable[[Random], int] = lambda _: 0,
    ) -> None:
        """Requests of one key, as chance has it, at a rate that depends on the time since now."""
        key = KeyFacts(KeyId("k"), TenantId("t"), limits=tuple(limits))
        begun_s, rng = self.loop.time(), Random(f"{gateway.name} {self.rng.random()}")

        async def come() -> None:
            while True:
                rate = per_s(self.loop.time() - begun_s)
                await asyncio.sleep(rng.expovariate(rate) if rate > 0 else 0.1)
                if rate > 0:
                    task = asyncio.create_task(self._request(gateway, key, model, takes_s, tokens(rng)))
                    gateway.tasks.add(task)
                    task.add_done_callback(gateway.tasks.discard)

        gateway.tasks.add(asyncio.create_task(come(), name="load"))

    def admitted(self, since_s: float = 0.0, until_s: float = float("inf")) -> int:
        return sum(since_s <= at_s < until_s for each in self.gateways for at_s in each.admitted_s)

    async def _request(self, gateway: Gateway, key: KeyFacts, model: str, takes_s: float, tokens: int) -> None:
        try:
            ticket = await gateway.limiter.admit(key, model, 0)
        except RateLimited as refusal:
            gateway.refused += 1
            gateway.told.append(refusal)
            return
        gateway.admitted_s.append(self.loop.time())
        gateway.under_way += 1
        self.most_under_way = max(self.most_under_way, sum(each.under_way for each in self.gateways))
        try:
            if takes_s:
                await asyncio.sleep(takes_s)
            if tokens and ticket is not None:
                gateway.tokens += tokens
                ticket.used(tokens // 3, tokens - tokens // 3)
        finally:
            gateway.under_way -= 1
            if ticket is not None:
                ticket.close()

    @asynccontextmanager
    async def _share(self, channel: Any, process: str) -> AsyncIterator[Exchange]:
        site: Site = channel
        way_s = _NEAR_S if site.gateway.region == 0 else _FAR_S * site.gateway.region
        async with AsyncExitStack() as stack:
            stream: Any = None

            async def exchange(asks: Sequence[Ask]) -> list[Grant]:
                nonlocal stream
                await self._travel(site, way_s)
                room = self.rooms[site.address]
                if stream is None:
                    if room.book is None and room.leader_address:
                        raise LedElsewhere(room.leader_address)
                    stream = stack.enter_context(room.sharing(NodeId(site.gateway.name), process))
                grants = await room.answer(stream, asks)
                await self._travel(site, way_s)
                return grants

            yield exchange

    async def _travel(self, site: Site, way_s: float) -> None:
        await asyncio.sleep(way_s)
        if site.address in self._down or site.address not in self.rooms:
            raise Unavailable(f"{site.address} is down")
        while site.gateway.cut_off:
            await asyncio.sleep(0.1)
