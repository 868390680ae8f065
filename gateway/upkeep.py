"""What the gateway does once a second besides answering: puts outliers aside, measures regions, lets idle links go.

Never waits for anybody, so it is never late by more than its own work.
"""

from __future__ import annotations

import asyncio

import structlog

from gateway.fleet import Fleet
from gateway.metrics import GatewayMetrics
from gateway.regions import proximity
from gateway.soundings import Soundings
from runtime.clock import Clock
from runtime.ids import WorkerId

EVERY_S = 1.0
_log = structlog.get_logger("penstock.upkeep")


class Upkeep:
    """Belongs to one event loop. `run` goes on until it is cancelled."""

    def __init__(self, fleet: Fleet, metrics: GatewayMetrics, clock: Clock) -> None:
        self._fleet, self._metrics, self._clock = fleet, metrics, clock
        self._loop = asyncio.get_running_loop()
        self._looked_s = self._loop.time()
        self._soundings = Soundings()

    async def run(self) -> None:
        while True:
            await self._clock.sleep(EVERY_S)
            try:
                self.look()
            except Exception:
                _log.exception("upkeep failed in a way nobody mapped; requests are answered all the same")

    def look(self) -> None:
        """Once."""
        for worker_id, sign in self._fleet.state.sweep(self._loop.time()).items():
            self._metrics.ejected(sign)
            _log.warning("outlier_put_aside", worker_id=worker_id, why=sign.value)
        self._measure()
        self._fleet.drop_idle_links(self._was_used)
        self._looked_s = self._loop.time()

    def _measure(self) -> None:
        """How far regions are; where there is but one, nothing is to be compared."""
        fleet = self._fleet
        known = fleet.regions()
        if len(known) < 2:
            return
        rtt_ms = self._soundings.take(fleet, self._loop.time())
        fleet.state.proximity = proximity(fleet.home, known, rtt_ms)
        self._metrics.measured(rtt_ms)

    def _was_used(self, worker_id: WorkerId) -> bool:
        seat = self._fleet.view.seats.get(worker_id)
        return seat is not None and self._fleet.state.heard_at_s.values[seat.slot] >= self._looked_s
