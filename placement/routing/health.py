"""Whom one caller passes over while others have room: breakers that are open, outliers put aside, workers that drain.

Owns breakers, ejections and the windows they are judged by, and sums them up in one column: until when each worker is passed
over. Never takes anyone away: where nobody else has room the passed over are asked all the same, so the last is always asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from placement.routing import breaker as breakers
from placement.routing.breaker import IDLE, Breaker, BreakerEvent, BreakerSettings
from placement.routing.columns import Column
from placement.routing.outliers import OutlierSettings, OutlierSign, Window, outliers, put_aside_s
from placement.types import Outcome
from placement.view import FleetView
from runtime.ids import ModelName, ModelVersion, Region, WorkerId

_BREAKER_EVENTS = {
    (Outcome.ANSWERED, False): BreakerEvent.ANSWERED,
    (Outcome.FAILED, False): BreakerEvent.FAILED,
    (Outcome.PATH_FAILED, False): BreakerEvent.PATH_FAILED,
    (Outcome.ANSWERED, True): BreakerEvent.PROBE_ANSWERED,
    (Outcome.FAILED, True): BreakerEvent.PROBE_FAILED,
    (Outcome.PATH_FAILED, True): BreakerEvent.PROBE_FAILED,
    (Outcome.UNKNOWN, True): BreakerEvent.PROBE_LOST,
}


@dataclass(frozen=True, slots=True)
class Ejection:
    """A worker put aside as an outlier, or one that was of late: each further time is longer."""

    until_s: float
    times: int
    sign: OutlierSign


class Health:
    """Of the workers in the adopted view."""

    def __init__(self, breaker: BreakerSettings, outlier: OutlierSettings) -> None:
        self._breaker, self._outlier = breaker, outlier
        self._view = FleetView()
        self._windows: dict[tuple[ModelName, ModelVersion], dict[WorkerId, Window]] = {}
        self._interval_until_s = -math.inf
        self.breakers: dict[WorkerId, Breaker] = {}
        """Those that are not idle."""
        self.ejections: dict[WorkerId, Ejection] = {}
        self.draining: set[WorkerId] = set()
        self.shunned_until_s = Column(-math.inf)

    @property
    def shuns(self) -> bool:
        """Whether anyone may be passed over; if not, nobody need look at the column."""
        return bool(self.breakers or self.ejections or self.draining)

    def shunned(self, now_s: float) -> frozenset[WorkerId]:
        """Who is passed over now."""
        return frozenset(who for who in self._concerned() if now_s < self._until_s(who))

    def why_shunned(self, worker_id: WorkerId, now_s: float) -> str:
        """For people: why it is passed over now."""
        if worker_id in self.draining:
            return "it is draining"
        ejected = self.ejections.get(worker_id)
        if ejected is not None and now_s < ejected.until_s:
            return f"put aside for {ejected.until_s - now_s:.0f} s more: {ejected.sign.value}"
        held = self.breakers.get(worker_id)
        if held is None or held.is_closed:
            return "it is not passed over any more"
        if now_s < held.open_until_s:
            return f"its breaker is open for {held.open_until_s - now_s:.1f} s more"
        return "its breaker is half open, and enough probes are out"

    def is_trusted(self, worker_id: WorkerId) -> bool:
        """Whether a request there is no probe."""
        known = self.breakers.get(worker_id)
        return known is None or known.is_closed

    def adopt(self, view: FleetView) -> None:
        """Forget the gone. The column has the view's size by now."""
        self._view = view
        self.breakers = {who: held for who, held in self.breakers.items() if who in view.seats}
        self.ejections = {who: held for who, held in self.ejections.items() if who in view.seats}
        self.draining &= view.seats.keys()
        self._windows = {key: windows for key, windows in self._windows.items() if key[0] in view.models}
        for who in self._concerned():
            self._sum_up(who)

    def drain(self, worker_id: WorkerId, *, draining: bool) -> None:
        if draining is not (worker_id in self.draining):
            (self.draining.add if draining else self.draining.discard)(worker_id)
            self._sum_up(worker_id)

    def open(self, worker_id: WorkerId, now_s: float) -> None:
        """The way to this worker failed."""
        self._happened(worker_id, BreakerEvent.PATH_FAILED, now_s)

    def probe(self, worker_id: WorkerId, *, last_resort: bool) -> None:
        """A request goes there though its breaker is not closed; `last_resort`: before its time has passed."""
        self._happened(worker_id, BreakerEvent.LAST_RESORT_BEGAN if last_resort else BreakerEvent.PROBE_BEGAN, -math.inf)

    def ended(self, worker_id: WorkerId, outcome: Outcome, now_s: float, *, probe: bool) -> None:
        """How a request there went, for its breaker."""
        if outcome is Outcome.ANSWERED and worker_id not in self.breakers:
            return  # counting begins with a failure
        event = _BREAKER_EVENTS.get((outcome, probe))
        if event is not None:
            self._happened(worker_id, event, now_s)

    def count(
        self, model: ModelName, version: ModelVersion, worker_id: WorkerId, outcome: Outcome, latency_ms: float | None
    ) -> None:
        """How a request there went, for the comparison with others."""
        if outcome is Outcome.UNKNOWN:
            return
        windows = self._windows.get((model, version))
        if windows is None:
            windows = self._windows[model, version] = {}
        window = windows.get(worker_id)
        if window is None:
            window = windows[worker_id] = Window()
        if outcome is Outcome.ANSWERED:
            window.answered += 1
            window.in_a_row = 0
            if latency_ms is not None:
                window.timed += 1
                window.latency_ms += latency_ms
        else:
            window.failed += 1
            window.in_a_row += 1

    def sweep(self, now_s: float) -> dict[WorkerId, OutlierSign]:
        """Put outliers aside; returns whom. Call it about once a second."""
        over = now_s >= self._interval_until_s
        newly: dict[WorkerId, OutlierSign] = {}
        for (model, version), windows in self._windows.items():
            for region, part in self._by_region(windows).items():
                hosts = self._view.models[model].ready.get((version, region))
                if hosts is not None:
                    aside = sum(hosts.index_of(who) >= 0 for who, held in self.ejections.items() if now_s < held.until_s)
                    here = {who: window for who, window in part.items() if not self._is_aside(who, now_s)}
                    found = outliers(here, len(hosts.seats), aside, self._outlier, rates=over)
                    for who, sign in found.items():
                        self._eject(who, sign, now_s)
                    newly |= found
        if over:
            self._begin_interval(now_s)
        return newly

    def _eject(self, worker_id: WorkerId, sign: OutlierSign, now_s: float) -> None:
        before = self.ejections.get(worker_id)
        times = 1 + (before.times if before is not None else 0)
        self.ejections[worker_id] = Ejection(now_s + put_aside_s(times, self._outlier), times, sign)
        for windows in self._windows.values():
            windows.pop(worker_id, None)
        self._sum_up(worker_id)

    def _begin_interval(self, now_s: float) -> None:
        """Counts start afresh, but for failures in a row; who behaved has one time less against it."""
        self._interval_until_s = now_s + self._outlier.interval_s
        for key, windows in list(self._windows.items()):
            self._windows[key] = {who: Window(in_a_row=each.in_a_row) for who, each in windows.items() if each.in_a_row}
        self._windows = {key: windows for key, windows in self._windows.items() if windows}
        for who, held in list(self.ejections.items()):
            if now_s >= held.until_s:
                if held.times > 1:
                    self.ejections[who] = Ejection(held.until_s, held.times - 1, held.sign)
                else:
                    del self.ejections[who]
                self._sum_up(who)

    def _by_region(self, windows: dict[WorkerId, Window]) -> dict[Region, dict[WorkerId, Window]]:
        parts: dict[Region, dict[WorkerId, Window]] = {}
        for who, window in windows.items():
            if (worker := self._view.workers.get(who)) is not None:
                parts.setdefault(worker.region, {})[who] = window
        return parts

    def _is_aside(self, worker_id: WorkerId, now_s: float) -> bool:
        held = self.ejections.get(worker_id)
        return held is not None and now_s < held.until_s

    def _happened(self, worker_id: WorkerId, event: BreakerEvent, now_s: float) -> None:
        changed = breakers.after(self.breakers.get(worker_id, IDLE), event, now_s, self._breaker)
        if changed.is_idle:
            self.breakers.pop(worker_id, None)
        else:
            self.breakers[worker_id] = changed
        self._sum_up(worker_id)

    def _concerned(self) -> Iterator[WorkerId]:
        seen: set[WorkerId] = set()
        groups: tuple[Iterable[WorkerId], ...] = (self.breakers, self.ejections, self.draining)
        for group in groups:
            yield from (who for who in group if who not in seen)
            seen.update(group)

    def _until_s(self, worker_id: WorkerId) -> float:
        if worker_id in self.draining:
            return math.inf
        held, ejected = self.breakers.get(worker_id), self.ejections.get(worker_id)
        until_s = -math.inf if held is None else breakers.shuns_until_s(held, self._breaker)
        return until_s if ejected is None else max(until_s, ejected.until_s)

    def _sum_up(self, worker_id: WorkerId) -> None:
        if (seat := self._view.seats.get(worker_id)) is not None:
            self.shunned_until_s.values[seat.slot] = self._until_s(worker_id)
