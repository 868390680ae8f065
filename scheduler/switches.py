"""Carries pending alias moves through: copies of the new target are wished for, and when they are warm the alias moves.

Level-triggered: a notice only marks its model, and as long as moves are pending each is looked at again and again.
`placement.copies.switch` says what is next; wishes are written as everybody else's are, and the registry, which decides what
an alias means, is told SWITCH or why not. One scheduler does it; the registry refuses what concerns an older state of the
alias (ABORTED), so that a leader who does not know yet that it is none does no harm. A move that was given up leaves the
wishes as they were before it. While etcd is not seen nothing is decided.

Owns what it remembers of moves: when each was first seen, what was wished for it. Never decides what is warm, and keeps
nothing that a restart would miss: a scheduler that begins anew, or begins to lead, goes on from the wishes that it finds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from placement.copies.assign import Assignments, Placement
from placement.copies.switch import MOVE_LIMIT_S, Abandon, FleetIndex, Move, Place, Switch, Target, Wait, indexed, next_step
from runtime.backoff import Backoff, sleep_unless
from runtime.clock import Clock
from runtime.errors import Aborted, PenstockError
from runtime.ids import ModelName, Region, placement_key
from runtime.notices import STABLE, AliasTarget, ModelNotice, PendingTarget
from scheduler.loop import Scheduler
from scheduler.placements import Placements

POLL_S = 0.2
"""How often it is seen whether anything changed while moves are pending."""

LOOK_S = 1.0
"""How often pending moves are looked at where nothing did."""

ECHO_S = 5.0
"""How long what was written may take to be seen here before it is written again."""

SETTLE_S = 0.02
"""Notices that come together, as when a registry begins, make one round."""

_IDLE_S = 3_600.0
_AT_ONCE = 8
_log = structlog.get_logger("penstock.switches")

MoveKey = tuple[ModelName, str, int]
"""Model, alias and the alias's generation."""


class Registry(Protocol):
    """Who decides what an alias means."""

    async def settle_alias(self, model: ModelName, alias: str, generation: int, abandoned_because: str = "") -> None:
        """Raises Aborted where the alias was changed since."""
        ...


@dataclass(slots=True)
class _Progress:
    """What is remembered of one pending move."""

    seen_s: float
    begun: bool = False
    failures: int = 0
    not_before_s: float = 0.0
    echo_by_s: float = 0.0
    written: dict[Region, Placement] = field(default_factory=dict)
    """Wishes made for it."""
    before: dict[Region, Placement | None] = field(default_factory=dict)
    """What was wished for there before it; None: nothing."""
    afterwards: dict[Region, Placement] = field(default_factory=dict)
    """What those wishes come to once it is done, where demand alone asked for so many."""
    told: str = ""


@dataclass(frozen=True, slots=True)
class _View:
    """The world of one round."""

    wishes: list[Placement]
    workers: FleetIndex
    assignments: Assignments


class Switches:
    """The loop over pending moves. Belongs to one event loop."""

    def __init__(
        self,
        scheduler: Scheduler,
        placements: Placements,
        registry: Registry,
        clock: Clock,
        rng: random.Random,
        *,
        limit_s: float = MOVE_LIMIT_S,
        backoff: Backoff | None = None,
    ) -> None:
        self._scheduler, self._board, self._control = scheduler, scheduler.board, scheduler.control
        self._placements, self._registry, self._clock, self._rng = placements, registry, clock, rng
        self._limit_s, self._backoff = limit_s, backoff or Backoff(first_s=0.2, max_s=5.0)
        self._dirty: set[ModelName] = set(self._board.models)
        self._pending: dict[MoveKey, tuple[ModelNotice, AliasTarget, PendingTarget]] = {}
        self._progress: dict[MoveKey, _Progress] = {}
        self._news = asyncio.Event()
        self._changes = -1
        self._led = False
        self._look_at_s = 0.0
        self._places = asyncio.Semaphore(_AT_ONCE)
        self.switched = 0
        self.abandoned = 0
        self._board.on_model.append(self._hear)

    def __len__(self) -> int:
        """How many moves are pending."""
        return len(self._pending)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry moves through while the context lasts."""
        working = asyncio.create_task(self.run(), name="switches")
        try:
            yield
        finally:
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working

    async def run(self) -> None:
        """Look at what is pending, until cancelled."""
        while True:
            self._news.clear()
            await self.round()
            await sleep_unless(self._clock, POLL_S if self._pending else _IDLE_S, self._news)
            await self._clock.sleep(SETTLE_S)

    async def round(self) -> None:
        """One step for each pending move, all by one view, if there is news or some time has passed."""
        has_news = self._read() or self._changes != self._scheduler.changes
        now_s = self._clock.monotonic_s()
        if not self._leads():
            return
        if not (self._pending and self._scheduler.synced() and self._scheduler.connected()):
            return
        if not has_news and now_s < self._look_at_s:
            return
        self._changes, self._look_at_s = self._scheduler.changes, now_s + LOOK_S
        view = self._view()
        async with asyncio.TaskGroup() as group:
            for key in list(self._pending):
                group.create_task(self._look_at(key, view))

    def _leads(self) -> bool:
        """Whether the moves are this scheduler's now. What it did the last time they were is history by then."""
        leads = self._scheduler.leads_moves()
        if leads and not self._led:
            self._progress = {key: _Progress(progress.seen_s) for key, progress in self._progress.items()}
            self._changes = -1
        self._led = leads
        return leads

    def _view(self) -> _View:
        wishes = [wish for wish in self._control.wishes() if not self._board.is_withdrawn(wish.model, wish.digest)]
        workers = indexed(self._scheduler.reconciler.answered(worker) for worker in self._scheduler.fleet.workers())
        return _View(wishes, workers, {who: written.models for who, written in self._control.assignments.items()})

    def _hear(self, model: ModelName) -> None:
        self._dirty.add(model)
        self._news.set()

    def _read(self) -> bool:
        """Bring `_pending` to what the notices say; whether there were any."""
        if not self._dirty:
            return False
        dirty, self._dirty = self._dirty, set()
        for key in [key for key in self._pending if key[0] in dirty]:
            del self._pending[key]
        for model in dirty:
            notice = self._board.model(model)
            for alias in notice.aliases if notice is not None else ():
                if notice is not None and alias.pending is not None and alias.pending.digest not in notice.withdrawn:
                    self._pending[model, alias.alias, alias.generation] = (notice, alias, alias.pending)
        now_s = self._clock.monotonic_s()
        self._progress = {key: self._progress.get(key) or _Progress(now_s) for key in self._pending}
        return True

    async def _look_at(self, key: MoveKey, view: _View) -> None:
        """A step that fails is taken again, ever later; it never ends the other moves' steps."""
        progress = self._progress[key]
        async with self._places:
            if not self._is_due(progress) or not self._scheduler.leads_moves():
                return
            try:
                await self._step(key, progress, view)
                progress.failures = 0
            except Aborted as error:
                _log.info("alias_changed_meanwhile", model=key[0], alias=key[1], why=error.message)
                self._postpone(progress)
            except PenstockError as error:
                _log.warning("alias_not_settled", model=key[0], alias=key[1], why=error.message)
                self._postpone(progress)
            except Exception as error:
                _log.error("switch_broke", model=key[0], alias=key[1], exc_info=error)
                self._postpone(progress)

    def _is_due(self, progress: _Progress) -> bool:
        now_s = self._clock.monotonic_s()
        return now_s >= progress.not_before_s and (now_s >= progress.echo_by_s or self._has_echoed(progress))

    def _postpone(self, progress: _Progress) -> None:
        progress.failures += 1
        progress.not_before_s = self._clock.monotonic_s() + self._backoff.delay_s(progress.failures, self._rng)

    async def _step(self, key: MoveKey, progress: _Progress, view: _View) -> None:
        model, alias, generation = key
        move = self._move(key, progress)
        step = next_step(move, view.wishes, view.workers, view.assignments, limit_s=self._limit_s)
        match step:
            case Place(wishes=wishes, afterwards=afterwards):
                await self._place(wishes, afterwards, progress)
                _log.info("alias_warming", model=model, alias=alias, version=move.target.version, wishes=_shown(wishes))
            case Switch():
                await self._registry.settle_alias(model, alias, generation)
                self.switched += 1
                _log.info("alias_switched", model=model, alias=alias, version=move.target.version)
                progress.not_before_s = self._clock.monotonic_s() + ECHO_S
                await self._leave_to_demand(progress)
            case Abandon(reason=reason):
                await self._registry.settle_alias(model, alias, generation, reason)
                self.abandoned += 1
                _log.warning("alias_move_abandoned", model=model, alias=alias, version=move.target.version, why=reason)
                progress.not_before_s = self._clock.monotonic_s() + ECHO_S
                await self._take_back(progress)
            case Wait(why=why) if why != progress.told:
                progress.told = why
                _log.info("alias_waits", model=model, alias=alias, why=why)

    def _move(self, key: MoveKey, progress: _Progress) -> Move:
        notice, alias, pending = self._pending[key]
        stable = notice.alias(STABLE)
        waited_s = min(self._clock.monotonic_s() - progress.seen_s, max(0.0, self._clock.wall_s() - pending.since_ms / 1000))
        return Move(
            model=notice.model,
            alias=alias.alias,
            generation=alias.generation,
            target=Target(pending.version, pending.digest),
            points_at=_target(alias),
            stable=_target(stable) if stable is not None else None,
            waited_s=waited_s,
            begun=progress.begun,
        )

    async def _place(self, wishes: tuple[Placement, ...], afterwards: tuple[Placement, ...], progress: _Progress) -> None:
        for wish in wishes:
            progress.before.setdefault(wish.region, self._control.wish_at(_key(wish)))
            progress.written[wish.region] = await self._placements.place(wish)
        for wish in afterwards:
            progress.afterwards.setdefault(wish.region, wish)
        progress.begun, progress.echo_by_s = True, self._clock.monotonic_s() + ECHO_S

    async def _take_back(self, progress: _Progress) -> None:
        """Wishes as they were before the move, but for those that somebody changed since."""
        for region, wish in progress.written.items():
            known = progress.before[region]
            await self._replace(wish, known if known is not None else replace(wish, copies=0, max_copies=0))

    async def _leave_to_demand(self, progress: _Progress) -> None:
        """What only demand asked for is demand's again, but for wishes that somebody changed since."""
        for region, wish in progress.afterwards.items():
            await self._replace(progress.written[region], wish)

    async def _replace(self, wish: Placement, by: Placement) -> None:
        if self._control.wish_at(_key(wish)) == wish:
            await self._placements.place(by)

    def _has_echoed(self, progress: _Progress) -> bool:
        """Whether the wishes made are among those known here. After `echo_by_s` they count as lost."""
        return all(
            (known := self._control.wish_at(_key(wish))) is not None and known.generation >= wish.generation
            for wish in progress.written.values()
        )


def _key(wish: Placement) -> str:
    return placement_key(wish.region, wish.model, wish.version)


def _target(alias: AliasTarget) -> Target | None:
    return Target(alias.version, alias.digest) if alias.version else None


def _shown(wishes: tuple[Placement, ...]) -> dict[str, int]:
    return {wish.region: wish.copies for wish in wishes}
