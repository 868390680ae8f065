"""Requests that found no room, until there is a place for each: the capacity queue at work.

Whoever waits is in `placement.waiting.queue`; while anybody does, holds wait at workers (`scheduler.capacity.holding`), and
each place that one of them is granted goes to whoever is next by then. Nothing is asked again and again: a place comes as the
answer of a hold, a deadline by a timer, and everything else by `touch`, with a look once a second so that nothing that was
missed stays missed. A model that answers nowhere yet is waited for, and whoever brings copies is told.

Only the leader of a region does this for it: who waits here when that is over is sent to the next one. Nothing outlives the
process but holds, and those end by their own time. Owns the waiting requests' futures; decides nothing that is pure.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import structlog

from placement.types import CandidateKey
from placement.waiting.fair_turns import Ticket, Waiter
from placement.waiting.queue import Bound, CapacityQueue, QueueBounds
from runtime.backoff import sleep_unless
from runtime.clock import Clock
from runtime.errors import CapacityQueueFull, CapacityTooLate, CapacityWaitedTooLong, DeadlineExceeded, NotLeader, PenstockError
from runtime.ids import Region
from scheduler.capacity.aim import WINDOW, Reach, aims_of
from scheduler.capacity.holding import Holding, Peers, Standing
from scheduler.capacity.reception import OpenRequest, Reception
from scheduler.capacity.types import Asked, CapacityRules, Place
from scheduler.capacity.world import Lookout, World

LOOK_S = 1.0
"""How often all is looked at while anybody waits."""

_IDLE_S = 3_600.0
_log = structlog.get_logger("penstock.capacity")


class Capacity:
    """The queue of one scheduler. Belongs to one event loop; nobody is served but in `running`."""

    def __init__(
        self,
        peers: Peers,
        world: World,
        clock: Clock,
        rng: random.Random,
        *,
        bounds: QueueBounds | None = None,
        rules: CapacityRules | None = None,
    ) -> None:
        self._world, self._clock, self._rules = world, clock, rules or CapacityRules()
        self._reception = Reception(world.route_of, clock, self._rules)
        self._lookout = Lookout(world, clock, self._rules.failed_after_s)
        self.queue = CapacityQueue(bounds)
        self.holding = Holding(peers, clock, rng, self._rules, granted=self._granted, ended=self._mark)
        self._open: dict[Ticket, OpenRequest] = {}
        self._dirty: set[CandidateKey] = set()
        self._look_at_s = 0.0
        self._retry_at_s: float | None = None
        self._news = asyncio.Event()
        self._is_running = False
        self.granted = 0
        self.expired = 0
        self.withdrawn = 0
        self.refused: Counter[Bound] = Counter()
        self.waited_s = 0.0
        """Of all that were granted a place, added up."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve those that wait while the context lasts; whoever waits at its end is sent to the next leader."""
        self._is_running = True
        working = asyncio.create_task(self._run(), name="capacity")
        try:
            yield
        finally:
            self._is_running = False
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working
            for ticket in list(self._open):
                self._fail(ticket, NotLeader("this scheduler is ending; ask the region's next leader", retry_after_s=1.0))
            await self.holding.close()

    def touch(self) -> None:
        """The fleet, the wishes or who leads may be others than before."""
        self._look_at_s = 0.0
        self._news.set()

    def prospect(self, key: CandidateKey, abroad: bool) -> str:
        """What there is to wait for where nobody answers for this."""
        return self._lookout.prospect(key, abroad=abroad).detail

    async def wait(self, asked: Asked) -> Place:
        """A place for it, however long that may take within its time. Cancelled, it waits no more.

        Raises NotLeader, ModelNotPlaced, ModelLoadFailed, CapacityQueueFull, CapacityTooLate, CapacityWaitedTooLong,
        DeadlineExceeded.
        """
        if not self._is_running or not self._world.leads(asked.region):
            raise _not_leader(asked.region)
        opened = self._reception.receive(asked)
        key, abroad = opened.waiter.key, opened.reach.route.cross_region
        if not self._lookout.answering(key, abroad=abroad) and (error := self._lookout.hopeless(key, abroad=abroad)):
            raise error
        self._offer(opened)
        try:
            return await opened.place
        except asyncio.CancelledError:
            self._give_up(opened)
            raise
        finally:
            del self._open[opened.waiter.ticket]

    def _offer(self, opened: OpenRequest) -> None:
        waiter = opened.waiter
        refused = self.queue.offer(waiter, waiter.arrived_s)
        if refused is not None:
            self.refused[refused.bound] += 1
            kind = CapacityTooLate if refused.bound is Bound.TIME else CapacityQueueFull
            raise kind(refused.detail, retry_after_s=refused.retry_after_s)
        self._open[waiter.ticket] = opened
        self._mark(waiter.key)

    async def _run(self) -> None:
        while True:
            self._news.clear()
            try:
                self._round()
            except Exception:
                _log.exception("capacity_round_broke")  # the next look tries again
            await sleep_unless(self._clock, self._idle_s(), self._news)

    def _round(self) -> None:
        """Bring everything to what is now."""
        now_s = self._clock.monotonic_s()
        for waiter in self.queue.expire(now_s):
            self._expire(waiter, now_s)
        may_retry = self._retry_at_s is not None and self._retry_at_s <= now_s
        if may_retry or now_s >= self._look_at_s:
            self._look_at_s = now_s + LOOK_S
            self._dirty.update(self.queue.keys)
        self._retry_at_s = None
        dirty, self._dirty = self._dirty, set()
        for key in dirty:
            self._serve(key)
        self._retry_at_s = self.holding.next_retry_s()

    def _idle_s(self) -> float:
        """Until the next thing is due by itself."""
        if not len(self.queue):
            return _IDLE_S
        due = (self.queue.next_expiry_s, self._retry_at_s, self._look_at_s)
        return max(0.0, min(at_s for at_s in due if at_s is not None) - self._clock.monotonic_s())

    def _serve(self, key: CandidateKey) -> None:
        """Have holds wait for this line as they should, or send those in it away."""
        upcoming = self.queue.upcoming(key, WINDOW)
        upcoming += self.queue.others_first(key, {each.tenant for each in upcoming}, WINDOW)
        if not upcoming:
            self.holding.forget(key)
            self._lookout.forget(key)
        elif not self._world.leads(key.region):
            self._fail_line(key, lambda _: _not_leader(key.region))
        else:
            reaches = {each.ticket: self._open[each.ticket].reach for each in upcoming}
            abroad = any(reach.route.cross_region for reach in reaches.values())
            self._aim(key, upcoming, reaches, abroad=abroad)
            if not self._lookout.answering(key, abroad=abroad):
                self._lose_hope(key)

    def _aim(self, key: CandidateKey, upcoming: list[Waiter], reaches: dict[Ticket, Reach], *, abroad: bool) -> None:
        view, rules, shunned = self._world.view(), self._rules, self.holding.shunned(key)
        answering = self._lookout.answering(key, abroad=abroad)
        aims = aims_of(
            upcoming,
            {who: version for who, version in answering.items() if who not in shunned} if shunned else answering,
            reaches,
            view,
            at_most=self.queue.waiting(key) + rules.spare,
            per_worker=rules.per_worker,
        )
        self.holding.bring_to(key, aims, view.workers)

    def _lose_hope(self, key: CandidateKey) -> None:
        """Nobody answers for this line: whoever has nothing to wait for is told."""
        errors: dict[bool, PenstockError | None] = {}

        def error_for(opened: OpenRequest) -> PenstockError | None:
            abroad = opened.reach.route.cross_region
            if abroad not in errors:
                errors[abroad] = self._lookout.hopeless(key, abroad=abroad)
            return errors[abroad]

        self._fail_line(key, error_for)

    def _fail_line(self, key: CandidateKey, error_for: Callable[[OpenRequest], PenstockError | None]) -> None:
        for waiter in self.queue.upcoming(key):
            if (error := error_for(self._open[waiter.ticket])) is not None:
                self._fail(waiter.ticket, error)
        if not self.queue.waiting(key):
            self.holding.forget(key)

    def _fail(self, ticket: Ticket, error: PenstockError) -> None:
        self.queue.withdraw(ticket)
        opened = self._open.get(ticket)
        if opened is not None and not opened.place.done():
            opened.place.set_exception(error)

    def _expire(self, waiter: Waiter, now_s: float) -> None:
        opened, key = self._open[waiter.ticket], waiter.key
        self.expired += 1
        self._mark(key)
        abroad = opened.reach.route.cross_region
        seen = f"no worker with model {key.model!r} had a place for it"
        if not self._lookout.answering(key, abroad=abroad):
            seen = self._lookout.prospect(key, abroad=abroad).detail
        told = f"waited {now_s - waiter.arrived_s:.1f} s, and {seen}"
        self._fail(
            waiter.ticket, DeadlineExceeded(told) if opened.own_deadline else CapacityWaitedTooLong(told, retry_after_s=1.0)
        )

    def _granted(self, standing: Standing, place: Place) -> None:
        """A worker has a place: give it to whoever is next."""
        if not self._give(standing.key, place, lambda waiter: self.holding.is_passed_over(standing, waiter.tenant)):
            self._release(place)

    def _give(self, key: CandidateKey, place: Place, is_passed_over: Callable[[Waiter], bool] = lambda _: False) -> bool:
        """Whether somebody could use it."""
        view, now_s = self._world.view(), self._clock.monotonic_s()

        def suits(waiter: Waiter) -> bool:
            in_time = waiter.deadline_s > now_s
            return in_time and self._open[waiter.ticket].reach.takes(view, place.worker_id) and not is_passed_over(waiter)

        waiter = self.queue.take(key, now_s, suits) if self._is_running and self._world.leads(key.region) else None
        if waiter is None:
            return False
        self._mark(key)
        self.granted += 1
        self.waited_s += now_s - waiter.arrived_s
        self._open[waiter.ticket].place.set_result(place)
        return True

    def _give_up(self, opened: OpenRequest) -> None:
        """Nobody waits for it any more. A place that it was given meanwhile goes to the next, while enough time is left."""
        self.withdrawn += 1
        key, place = opened.waiter.key, opened.place
        self.queue.withdraw(opened.waiter.ticket)
        self._mark(key)
        if not place.done() or place.cancelled() or place.exception() is not None:
            return
        left_s = place.result().until_s - self._clock.monotonic_s()
        if left_s < self._rules.hold_ttl_s / 2 or not self._give(key, place.result()):
            self._release(place.result())

    def _release(self, place: Place) -> None:
        worker = self._world.view().workers.get(place.worker_id)
        if worker is not None:
            self.holding.release(worker, place.hold_id)

    def _mark(self, key: CandidateKey) -> None:
        self._dirty.add(key)
        self._news.set()


def _not_leader(region: Region) -> NotLeader:
    return NotLeader(f"this scheduler does not lead region {region!r}; ask the one that does", retry_after_s=0.5)
