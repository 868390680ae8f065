"""Keeps one stream to the leader of the limits, says what is wanted, and takes what is given.

Asks any scheduler that it knows, and goes where that one says that the leader is. Owns the stream and the channel to a leader
that the settings do not name. Begins once there is any limit at all. Never decides who is let in: `gateway.limits.limiter`
does; it is told here whether the leader can be asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import grpc.aio
import structlog

from gateway.limits.limiter import Limiter
from gateway.limits.peers import Exchange, LedElsewhere, shared
from runtime.backoff import Backoff, sleep_unless
from runtime.clock import Clock
from runtime.errors import PenstockError, Unavailable

EVERY_S = 0.25
"""How often is asked, where nobody waits."""

SOONEST_S = 0.02
"""Asks are at least so far apart: what comes up in between is asked together."""

SILENT_S = 2.0
"""A leader that was not heard for so long may know of others what is not known here."""

ANSWER_S = 5.0
"""A stream that is not answered for so long is given up. A leader that has just begun takes two seconds."""

_LONGEST_WAY_S = 1.0
Share = Callable[[grpc.aio.Channel, str], AbstractAsyncContextManager[Exchange]]
_AWAY = Backoff(first_s=0.1, max_s=1.0)
_log = structlog.get_logger("penstock.limits")


class Scheduler(Protocol):
    """One of them: gateway.peers.SchedulerClient."""

    @property
    def address(self) -> str: ...

    @property
    def channel(self) -> grpc.aio.Channel: ...


class Sharing:
    """Belongs to one event loop. `run` goes on until it is cancelled."""

    def __init__(
        self,
        limiter: Limiter,
        known: Sequence[Scheduler],
        open_scheduler: Callable[[str], Scheduler],
        clock: Clock,
        process: str,
        *,
        share: Share = shared,
    ) -> None:
        """`process`: a word of its own. `open_scheduler`: opens a channel to this address, which is closed here.

        `share`: opens a stream on a channel.
        """
        self._limiter, self._purse, self._clock = limiter, limiter.purse, clock
        self._known, self._open, self._process, self._open_stream = tuple(known), open_scheduler, process, share
        self._rng = random.SystemRandom()
        self._heard_s = 0.0
        self._way_s = 0.0

    async def run(self) -> None:
        await self._limiter.wanted.wait()
        self._heard_s = self._clock.monotonic_s()  # until it was silent for a while, it may still answer
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._doubt(), name="limits-doubt")
            tasks.create_task(self._share(), name="limits-share")

    async def _share(self) -> None:
        failures, asked = 0, 0
        while True:
            heard_s = self._heard_s
            try:
                await self._share_with(self._known[asked % len(self._known)])
            except PenstockError as error:
                failures = 1 if self._heard_s > heard_s else failures + 1
                if self._heard_s > heard_s:  # it had answered, and does not any more
                    self._limiter.unsure()
                if failures == 1:
                    _log.warning("limits_leader_away", why=error.message)
            asked += 1
            await self._clock.sleep(_AWAY.delay_s(failures, self._rng))

    async def _share_with(self, scheduler: Scheduler) -> None:
        """As long as it lasts, here or at whoever leads. Raises PenstockError."""
        try:
            await self._ask_on(scheduler)
        except LedElsewhere as elsewhere:
            known = next((each for each in self._known if each.address == elsewhere.address), None)
            if known is not None:
                await self._ask_on(known)
                return
            async with _opened(self._open(elsewhere.address)) as leader:
                await self._ask_on(leader)

    async def _ask_on(self, scheduler: Scheduler) -> None:
        async with self._open_stream(scheduler.channel, self._process) as exchange:
            self._purse.lost()
            while True:
                self._limiter.hurry.clear()
                begun_s = self._clock.monotonic_s()
                asks = self._purse.asks(begun_s, self._way_s)
                try:
                    async with asyncio.timeout(ANSWER_S):
                        grants = await exchange(asks)
                except TimeoutError:
                    raise Unavailable(f"the scheduler at {scheduler.address} does not answer for limits") from None
                self._hear(begun_s)
                self._limiter.tell(self._purse.take(grants, self._heard_s))
                await self._clock.sleep(SOONEST_S)
                await sleep_unless(self._clock, EVERY_S - SOONEST_S, self._limiter.hurry)

    def _hear(self, begun_s: float) -> None:
        self._heard_s = self._clock.monotonic_s()
        took_s = min(self._heard_s - begun_s, _LONGEST_WAY_S)
        self._way_s = took_s if not self._way_s else self._way_s + (took_s - self._way_s) * 0.2
        if not self._limiter.sure:
            self._limiter.sure = True
            _log.info("limits_leader_heard")

    async def _doubt(self) -> None:
        """Tell the limiter when nobody was heard for too long."""
        while True:
            left_s = self._heard_s + SILENT_S - self._clock.monotonic_s()
            if left_s <= 0 and self._limiter.sure:
                _log.warning("limits_unsure", silent_s=SILENT_S)
                self._limiter.unsure()
            await self._clock.sleep(max(left_s, SILENT_S / 10))


@asynccontextmanager
async def _opened(scheduler: Scheduler) -> AsyncIterator[Scheduler]:
    try:
        yield scheduler
    finally:
        await scheduler.channel.close()
