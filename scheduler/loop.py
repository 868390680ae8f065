"""The scheduler's loops: follow presence and control keys, notice when etcd is away, let the missed go.

Only carries: what is believed, what it changes, and what follows from it are decided by `fleet`, `control`, `reconcile` and
`audience`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from runtime.clock import Clock
from runtime.ids import PRESENCE_PREFIX, ModelName, NodeId, Region, WorkerId
from runtime.keyvalue import Compare, KeyValueStore, Snapshot, Watch
from runtime.notices import NoticeBoard
from scheduler.audience import Audience
from scheduler.control import CONTROL_PREFIX, Control
from scheduler.fleet import Fleet
from scheduler.leading.leadership import Leadership
from scheduler.presence import PresenceReader
from scheduler.reconcile import Reconciler
from scheduler.types import FleetDelta

TICK_S = 0.2
RESYNC_S = 30.0
"""A round of reconciling happens at least this often, so that nothing that was missed stays missed."""

_log = structlog.get_logger("penstock.scheduler")


class Scheduler:
    """The fleet, the wishes, those who watch, and the loops that keep them true."""

    def __init__(
        self,
        store: KeyValueStore,
        reader: PresenceReader,
        clock: Clock,
        rng: random.Random,
        board: NoticeBoard | None = None,
        leadership: Leadership | None = None,
    ) -> None:
        """`board`: what the registry tells; who follows it is the caller's to see to, as who stands for `leadership` is.
        Without one this scheduler leads everything, and needs to prove it to nobody.
        """
        self._store, self._clock, self.leadership = store, clock, leadership
        self._watches: tuple[Watch, ...] = ()
        self.changes = 0
        """Grows whenever the fleet, the wishes or the assignments became others."""
        self.on_delta: list[Callable[[FleetDelta], None]] = []
        """Called with each change of the fleet, before anybody else hears of it."""
        self.on_change: list[Callable[[], None]] = []
        """Called after whatever else a decision may rest on became another: fleet, wishes, who leads."""
        self.board = board or NoticeBoard()
        self.board.on_model.append(self._hear_of_model)
        self.board.revocations.listeners.append(self._hear_of_node)
        self.fleet, self.control = Fleet(reader), Control()
        self.reconciler = Reconciler(
            store,
            self.fleet,
            self.control,
            clock,
            rng,
            connected=self.connected,
            is_withdrawn=self.board.is_withdrawn,
            callers_of=self._callers_of,
            leads=self.leads,
        )
        self.audience = Audience(
            self.fleet,
            self.control.wishes,
            stale=lambda: not self.connected(),
            ready=self.synced,
            leaders=leadership.leaders if leadership is not None else tuple,
        )
        if leadership is not None:
            leadership.on_change.append(self._hear_of_leaders)

    def leads(self, region: Region) -> Sequence[Compare] | None:
        """The conditions on which this scheduler may write for the region; None: another one does."""
        return () if self.leadership is None else self.leadership.leads(region)

    def leads_moves(self) -> bool:
        """Whether this scheduler carries alias moves through."""
        return self.leadership is None or self.leadership.leads_moves() is not None

    def connected(self) -> bool:
        """Whether changes in etcd arrive as they happen."""
        return bool(self._watches) and all(watch.connected for watch in self._watches)

    def synced(self) -> bool:
        """Whether etcd has been seen whole since this process began."""
        return self.fleet.synced and self.control.synced

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the loops while the context lasts; leaving ends every watch of the fleet first."""
        async with AsyncExitStack() as stack:
            presence = await stack.enter_async_context(self._store.watch(PRESENCE_PREFIX))
            control = await stack.enter_async_context(self._store.watch(CONTROL_PREFIX))
            self._watches = (presence, control)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            tasks = [
                group.create_task(loop, name=name)
                for name, loop in (
                    ("presence", self._follow_presence(presence)),
                    ("control", self._follow_control(control)),
                    ("reconcile", self.reconciler.run()),
                    ("tick", self._tick()),
                )
            ]
            try:
                yield
            finally:
                self.audience.close()
                for task in tasks:
                    task.cancel()

    async def _follow_presence(self, watch: Watch) -> None:
        async for update in watch:
            now_s, now_wall_s = self._clock.monotonic_s(), self._clock.wall_s()
            if isinstance(update, Snapshot):
                first = not self.fleet.synced
                delta = self.fleet.replace(update.items, now_s=now_s, now_wall_s=now_wall_s)
                _log.info("fleet_read", workers=len(self.fleet.members), revision=update.revision, first=first)
                self.audience.wake()
                self.reconciler.touch()
            else:
                delta = self.fleet.apply(update.events, now_s=now_s, now_wall_s=now_wall_s)
            self._spread(delta)

    async def _follow_control(self, watch: Watch) -> None:
        async for update in watch:
            if isinstance(update, Snapshot):
                changed = self.control.replace(update.items)
                self.audience.wake()
            else:
                changed = self.control.apply(update.events)
            if changed:
                self.audience.tell_placements()
            self._changed()

    async def _tick(self) -> None:
        connected, resync_at_s = False, self._clock.monotonic_s() + RESYNC_S
        while True:
            await self._clock.sleep(TICK_S)
            now_s = self._clock.monotonic_s()
            if connected is not (connected := self.connected()):
                _log.info("etcd_seen" if connected else "etcd_away", workers=len(self.fleet.members))
            # By what each was last told and last could do, not by the change seen here: etcd may go and come between two ticks.
            self.audience.tell_staleness()
            if connected:
                self._spread(self.fleet.expire(now_s))
            else:
                self.fleet.hold(now_s)
            if connected and self.reconciler.deferred:
                self.reconciler.touch()
            if now_s >= resync_at_s:
                resync_at_s = now_s + RESYNC_S
                self.reconciler.touch()

    def _hear_of_model(self, model: ModelName) -> None:
        notice = self.board.model(model)
        if notice is not None and (notice.withdrawn or self.fleet.is_divided):
            self.reconciler.touch()

    def _hear_of_leaders(self) -> None:
        self.audience.tell_leaders()
        self._changed()

    def _callers_of(self, model: ModelName) -> frozenset[str] | None:
        notice = self.board.model(model)
        return None if notice is None else notice.callers

    def _hear_of_node(self, node_id: NodeId) -> None:
        self._spread(self.fleet.drop(WorkerId(node_id)))

    def _spread(self, delta: FleetDelta) -> None:
        for who in delta.removed:
            _log.info("worker_left", worker=who)
        if delta:
            for follow in self.on_delta:
                follow(delta)
            self.audience.tell(delta)
            self._changed()

    def _changed(self) -> None:
        self.changes += 1
        self.reconciler.touch()
        for listener in self.on_change:
            listener()
