"""The fleet as the policy reads it, kept beside the members: candidates by model, and how busy gateways say everyone is.

Copies of withdrawn versions are not in it. Owns view and routing state of this scheduler; several of its rooms choose by them:
explanations, reservations, the endpoint picker. Never does I/O and never chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from placement.proximity import distances
from placement.routing.state import RoutingState
from placement.types import ANY_REGION, Load, Worker
from placement.view import FleetView
from runtime.clock import Clock
from runtime.ids import ModelName, Region, WorkerId
from runtime.notices import NoticeBoard
from scheduler.fleet import Fleet
from scheduler.types import FleetDelta

HEAR_EVERY_S = 0.2
"""Loads come from gateways once a second each; reading them more often tells nothing new."""

SWEEP_EVERY_S = 1.0
"""How often outliers are looked for."""


class Outlook:
    """Belongs to one event loop. Feed it with `follow`; read `view` and `state` after `look`."""

    def __init__(
        self,
        fleet: Fleet,
        board: NoticeBoard,
        clock: Clock,
        loads: Callable[[], Mapping[WorkerId, Load]],
        home: Region = ANY_REGION,
    ) -> None:
        self._home = home
        self._fleet, self._board, self._clock, self._loads = fleet, board, clock, loads
        self._heard_s = self._swept_s = float("-inf")
        self._occupied: set[WorkerId] = set()
        self.view = FleetView()
        self.state = RoutingState(self.view)
        board.on_model.append(self._hear_model)

    def follow(self, delta: FleetDelta) -> None:
        """Take over what changed in the fleet."""
        members = self._fleet.members
        changed = [self._served(members[who].worker) for who in delta.changed if who in members]
        self._show(self.view.with_changes(changed, delta.removed))

    def look(self) -> float:
        """Bring the loads up to date; the time by which to choose now."""
        now_s = self._clock.monotonic_s()
        if now_s - self._heard_s >= HEAR_EVERY_S:
            self._heard_s = now_s
            self._hear(self._loads(), now_s)
        if now_s - self._swept_s >= SWEEP_EVERY_S:
            self._swept_s = now_s
            self.state.sweep(now_s)
        return now_s

    def _hear(self, loads: Mapping[WorkerId, Load], now_s: float) -> None:
        """Others' places count as taken: whoever is full by gateways' requests is full here."""
        for who in self._occupied - loads.keys():
            self.state.occupy(self.view, who, 0)
        for who, load in loads.items():
            own = self.state.own_in_flight(self.view, who)
            self.state.occupy(self.view, who, max(0, load.in_flight + load.foreign_in_flight - own))
            self.state.hear(self.view, who, in_flight=0, queued_rows=load.queued_rows, now_s=now_s)
        self._occupied = set(loads)

    def _hear_model(self, model: ModelName) -> None:
        notice, index = self._board.model(model), self.view.models.get(model)
        if notice is not None and notice.withdrawn and index is not None:
            self._show(self.view.with_changes([self._served(self.view.workers[holder]) for holder in index.holders]))

    def _served(self, worker: Worker) -> Worker:
        kept = tuple(copy for copy in worker.copies if not self._board.is_withdrawn(copy.model, copy.digest))
        return worker if len(kept) == len(worker.copies) else replace(worker, copies=kept)

    def _show(self, view: FleetView) -> None:
        self.view = view
        self.state.adopt(view)
        self.state.proximity = distances(self._home, {worker.region for worker in view.workers.values()}, {})
