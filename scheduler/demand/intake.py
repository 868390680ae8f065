"""What all gateways together ask for, and how busy they find the workers.

Each gateway tells every scheduler, so whoever begins to lead knows the demand already. What a gateway told of workers counts
for a few seconds and no longer than its stream; what it told of demand fades by itself (`placement.copies.demand`).

Owns the shares. Never decides what follows from them: who wants to know is called when something was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from placement.copies.demand import FADED_S, Asked, Demand, Share, folded
from placement.types import Load
from runtime.clock import Clock
from runtime.errors import ResourceExhausted
from runtime.ids import ModelName, ModelVersion, NodeId, Region, WorkerId
from scheduler.demand.types import Report, SeenWorker

MAX_GATEWAYS = 1_000
"""Streams that are open at once."""

STREAMS_OF_ONE = 8
"""A gateway needs one; others are of connections that it has lost. So many that ended are remembered of it, too."""

HEARD_S = 5.0
"""What a gateway told of workers counts for so long."""

GRACE_S = 30.0
"""A gateway whose stream ended counts as heard for so long: it may be on its way back."""

FOLD_S = 0.5
"""The sum is made anew at most so often."""


@dataclass(slots=True, eq=False)
class Gateway:
    """One stream, and what it told."""

    node_id: NodeId | None = None
    share: Share = field(default_factory=Share)
    workers: tuple[SeenWorker, ...] = ()
    heard_s: float = -math.inf
    ended_s: float = math.inf


class DemandIntake:
    """Belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._gateways: list[Gateway] = []
        self._ended: list[Gateway] = []
        self._own = Gateway()
        """What this scheduler's own rooms saw: requests that wait here for a model nobody holds."""
        self._demand, self._folded_s = Demand(), -math.inf
        self.on_asked: list[Callable[[], None]] = []
        """Called whenever a gateway asked for something."""
        self.reports = 0

    def __len__(self) -> int:
        """How many gateways tell of their demand."""
        return len(self._gateways)

    @contextmanager
    def listening(self, node_id: NodeId | None = None) -> Iterator[Gateway]:
        """A gateway tells for as long as the context lasts. Raises ResourceExhausted where too many do, or it too often."""
        if len(self._gateways) >= MAX_GATEWAYS:
            raise ResourceExhausted(f"{MAX_GATEWAYS} gateways tell this scheduler of their demand already", retry_after_s=30.0)
        if node_id is not None and sum(each.node_id == node_id for each in self._gateways) >= STREAMS_OF_ONE:
            raise ResourceExhausted(
                f"gateway {node_id} tells of its demand on {STREAMS_OF_ONE} streams already; one is enough", retry_after_s=30.0
            )
        gateway = Gateway(node_id)
        self._gateways.append(gateway)
        try:
            yield gateway
        finally:
            self._gateways.remove(gateway)
            gateway.workers, gateway.ended_s = (), self._clock.monotonic_s()
            theirs = [each for each in self._ended if node_id is not None and each.node_id == node_id]
            forgotten = theirs[0] if len(theirs) >= STREAMS_OF_ONE else None
            self._ended = [*(each for each in self._ended if each is not forgotten), gateway][-MAX_GATEWAYS:]

    def hear(self, gateway: Gateway, report: Report) -> None:
        """A message of one that is listened to."""
        now_s = self._clock.monotonic_s()
        gateway.share = gateway.share.heard(report.region, report.interval_s, report.asked, now_s)
        gateway.workers, gateway.heard_s = report.workers, now_s
        self.reports += 1
        if report.asked:
            self._tell()

    def missed(self, model: ModelName, version: ModelVersion, region: Region) -> None:
        """A request waits in this scheduler for a copy of a model that nobody has ready; an empty version: any."""
        asked = (Asked(model, version, requests=1, missed=1),)
        self._own.share = self._own.share.heard(region, 1.0, asked, self._clock.monotonic_s())
        self._tell()

    def demand(self, now_s: float) -> Demand:
        """All of it."""
        if now_s - self._folded_s >= FOLD_S:
            self._ended = [each for each in self._ended if now_s - each.ended_s < FADED_S]
            everybody = (*self._gateways, *self._ended)
            heard = any(each.heard_s > -math.inf and now_s - each.ended_s < GRACE_S for each in everybody)
            shares = (each.share for each in (*everybody, self._own))
            self._demand, self._folded_s = folded(shares, self._demand, now_s, heard=heard), now_s
        return self._demand

    def loads(self) -> Mapping[WorkerId, Load]:
        """How busy each worker is, as gateways last told. This scheduler has nothing there itself: all of it is others'."""
        told: dict[WorkerId, list[SeenWorker]] = {}
        for seen in self._seen():
            told.setdefault(seen.worker_id, []).append(seen)
        return {who: _load(seen) for who, seen in told.items()}

    def avoided(self) -> frozenset[WorkerId]:
        """Whom a gateway passes over for now."""
        return frozenset(seen.worker_id for seen in self._seen() if seen.avoided)

    def _seen(self) -> Iterator[SeenWorker]:
        now_s = self._clock.monotonic_s()
        for gateway in self._gateways:
            if now_s - gateway.heard_s < HEARD_S:
                yield from gateway.workers

    def _tell(self) -> None:
        self._folded_s = -math.inf
        for listener in self.on_asked:
            listener()


def _load(seen: list[SeenWorker]) -> Load:
    """Everybody's requests: what the worker told one of them, or what they know of together, whichever is more."""
    known = sum(each.in_flight for each in seen)
    timed = [each.latency_ms for each in seen if each.latency_ms]
    return Load(
        foreign_in_flight=max(known, max(each.told_in_flight for each in seen)),
        queued_rows=max(each.queued_rows for each in seen),
        latency_ewma_ms=math.fsum(timed) / len(timed) if timed else 0.0,
    )
