"""One region's mesh around the core: two gateways that choose, a scheduler that places, a queue for those without a place.

Everything that decides is `placement`'s. Gateways know of each other's requests only by what workers tell with their answers.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.simulation.machines import Machine
from benchmarks.simulation.types import VERSION, Arrival, Scenario, SimModel
from placement.candidates import hash64
from placement.copies.assign import AssignedModel, Placement, assign
from placement.copies.demand import Asked, Demand, DemandKey, Share, folded
from placement.copies.scale import Scale, scales
from placement.copies.wishes import Wanted
from placement.routing.policy import choose
from placement.routing.state import RoutingState
from placement.rules import Route
from placement.types import CandidateKey, CopyState, Granted, Outcome, Request, Worker
from placement.view import FleetView
from placement.waiting.fair_turns import Ticket, Waiter
from placement.waiting.queue import CapacityQueue, QueueBounds
from runtime.ids import ModelName, Region, TenantId, WorkerId

_GATEWAYS = 2
_MAX_COPIES = 64
_TOLD_S = 1.0
"""How often gateways tell of demand."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A request that was given a worker: by a gateway's choice, or from the queue."""

    worker_id: WorkerId
    gateway: int
    granted: Granted | None
    """None: it came from the queue, on a place that was kept for it."""
    failed: frozenset[WorkerId] = frozenset()


class RegionMesh:
    """Gateways, queue and scheduler of one region."""

    def __init__(
        self, region: Region, models: Sequence[SimModel], route: Route, scenario: Scenario, rng: random.Random
    ) -> None:
        self._region, self._route, self._scenario, self._rng = region, route, scenario, rng
        self._models = {model.name: model for model in models}
        self._view = FleetView()
        self._gateways = [RoutingState(self._view) for _ in range(_GATEWAYS)]
        self._queue = CapacityQueue(QueueBounds())
        self._waiting: dict[Ticket, Arrival] = {}
        self._tickets = 0
        self._counts: list[dict[ModelName, Counter[str]]] = [{} for _ in range(_GATEWAYS)]
        self._busy_s: list[dict[ModelName, float]] = [{} for _ in range(_GATEWAYS)]
        self._shares = [Share() for _ in range(_GATEWAYS)]
        self._told_s = 0.0
        self._demand, self._scales = Demand(), dict[DemandKey, Scale]()
        self._assigned: dict[WorkerId, tuple[AssignedModel, ...]] = {}
        self._wishes = [
            Placement(model.name, VERSION, model.digest, region, 0, 1, _MAX_COPIES, memory_bytes=model.memory_bytes)
            for model in models
        ]

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def see(self, workers: Iterable[Worker], removed: Iterable[WorkerId]) -> None:
        """The fleet has changed."""
        self._view = self._view.with_changes(workers, removed)
        for state in self._gateways:
            state.adopt(self._view)

    def route_request(self, arrival: Arrival, now_s: float, failed: frozenset[WorkerId]) -> Placed | None:
        """A worker by the policy; None: nobody has a place for it now."""
        gateway = hash64(arrival.session) % _GATEWAYS
        state, asked = self._gateways[gateway], self._counts[gateway].setdefault(arrival.model, Counter())
        request = Request(
            arrival.model,
            VERSION,
            self._region,
            session_key=arrival.session,
            exclude=failed,
            draw=self._rng.getrandbits(64),
        )
        asked["requests"] += not failed
        decision = choose(self._view, state, request, now_s=now_s, route=self._route)
        if isinstance(decision, Granted):
            state.reserve(decision)
            return Placed(decision.worker_id, gateway, decision, failed)
        index = self._view.models.get(arrival.model)
        asked["refused" if index is not None and index.ready else "missed"] += 1
        return None

    def wait(self, arrival: Arrival, now_s: float) -> bool:
        """Whether it may wait for a place."""
        self._tickets += 1
        ticket = Ticket(self._tickets)
        waiter = Waiter(
            ticket, self._key(arrival.model), TenantId(arrival.tenant), now_s, arrival.at_s + self._scenario.deadline_s
        )
        if self._queue.offer(waiter, now_s) is not None:
            return False
        self._waiting[ticket] = arrival
        return True

    def next_waiter(self, machine: Machine, now_s: float) -> tuple[Arrival, Placed] | None:
        """Who waits for a place on this machine, if anybody does."""
        if not self._waiting:
            return None
        for name, state in machine.states.items():
            if state is CopyState.READY and (waiter := self._queue.take(self._key(name), now_s)) is not None:
                return self._waiting.pop(waiter.ticket), Placed(machine.worker_id, waiter.ticket % _GATEWAYS, None)
        return None

    def expire(self, now_s: float) -> int:
        """How many waited in vain."""
        expired = self._queue.expire(now_s)
        for waiter in expired:
            del self._waiting[waiter.ticket]
        return len(expired)

    def release(
        self, placed: Placed, outcome: Outcome, now_s: float, latency_ms: float | None, machine: Machine, model: ModelName
    ) -> None:
        """A request has ended at its worker, which tells with its answer how busy it is."""
        state = self._gateways[placed.gateway]
        if latency_ms is not None:
            busy = self._busy_s[placed.gateway]
            busy[model] = busy.get(model, 0.0) + latency_ms / 1000
        if placed.granted is not None:
            state.release(placed.granted, outcome, now_s=now_s, latency_ms=latency_ms)
        state.hear(self._view, placed.worker_id, in_flight=machine.in_flight, queued_rows=0, now_s=now_s)

    def reconcile(self, now_s: float) -> dict[WorkerId, tuple[ModelName, ...]]:
        """What each worker should hold by now."""
        self._tell(now_s)
        self._demand = folded(self._shares, self._demand, now_s)
        workers = list(self._view.workers.values())
        current = {who: held for who, held in self._assigned.items() if who in self._view.workers}
        self._scales = scales(self._wishes, workers, current, self._demand, self._scales, now_s=now_s)
        wanted = Wanted(
            {key: scale.copies for key, scale in self._scales.items()},
            {key: trace.used_s for key, trace in self._demand.traces.items()},
        )
        self._assigned = dict(assign(self._wishes, workers, current, wanted=wanted).assignments)
        return {who: tuple(held.model for held in models) for who, models in self._assigned.items()}

    def _tell(self, now_s: float) -> None:
        interval_s = max(_TOLD_S, now_s - self._told_s)
        self._told_s = now_s
        for gateway, counts in enumerate(self._counts):
            busy = self._busy_s[gateway]
            asked = [
                _asked(name, counts.get(name, Counter()), busy.get(name, 0.0)) for name in sorted(counts.keys() | busy.keys())
            ]
            self._shares[gateway] = self._shares[gateway].heard(self._region, interval_s, asked, now_s)
            counts.clear()
            busy.clear()

    def _key(self, model: ModelName) -> CandidateKey:
        return CandidateKey(model, VERSION, self._region)


def _asked(name: ModelName, counts: Counter[str], busy_s: float) -> Asked:
    return Asked(name, VERSION, counts["requests"], counts["refused"], counts["missed"], busy_s)
