"""Where holds should wait for those that wait in one line: at which workers, for which version, for whose tenants.

Pure. A hold counts for a tenant at its worker, where each tenant has a part at most; so at each worker holds of several tenants
wait, in the order of their turns, and whoever may have a place there gets it. For a few requests a few workers are asked, and
a few more than that: the first that has a place will do, and each that gives one for nothing loses a moment.

Never decides who gets a place that was granted: the queue does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from placement.routing.selection import is_allowed
from placement.rules import Route
from placement.types import ANY_REGION, ANY_VERSION, CandidateKey
from placement.view import FleetView
from placement.waiting.fair_turns import Ticket, Waiter
from runtime.ids import ModelVersion, Region, TenantId, WorkerId

WINDOW = 64
"""The next so many of a line are looked at for whose tenants to hold, and as many of tenants that are not among them."""


@dataclass(frozen=True, slots=True, eq=False)
class Reach:
    """Which workers are of use to a request. Those that reach alike share one, so that few are looked at."""

    region: Region
    route: Route
    exclude: frozenset[WorkerId] = frozenset()

    def takes(self, view: FleetView, worker_id: WorkerId) -> bool:
        seat = view.seats.get(worker_id)
        return (
            seat is not None
            and worker_id not in self.exclude
            and (self.route.cross_region or seat.region == self.region)
            and is_allowed(seat, self.route)
        )


@dataclass(frozen=True, slots=True)
class Aim:
    """Where one hold waits."""

    worker_id: WorkerId
    version: ModelVersion
    tenant: TenantId


def ready_workers(view: FleetView, key: CandidateKey, *, abroad: bool) -> dict[WorkerId, ModelVersion]:
    """Who answers for it, with which version: at home first, and the largest first. `abroad`: in other regions too."""
    index = view.models.get(key.model)
    found: dict[WorkerId, ModelVersion] = {}
    if index is None:
        return found
    for region in (key.region, ANY_REGION) if abroad else (key.region,):
        version = key.version or index.newest_ready.get(region, ANY_VERSION)
        candidates = index.ready.get((version, region))
        seats = candidates.seats if candidates is not None else ()
        for seat in sorted(seats, key=lambda seat: (-seat.capacity, seat.hash64)):
            found.setdefault(seat.worker_id, version)
    return found


def aims_of(
    waiters: Sequence[Waiter],
    workers: Mapping[WorkerId, ModelVersion],
    reaches: Mapping[Ticket, Reach],
    view: FleetView,
    *,
    at_most: int,
    per_worker: int,
) -> Counter[Aim]:
    """Holds to have for the next ones of a line, `at_most` in all; the first of each worker before any second."""
    distinct = frozenset(reaches.values())
    known: dict[frozenset[Reach], list[TenantId]] = {}
    told: list[tuple[WorkerId, ModelVersion, list[TenantId]]] = []
    for worker_id, version in workers.items():
        if len(told) >= at_most:
            break
        of_use = frozenset(reach for reach in distinct if reach.takes(view, worker_id))
        if of_use not in known:
            known[of_use] = _tenants((each for each in waiters if reaches[each.ticket] in of_use), per_worker)
        if known[of_use]:
            told.append((worker_id, version, known[of_use]))
    layers = (
        Aim(worker_id, version, tenants[depth])
        for depth in range(per_worker)
        for worker_id, version, tenants in told
        if depth < len(tenants)
    )
    return Counter(islice(layers, at_most))


def _tenants(waiters: Iterable[Waiter], at_most: int) -> list[TenantId]:
    """Whose holds: each tenant once, in the order of their turns, before any twice."""
    found: list[TenantId] = []
    again: list[TenantId] = []
    for waiter in waiters:
        (again if waiter.tenant in found else found).append(waiter.tenant)
    return [*found, *again][:at_most]
