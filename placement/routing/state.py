"""What one caller knows of the fleet beyond presence: its own reservations, what workers last said of their load, whom it
passes over, whose turn it is, which worker holds a session and which saw a prompt.

The only thing here that changes. `choose` reads it; the caller applies each decision with `reserve` and ends it with `release`,
exactly once each. Columns are indexed by the view's slots: `adopt` every new view before choosing from it.
Not for several threads at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from placement.candidates import Integers
from placement.routing.breaker import OPEN_S, BreakerSettings
from placement.routing.columns import Column
from placement.routing.health import Health
from placement.routing.outliers import OutlierSettings, OutlierSign
from placement.routing.prefixes import PrefixMemory
from placement.routing.rotation import Rotation
from placement.routing.selection import Selections
from placement.routing.sessions import SessionHome, Sessions
from placement.types import Granted, Load, Outcome, Why
from placement.view import NOBODY, FleetView
from runtime.ids import ModelName, Region, WorkerId

INHIBITED_S = OPEN_S
"""After a failure on the way to a worker. As Dynamo's local worker inhibition (docs/fault-tolerance, 5 s)."""

HEARD_LIFETIME_S = 5.0
"""What a worker said of itself counts that long: who is not asked any more is not heard of, and is not shunned for ever."""

LATENCY_SMOOTHING = 0.2
"""Weight of the newest latency in the moving average."""

SLOW_MS = 100.0
"""A latency of this much is half of the worst slowness; slowness = latency / (latency + SLOW_MS)."""


class RoutingState:
    """Reservations, loads, health, turns, sessions and prefixes over one view."""

    def __init__(
        self,
        view: FleetView | None = None,
        *,
        breaker: BreakerSettings | None = None,
        outlier: OutlierSettings | None = None,
    ) -> None:
        self.tenures: Integers = np.zeros(0, dtype=np.int64)
        self._lineage: object | None = None
        self.in_flight = Column()
        self.pressure = Column()
        """Requests of others and rows waiting, as last heard."""
        self.slowness = Column()
        self.latency_ms = Column()
        """The moving average; 0: unknown."""
        self.heard_at_s = Column(-np.inf)
        self._foreign = Column()
        self._occupied = Column()
        self.health = Health(breaker or BreakerSettings(), outlier or OutlierSettings())
        self.turns = Rotation()
        self.sessions = Sessions()
        self.prefixes = PrefixMemory()
        self.selections = Selections()
        self.proximity: Mapping[Region, float] = {}
        """How far each region is, 0 near to 1 far; the caller sets it. Of those not in it, one's own is 0 and others are 1."""
        if view is not None:
            self.adopt(view)

    def adopt(self, view: FleetView) -> None:
        """Choose from this view from now on: slots that changed hands start afresh, what concerned the gone is forgotten.

        Raises ValueError for a view that was not made from the one before: its slots are other workers'.
        """
        if self.tenures is view.tenures:
            return
        if self._lineage is not None and self._lineage is not view.lineage:
            raise ValueError("this view was not made from the adopted one; use FleetView.replaced_by on a whole snapshot")
        self._lineage = view.lineage
        grown = np.zeros(len(view.tenures), dtype=np.int64)
        grown[: len(self.tenures)] = self.tenures
        for column in self._columns():
            column.grow(len(grown))
        changed_hands = np.nonzero(grown != view.tenures)[0]
        for column in self._columns():
            column.array[changed_hands] = column.empty
        self.tenures = view.tenures
        self.health.adopt(view)
        self.turns.keep(view.models.keys())
        self.selections.forget_at_hand()

    def reserve(self, granted: Granted) -> None:
        """Apply a decision: the worker has one request more, and the turn moves on."""
        if self._current(granted):
            self.in_flight.values[granted.slot] += 1.0
        if granted.turn is not None:
            self.turns.move(granted)
        if granted.trial:
            self.health.probe(granted.worker_id, last_resort=granted.why is Why.LAST_RESORT)
        if granted.session_key:
            home = SessionHome(granted.worker_id, granted.tenure, granted.version)
            self.sessions.settle(granted.model, granted.session_key, home)

    def release(self, granted: Granted, outcome: Outcome, *, now_s: float, latency_ms: float | None = None) -> None:
        """Take a reservation back. A failed path opens the worker's breaker; an answer to a trial closes it.

        `latency_ms` is what the worker took to answer; None leaves its average as it is.
        """
        if not self._current(granted):
            return
        self.in_flight.values[granted.slot] -= 1.0
        if latency_ms is not None:
            self._learn(granted.slot, latency_ms, now_s)
        if outcome is not Outcome.ANSWERED or self.health.breakers:
            self.health.ended(granted.worker_id, outcome, now_s, probe=granted.trial)
        self.health.count(granted.model, granted.version, granted.worker_id, outcome, latency_ms)
        if granted.prefix and outcome is Outcome.ANSWERED:
            self.prefixes.learn(granted.prefix, granted.worker_id, granted.tenure)

    def inhibit(self, worker_id: WorkerId, now_s: float) -> None:
        """The way to this worker failed: do not choose it for a while, unless there is no other."""
        self.health.open(worker_id, now_s)

    def sweep(self, now_s: float) -> Mapping[WorkerId, OutlierSign]:
        """Put outliers aside; returns whom. Call it about once a second."""
        return self.health.sweep(now_s)

    def forget_session(self, model: ModelName, session_key: str) -> None:
        """A sticky session has ended."""
        self.sessions.forget(model, session_key)

    def hear(
        self, view: FleetView, worker_id: WorkerId, *, in_flight: int, queued_rows: int, now_s: float, draining: bool = False
    ) -> None:
        """What a worker says of itself. `in_flight` counts everybody's requests; what is not ours is others'."""
        seat = view.seats.get(worker_id)
        if seat is None or self.tenures is not view.tenures:
            return
        if draining or self.health.draining:
            self.health.drain(worker_id, draining=draining)
        foreign = max(0.0, in_flight - self.in_flight.values[seat.slot])
        self._foreign.values[seat.slot] = foreign
        self.pressure.values[seat.slot] = foreign + queued_rows
        self.heard_at_s.values[seat.slot] = now_s

    def occupy(self, view: FleetView, worker_id: WorkerId, places: int) -> None:
        """So many places are known to be others': for a caller that hears of them too rarely to be told by `hear`."""
        seat = view.seats.get(worker_id)
        if seat is not None and self.tenures is view.tenures:
            self.in_flight.values[seat.slot] += places - self._occupied.values[seat.slot]
            self._occupied.values[seat.slot] = places

    def own_in_flight(self, view: FleetView, worker_id: WorkerId) -> int:
        """What this caller has reserved there."""
        seat = view.seats.get(worker_id)
        if seat is None or self.tenures is not view.tenures:
            return 0
        return int(self.in_flight.values[seat.slot] - self._occupied.values[seat.slot])

    def suppose(self, view: FleetView, worker_id: WorkerId, load: Load, *, now_s: float, avoided: bool = False) -> None:
        """Take over what somebody else knows of a worker, as if we did: to explain their decisions, not to make any."""
        seat = view.seats.get(worker_id)
        if seat is None or self.tenures is not view.tenures:
            return
        slot = seat.slot
        self.in_flight.values[slot] = load.in_flight
        self.hear(
            view,
            worker_id,
            in_flight=load.in_flight + load.foreign_in_flight,
            queued_rows=load.queued_rows,
            now_s=now_s,
        )
        self._average(slot, load.latency_ewma_ms)
        if avoided:
            self.inhibit(worker_id, now_s)

    def load_of(self, view: FleetView, worker_id: WorkerId) -> Load:
        """For people and metrics, and for whoever asks whether to ask elsewhere; `choose` does not decide by it."""
        seat = view.seats.get(worker_id)
        if seat is None or self.tenures is not view.tenures:
            return Load()
        slot, foreign = seat.slot, self._foreign.values[seat.slot]
        occupied = self._occupied.values[slot]
        return Load(
            int(self.in_flight.values[slot] - occupied),
            int(foreign + occupied),
            int(self.pressure.values[slot] - foreign),
            self.latency_ms.values[slot],
        )

    def _learn(self, slot: int, latency_ms: float, now_s: float) -> None:
        fresh = now_s - self.heard_at_s.values[slot] < HEARD_LIFETIME_S
        known = self.latency_ms.values[slot]
        self._average(slot, known + LATENCY_SMOOTHING * (latency_ms - known) if fresh and known else latency_ms)
        if not fresh:
            self.pressure.values[slot] = self._foreign.values[slot] = 0.0
        self.heard_at_s.values[slot] = now_s

    def _average(self, slot: int, average_ms: float) -> None:
        self.latency_ms.values[slot] = average_ms
        self.slowness.values[slot] = average_ms / (average_ms + SLOW_MS)

    def _current(self, granted: Granted) -> bool:
        return granted.slot < len(self.tenures) and self.tenures[granted.slot] == granted.tenure != NOBODY

    def _columns(self) -> tuple[Column, ...]:
        shunned = self.health.shunned_until_s
        others = self._foreign, self._occupied
        return (self.in_flight, self.pressure, self.slowness, self.latency_ms, self.heard_at_s, *others, shunned)
