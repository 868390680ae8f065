"""What one caller knows of the fleet beyond presence: its own reservations, what workers last said of their load, whom it
inhibits, whose turn it is.

The only thing here that changes. `choose` reads it; the caller applies each decision with `reserve` and ends it with `release`,
exactly once each. Columns are indexed by the view's slots: `adopt` every new view before choosing from it.
Not for several threads at once.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from placement.candidates import Floats, Integers
from placement.types import CandidateKey, Granted, Load, Outcome
from placement.view import NOBODY, FleetView
from runtime.ids import WorkerId

INHIBITED_S = 5.0
"""After a failure on the way to a worker. As Dynamo's local worker inhibition (docs/fault-tolerance, 5 s)."""

HEARD_LIFETIME_S = 5.0
"""What a worker said of itself counts that long: who is not asked any more is not heard of, and is not shunned for ever."""

LATENCY_SMOOTHING = 0.2
"""Weight of the newest latency in the moving average."""

SLOW_MS = 100.0
"""A latency of this much is half of the worst slowness; slowness = latency / (latency + SLOW_MS)."""


@dataclass(slots=True)
class Inhibition:
    """A worker that failed on the way. After `until_s` one request may try it; until that one has ended no other may."""

    until_s: float
    trying: bool = False

    def blocks(self, now_s: float) -> bool:
        return self.trying or now_s < self.until_s


class RoutingState:
    """Reservations, loads, inhibitions and turns over one view."""

    def __init__(self, view: FleetView | None = None) -> None:
        self.tenures: Integers = np.zeros(0, dtype=np.int64)
        self._lineage: object | None = None
        self.in_flight = _Column()
        self.pressure = _Column()
        """Requests of others and rows waiting, as last heard."""
        self.slowness = _Column()
        self.heard_at_s = _Column()
        self._foreign = _Column()
        self._latency_ms = _Column()
        self.inhibitions: dict[WorkerId, Inhibition] = {}
        self.draining: set[WorkerId] = set()
        self.turns: dict[CandidateKey, WorkerId] = {}
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
        for slot in np.nonzero(grown != view.tenures)[0].tolist():
            for column in self._columns():
                column.values[slot] = 0.0
            self.heard_at_s.values[slot] = -np.inf
        self.tenures = view.tenures
        self.inhibitions = {who: held for who, held in self.inhibitions.items() if who in view.seats}
        self.draining &= view.seats.keys()
        self.turns = {key: who for key, who in self.turns.items() if key.model in view.models}

    def reserve(self, granted: Granted) -> None:
        """Apply a decision: the worker has one request more, and the turn moves on."""
        if self._current(granted):
            self.in_flight.values[granted.slot] += 1.0
        if granted.trial and (held := self.inhibitions.get(granted.worker_id)) is not None:
            held.trying = True
        if granted.turn is not None:
            self.turns[granted.turn] = granted.worker_id

    def release(self, granted: Granted, outcome: Outcome, *, now_s: float, latency_ms: float | None = None) -> None:
        """Take a reservation back. A failed path inhibits the worker; an answer to a trial lifts its inhibition.

        `latency_ms` is what the worker took to answer; None leaves its average as it is.
        """
        if not self._current(granted):
            return
        self.in_flight.values[granted.slot] -= 1.0
        if latency_ms is not None:
            self._learn(granted.slot, latency_ms, now_s)
        if outcome is Outcome.PATH_FAILED:
            self.inhibit(granted.worker_id, now_s)
        elif granted.trial and (held := self.inhibitions.get(granted.worker_id)) is not None:
            if outcome is Outcome.ANSWERED:
                del self.inhibitions[granted.worker_id]
            else:
                held.trying = False

    def inhibit(self, worker_id: WorkerId, now_s: float) -> None:
        """The way to this worker failed: do not choose it for a while, unless there is no other."""
        self.inhibitions[worker_id] = Inhibition(now_s + INHIBITED_S)

    def hear(
        self, view: FleetView, worker_id: WorkerId, *, in_flight: int, queued_rows: int, now_s: float, draining: bool = False
    ) -> None:
        """What a worker says of itself. `in_flight` counts everybody's requests; what is not ours is others'."""
        (self.draining.add if draining else self.draining.discard)(worker_id)
        seat = view.seats.get(worker_id)
        if seat is None or self.tenures is not view.tenures:
            return
        foreign = max(0.0, in_flight - self.in_flight.values[seat.slot])
        self._foreign.values[seat.slot] = foreign
        self.pressure.values[seat.slot] = foreign + queued_rows
        self.heard_at_s.values[seat.slot] = now_s

    def load_of(self, view: FleetView, worker_id: WorkerId) -> Load:
        """For people and metrics; nothing decides by it."""
        seat = view.seats.get(worker_id)
        if seat is None or self.tenures is not view.tenures:
            return Load()
        slot, foreign = seat.slot, self._foreign.values[seat.slot]
        return Load(
            int(self.in_flight.values[slot]),
            int(foreign),
            int(self.pressure.values[slot] - foreign),
            self._latency_ms.values[slot],
        )

    def _learn(self, slot: int, latency_ms: float, now_s: float) -> None:
        fresh = now_s - self.heard_at_s.values[slot] < HEARD_LIFETIME_S
        known = self._latency_ms.values[slot]
        average = known + LATENCY_SMOOTHING * (latency_ms - known) if fresh and known else latency_ms
        self._latency_ms.values[slot] = average
        self.slowness.values[slot] = average / (average + SLOW_MS)
        if not fresh:
            self.pressure.values[slot] = self._foreign.values[slot] = 0.0
        self.heard_at_s.values[slot] = now_s

    def _current(self, granted: Granted) -> bool:
        return granted.slot < len(self.tenures) and self.tenures[granted.slot] == granted.tenure != NOBODY

    def _columns(self) -> tuple[_Column, ...]:
        return (self.in_flight, self.pressure, self.slowness, self.heard_at_s, self._foreign, self._latency_ms)


class _Column:
    """Numbers by slot: `values` reads one in nanoseconds, `array` is the same memory for numpy."""

    __slots__ = ("array", "values")

    def __init__(self) -> None:
        self.values: array[float] = array("d")
        self.array: Floats = np.zeros(0, dtype=np.float64)

    def grow(self, size: int) -> None:
        if size > len(self.values):
            self.values = array("d", [*self.values, *([0.0] * (size - len(self.values)))])
            self.array = np.frombuffer(self.values, dtype=np.float64)
