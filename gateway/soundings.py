"""How far other regions are from here, as measured: by the links that there are, and where there is none by one now and then.

A link to another region is opened at its first request, so without soundings only a region that was chosen before would have
been measured, and the table would go on deciding about the others. Owns what was measured last. Measures nothing where requests
stay in their region.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gateway.links.roster import Link
from gateway.regions import rtt_by_region
from placement.view import FleetView
from runtime.ids import Region, WorkerId

AGAIN_S = 300.0
"""A region is sounded again so long after it was last measured."""

RETRY_S = 5.0
"""A worker that was asked and does not answer: another one is asked."""


class Fleet(Protocol):
    """Whose workers are reached: gateway.fleet.Fleet."""

    @property
    def home(self) -> Region: ...

    @property
    def view(self) -> FleetView: ...

    @property
    def links(self) -> Mapping[WorkerId, Link]: ...

    @property
    def crosses(self) -> bool: ...

    def inhabited(self) -> frozenset[Region]: ...

    def link(self, worker_id: WorkerId) -> Link: ...


class Soundings:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._rtt_ms: dict[Region, float] = {}
        self._due_s: dict[Region, float] = {}
        self._tried: dict[Region, int] = {}

    def take(self, fleet: Fleet, now_s: float) -> Mapping[Region, float]:
        """The round trip to each region in ms, where it is known. Call it about once a second."""
        inhabited, workers = fleet.inhabited(), fleet.view.workers
        trips = ((workers[who].region, link.rtt_ms) for who, link in fleet.links.items() if who in workers and link.ready)
        measured = rtt_by_region(trips)
        for kept in (self._rtt_ms, self._due_s, self._tried):
            for region in kept.keys() - inhabited:
                del kept[region]
        self._rtt_ms.update(measured)
        self._due_s.update(dict.fromkeys(measured, now_s + AGAIN_S))
        if fleet.crosses:
            for region in sorted(inhabited - measured.keys() - {fleet.home}):
                if now_s >= self._due_s.get(region, now_s):
                    self._sound(fleet, region, now_s)
        return self._rtt_ms

    def _sound(self, fleet: Fleet, region: Region, now_s: float) -> None:
        """Have a worker there linked to; the next one each time. A link that is not used goes by itself."""
        there = sorted(who for who, worker in fleet.view.workers.items() if worker.region == region)
        self._tried[region] = tried = self._tried.get(region, -1) + 1
        self._due_s[region] = now_s + RETRY_S
        fleet.link(there[tried % len(there)])
