"""All the schedulers that this gateway knows, as one.

Decides which of them is asked. The fleet is watched at one, and at the next where that one is silent, ends, or cannot itself
see etcd for a while; what was last seen stays in between. Room is asked for at the region's leader, as the watch names it, and
at the others where that one does not answer or leads no more. A wish goes to whichever takes it. Who cannot be reached is left
alone for a moment, so that no request waits for it again. Owns channels to leaders that the settings do not name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Protocol, TypeVar

import grpc.aio
import structlog

from gateway.types import CapacityAsk, DemandReport, FleetNews, Held, Leader
from placement.copies.assign import Placement
from placement.types import ANY_REGION
from runtime.clock import Clock
from runtime.errors import Code, PenstockError, Unavailable
from runtime.ids import Region

FIRST_WORD_S = 3.0
"""A scheduler that has not seen etcd yet says nothing. Where there are others, it is not waited for longer than this."""

STALE_PATIENCE_S = 5.0
"""So long is a scheduler watched that tells from memory, where there are others; twice as long each time that the next one does
so as well: then etcd is away, and nobody knows more."""

_STALE_DOUBLINGS = 5

_REACH_S = 1.0
_LEFT_ALONE_S = 2.0
_ELSEWHERE = (Code.UNAVAILABLE, Code.UNIMPLEMENTED)
"""Not this one: it is away, leads no more (NOT_LEADER), or knows no such call. Another may answer."""

_log = structlog.get_logger("penstock.schedulers")
_Answer = TypeVar("_Answer")


class Scheduler(Protocol):
    """One of them: gateway.peers.SchedulerClient."""

    address: str
    channel: grpc.aio.Channel

    def watch(self, region: Region) -> AsyncGenerator[FleetNews, None]: ...

    async def place(self, placement: Placement) -> Placement: ...

    async def reachable(self, timeout_s: float) -> bool: ...

    async def await_capacity(self, ask: CapacityAsk) -> Held: ...

    def reporting(self) -> AbstractAsyncContextManager[Callable[[DemandReport], Awaitable[None]]]: ...


class Schedulers:
    """Belongs to one event loop; `close` it. A `gateway.fleet.FleetSource`, and where wishes and asks for room go."""

    def __init__(
        self,
        known: Sequence[Scheduler],
        open_scheduler: Callable[[str], Scheduler],
        region: Region,
        clock: Clock,
        *,
        all_regions: bool = False,
    ) -> None:
        """`known`: those that the settings name, at least one. `all_regions`: watch more than this one, whatever rules say."""
        self.known, self._open, self._clock = tuple(known), open_scheduler, clock
        self._region, self._all_regions, self._crossing = region, all_regions, False
        self._others: dict[str, Scheduler] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._watched, self._stale_ones = 0, 0
        self._alone_until_s: dict[str, float] = {}
        self.leaders: tuple[Leader, ...] = ()

    async def watch(self) -> AsyncGenerator[FleetNews, None]:
        """News from one of them, until it is time to ask another. Raises PenstockError where it failed."""
        scheduler, moved = self.known[self._watched], True
        try:
            while moved:
                region, moved = self._watched_region, False
                async with aclosing(self._watch(scheduler, region)) as watch:
                    async for news in watch:
                        self._hear(news)
                        yield news
                        if region != self._watched_region:  # a rule lets requests cross regions now, or none does any more
                            moved = True
                            break
        finally:
            self._watched = (self._watched + 1) % len(self.known)

    async def place(self, placement: Placement) -> Placement:
        """Wish for this, at whichever answers. Raises what the last one answered."""
        return await self._first(lambda scheduler: scheduler.place(placement))

    async def ask(self, question: Callable[[grpc.aio.Channel], Awaitable[_Answer]]) -> _Answer:
        """Any other question, at whichever answers. Raises what the last one answered."""
        return await self._first(lambda scheduler: question(scheduler.channel))

    async def await_capacity(self, ask: CapacityAsk) -> Held | None:
        """A place; None: nobody gives any out now. Raises what the leader answered."""
        for scheduler in self._by_leadership(ask.region):
            if not await self._reached(scheduler):
                continue
            try:
                return await scheduler.await_capacity(ask)
            except PenstockError as error:
                if error.code not in _ELSEWHERE:
                    raise
                _log.debug("capacity_elsewhere", scheduler=scheduler.address, why=error.message)
        return None

    async def close(self) -> None:
        """Close what was opened here; the known ones belong to whoever gave them."""
        closing = [each.channel.close() for each in self._others.values()]
        self._others.clear()
        await asyncio.gather(*closing, *self._closing, return_exceptions=True)

    @property
    def _watched_region(self) -> Region:
        return ANY_REGION if self._all_regions or self._crossing else self._region

    async def _watch(self, scheduler: Scheduler, region: Region) -> AsyncGenerator[FleetNews, None]:
        """What it says, for as long as it is worth listening to."""
        watch, stale_since_s, heard = scheduler.watch(region), None, False
        try:
            while True:
                now_s = self._clock.monotonic_s()
                patience_s = None if heard else FIRST_WORD_S
                if stale_since_s is not None:
                    patience_s = STALE_PATIENCE_S * 2**self._stale_ones - (now_s - stale_since_s)
                news = await self._next(watch, patience_s, scheduler.address)
                if news is None:
                    return
                heard = True
                stale_since_s = (stale_since_s or self._clock.monotonic_s()) if news.stale else None
                self._stale_ones = self._stale_ones if news.stale else 0
                yield news
        finally:
            self._stale_ones = min(self._stale_ones + (stale_since_s is not None), _STALE_DOUBLINGS)
            await watch.aclose()

    async def _next(self, watch: AsyncGenerator[FleetNews, None], patience_s: float | None, address: str) -> FleetNews | None:
        """None: it ended. Raises Unavailable where it said nothing in time and there are others."""
        try:
            async with asyncio.timeout(patience_s if len(self.known) > 1 else None):
                return await anext(watch, None)
        except TimeoutError:
            raise Unavailable(f"scheduler {address} has no fresh news of the fleet; another one is asked") from None

    def _hear(self, news: FleetNews) -> None:
        if news.policy is not None:
            self._crossing = any(rule.cross_region for rule in news.policy.rules)
        if news.leaders is None:
            return
        self.leaders = news.leaders
        wanted = {leader.address for leader in news.leaders}
        for address in [each for each in self._others if each not in wanted]:
            task = asyncio.create_task(self._others.pop(address).channel.close(), name=f"scheduler-left-{address}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _by_leadership(self, region: Region) -> list[Scheduler]:
        """The leader of a region, as far as it is known here, then everybody else."""
        leader = self._leader(region)
        if leader is None:
            return list(self.known)
        found = next((each for each in self.known if each.address == leader.address), None)
        if found is None:
            found = self._others.get(leader.address) or self._others.setdefault(leader.address, self._open(leader.address))
        return [found, *(each for each in self.known if each is not found)]

    def _leader(self, region: Region) -> Leader | None:
        """Who names the region, else who leads whatever nobody names; the newer one where two claim it."""
        named = [each for each in self.leaders if region in each.regions]
        return max(named or (each for each in self.leaders if not each.regions), key=_term, default=None)

    async def _reached(self, scheduler: Scheduler) -> bool:
        now_s = self._clock.monotonic_s()
        if self._alone_until_s.get(scheduler.address, 0.0) > now_s:
            return False
        if await scheduler.reachable(_REACH_S):
            self._alone_until_s.pop(scheduler.address, None)
            return True
        self._alone_until_s[scheduler.address] = self._clock.monotonic_s() + _LEFT_ALONE_S
        return False

    async def _first(self, question: Callable[[Scheduler], Awaitable[_Answer]]) -> _Answer:
        failure: PenstockError = Unavailable("no scheduler is known")
        for scheduler in (*self.known[self._watched :], *self.known[: self._watched]):
            try:
                return await question(scheduler)
            except PenstockError as error:
                if error.code not in (*_ELSEWHERE, Code.DEADLINE_EXCEEDED):
                    raise
                failure = error
        raise failure


def _term(leader: Leader) -> int:
    return leader.term
