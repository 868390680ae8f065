"""Brings the assignments in etcd to what they should be.

Level-triggered: whatever happened, `touch` it; a round reads the whole world, asks `placement.copies.scale` how many copies
there should be and `placement.copies.assign` where, and has `orders` write what differs. A round that fails, or finds that
somebody else wrote, is done again after a jittered, growing delay; one that finds the world as it left it ends there. News of
demand alone make at most one round a second.

Only regions that this scheduler leads are touched. Remembered is what a new leader can do without: since when a scale has
stood, which loads failed when, and what copies took. Never decides who holds what, and writes nothing while etcd has not been
seen whole.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from placement.copies.assign import Plan, Shortage, Shortfall, assign
from placement.copies.demand import Demand, DemandKey, attributed
from placement.copies.failures import Failures, bars, observed
from placement.copies.scale import Scale, scales
from placement.copies.wishes import Assignments, Bars, Placement, Wanted, newest_wished
from placement.types import CandidateKey, Worker
from runtime.backoff import Backoff, sleep_unless
from runtime.clock import Clock
from runtime.errors import Aborted, PenstockError
from runtime.ids import Digest, ModelName
from runtime.keyvalue import KeyValueStore, Write, absent
from scheduler.codec import placement_bytes
from scheduler.control import Control, region_of
from scheduler.fleet import Fleet
from scheduler.orders import Leads, Orders

SETTLE_S = 0.02
"""Touches that come together, as when a fleet starts, make one round."""

PACE_S = 1.0
"""Rounds for the sake of demand alone are at least so far apart."""

IDLE_LOOK_S = 5.0
"""While copies stand that demand may give up again, it is looked at least so often: that nobody asks is no news."""

SHORT_S = 10.0
"""Where memory is short, who was asked for last may change who gives way: it is looked at again so often."""

_log = structlog.get_logger("penstock.reconcile")


class DemandSource(Protocol):
    """Who knows what is asked for: `scheduler.demand.intake.DemandIntake`."""

    @property
    def on_asked(self) -> list[Callable[[], None]]: ...

    def demand(self, now_s: float) -> Demand: ...


@dataclass(frozen=True, slots=True)
class _World:
    """All that a plan depends on, but for when what was last asked for."""

    wishes: list[Placement]
    workers: list[Worker]
    current: Assignments
    callers: Mapping[ModelName, frozenset[str]]
    copies: Mapping[DemandKey, int]
    bars: Bars


class Reconciler:
    """One loop over the fleet's assignments."""

    def __init__(
        self,
        store: KeyValueStore,
        fleet: Fleet,
        control: Control,
        clock: Clock,
        rng: random.Random,
        *,
        connected: Callable[[], bool],
        backoff: Backoff | None = None,
        is_withdrawn: Callable[[ModelName, Digest], bool] = lambda _, __: False,
        callers_of: Callable[[ModelName], frozenset[str] | None] = lambda _: None,
        leads: Leads = lambda _: (),
    ) -> None:
        """A version for which `is_withdrawn` holds is assigned to nobody, whatever is wished for. `callers_of` says which
        tenants may call a model; None: it is not known. `leads` gives the conditions of a write for a region; None: another
        scheduler leads it.
        """
        self._store, self._fleet, self._control, self._clock, self._rng = store, fleet, control, clock, rng
        self._connected, self._is_withdrawn, self._callers_of = connected, is_withdrawn, callers_of
        self._leads: Leads = leads
        self._demand: Callable[[float], Demand] = lambda _: Demand()
        self._orders = Orders(store, control, clock, lambda region: self._leads(region))
        self._backoff = backoff or Backoff(first_s=0.1, max_s=3.0)
        self._touched, self._hurried = asyncio.Event(), asyncio.Event()
        self._begun_s = -math.inf
        self._failures: Failures = {}
        self._settled: tuple[_World, float] | None = None
        """The world that needed nothing, and until when that holds."""
        self.scales: Mapping[DemandKey, Scale] = {}
        """How many copies there should be of what is left to demand, and why."""
        self.shortfalls: tuple[Shortfall, ...] = ()
        self._sizes: dict[Digest, int] = {}
        """What a copy of each wish took when there was one."""
        self._may_ease = False
        """There are copies beyond what was wished for at least."""
        self.deferred = False
        """A round was due while etcd was not seen."""
        self.failures = 0

    @property
    def writes(self) -> int:
        return self._orders.writes

    def follow(self, intake: DemandSource) -> None:
        """Let what is told there decide on the copies that wishes leave to demand; without it nothing does."""
        self._demand = intake.demand
        intake.on_asked.append(self.touch_soon)

    def touch(self) -> None:
        """Something may have changed."""
        self._hurried.set()
        self._touched.set()

    def touch_soon(self) -> None:
        """Something may have changed that can wait a second: demand."""
        self._touched.set()

    async def run(self) -> None:
        """Reconcile whenever touched, until cancelled."""
        failures = 0
        while True:
            await self._until_due()
            try:
                await self.round()
                failures = 0
            except PenstockError as error:
                failures += 1
                self.failures += 1
                delay_s = self._backoff.delay_s(failures, self._rng)
                _log.warning("reconcile_failed", why=error.message, failures=failures, again_in_s=round(delay_s, 2))
                await self._clock.sleep(delay_s)
                self.touch()

    async def round(self) -> None:
        """Read the world, write what differs. Raises Aborted where another wrote meanwhile, and whatever the store raises."""
        self.deferred = not (self._fleet.synced and self._control.synced and self._connected())
        if self.deferred:
            return
        await self._restore_wishes()
        now_s = self._clock.monotonic_s()
        demand = attributed(self._demand(now_s), newest_wished(self._control.wishes()))
        members = self._fleet.workers()
        self._orders.notice({worker.worker_id: worker.sequence for worker in members})
        world = self._world(members, demand, now_s)
        if self._settled is None or world != self._settled[0] or now_s >= self._settled[1]:
            plan = self._plan(world, demand)
            workers = {worker.worker_id: worker for worker in world.workers}
            self._settled = None
            if conflicts := await self._orders.write(plan.assignments, workers):
                raise Aborted(f"{conflicts} assignments were written by somebody else meanwhile")
            self._settled = (world, now_s + (SHORT_S if _is_short_of_memory(plan) else math.inf))
        if conflicts := await self._orders.forget({worker.worker_id: worker.region for worker in members}):
            raise Aborted(f"{conflicts} assignments of those who left were written by somebody else meanwhile")

    def answered(self, worker: Worker) -> Worker:
        """The worker, without the failures it told of before it knew its present assignment: it has yet to try again."""
        return self._orders.answered(worker)

    def copies_of(self, wish: Placement) -> int:
        """How many copies the wish comes to now."""
        scale = self.scales.get(wish.key)
        return max(wish.copies, scale.copies if scale is not None else 0)

    def shortage(self, key: CandidateKey) -> str:
        """Why there are fewer copies of it than wished for; empty: there are not. An empty version: any."""
        for short in self.shortfalls:
            wish = short.placement
            if (wish.model, wish.region) == (key.model, key.region) and key.version in ("", wish.version):
                return short.reason.value
        return ""

    async def _until_due(self) -> None:
        if self._may_ease:
            await sleep_unless(self._clock, IDLE_LOOK_S, self._touched)
        else:
            await self._touched.wait()
        if not self._hurried.is_set():
            await sleep_unless(self._clock, self._begun_s + PACE_S - self._clock.monotonic_s(), self._hurried)
        await self._clock.sleep(SETTLE_S)
        self._touched.clear()
        self._hurried.clear()
        self._begun_s = self._clock.monotonic_s()

    def _world(self, members: list[Worker], demand: Demand, now_s: float) -> _World:
        led = {worker.region for worker in members} | {wish.region for wish in self._control.wishes()}
        led = {region for region in led if self._leads(region) is not None}
        ours = [worker for worker in members if worker.region in led]
        workers = [self.answered(worker) for worker in ours]
        current = {who: written.models for who, written in self._control.assignments.items() if region_of(written.key) in led}
        wishes = [
            wish for wish in self._control.wishes() if wish.region in led and not self._is_withdrawn(wish.model, wish.digest)
        ]
        wishes = self._sized(wishes, ours)
        known = ((model, self._callers_of(model)) for model in {wish.model for wish in wishes})
        self._failures = observed(self._failures, workers, current, now_s)
        barred = bars(self._failures, wishes)
        relieved = barred.relieved.union(*(self._orders.relieved(worker) for worker in ours))
        self._rescale(scales(wishes, workers, current, demand, self.scales, now_s=now_s))
        self._may_ease = any(self.copies_of(wish) > wish.copies for wish in wishes)
        return _World(
            wishes=wishes,
            workers=workers,
            current=current,
            callers={model: callers for model, callers in known if callers is not None},
            copies={key: scale.copies for key, scale in self.scales.items()},
            bars=Bars(relieved, barred.exhausted),
        )

    def _sized(self, wishes: list[Placement], workers: list[Worker]) -> list[Placement]:
        """Who forgets what a copy took as soon as it is gone places it where it does not fit, again and again."""
        told = {copy.digest: copy.memory_bytes for worker in workers for copy in worker.copies if copy.memory_bytes}
        known = ((wish.digest, told.get(wish.digest) or self._sizes.get(wish.digest, 0)) for wish in wishes)
        self._sizes = {digest: size for digest, size in known if size}
        return [replace(wish, memory_bytes=self._sizes.get(wish.digest, wish.memory_bytes)) for wish in wishes]

    def _plan(self, world: _World, demand: Demand) -> Plan:
        since_s = demand.since_s if demand.since_s is not None else self._clock.monotonic_s()
        used_s = {key: since_s if (at_s := demand.used_s(key)) is None else at_s for key in world.copies}
        wanted = Wanted(world.copies, used_s)
        plan = assign(world.wishes, world.workers, world.current, world.callers, wanted=wanted, bars=world.bars)
        self._tell(plan)
        return plan

    def _rescale(self, after: Mapping[DemandKey, Scale]) -> None:
        for (region, model, version), scale in after.items():
            before = self.scales.get((region, model, version))
            if scale.copies != (before.copies if before is not None else 0):
                why = scale.reason.value
                _log.info("scaled", model=model, version=version, region=region, copies=scale.copies, why=why)
        self.scales = after

    async def _restore_wishes(self) -> None:
        """Whoever leads: who does may never have heard of them. A wish is never deleted, so none that is absent was ended."""
        for key, wish in list(self._control.lost.items()):
            restored = await self._store.txn([absent(key)], [Write(key, placement_bytes(wish))])
            self._control.lost.pop(key, None)
            if restored.succeeded:
                _log.warning("wish_restored", model=wish.model, version=wish.version, region=wish.region, copies=wish.copies)

    def _tell(self, plan: Plan) -> None:
        if plan.shortfalls == self.shortfalls:
            return
        self.shortfalls = plan.shortfalls
        for each in plan.shortfalls:
            wish = each.placement
            _log.warning(
                "copies_short",
                model=wish.model,
                version=wish.version,
                region=wish.region,
                wished=each.wanted,
                placed=each.placed,
                why=each.reason.value,
            )


def _is_short_of_memory(plan: Plan) -> bool:
    return any(each.reason is Shortage.NO_MEMORY for each in plan.shortfalls)
