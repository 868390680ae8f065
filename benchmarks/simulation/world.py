"""The clock and what happens by it: requests arrive and end, copies become ready, machines leave and join, regions are cut off.

A heap of events in virtual time. What is decided is asked of each region's mesh (`region.py`); what comes of it is done here.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.simulation.machines import Machine, new_machine
from benchmarks.simulation.region import Placed, RegionMesh
from benchmarks.simulation.tally import Tally
from benchmarks.simulation.types import Arrival, Partition, Sample, Scenario, SimModel
from placement.rules import Route
from placement.types import Outcome
from runtime.ids import ModelName, Region, WorkerId
from runtime.regions import REGIONS

_SHOW_S = 0.25
"""How often changed machines are shown to gateways and scheduler: presence, watch and stream together."""

_ROUND_S = 2.0
"""How often a scheduler reconciles, at most."""

_SAMPLE_S = 10.0
_MAX_ATTEMPTS = 3


@dataclass(slots=True)
class Running:
    """One request at a machine."""

    arrival: Arrival
    placed: Placed
    machine: Machine
    began_s: float
    attempts: int
    open: bool = True


class World:
    """One run. The route is the strategy under test."""

    def __init__(self, scenario: Scenario, models: Sequence[SimModel], machines: list[Machine], route: Route) -> None:
        self.scenario, self.models, self.machines, self.route = scenario, models, machines, route
        self.tally, self.now_s = Tally(), 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._rng = random.Random(f"world {self.scenario.seed}")
        self._by_id = {machine.worker_id: machine for machine in self.machines}
        self._by_name = {model.name: model for model in self.models}
        self._changed: dict[Region, set[WorkerId]] = {region: set() for region in REGIONS}
        self._cut: set[Region] = set()
        self._meshes = {
            region: RegionMesh(region, self.models, self.route, self.scenario, random.Random(f"{region} {self.scenario.seed}"))
            for region in REGIONS
        }
        self._running: dict[WorkerId, dict[int, Running]] = {}
        self._numbers = iter(range(1 << 60))
        for machine in self.machines:
            self._changed[machine.region].add(machine.worker_id)

    def run(self, arrivals: Iterable[Arrival]) -> list[Sample]:
        """Everything until the scenario's end."""
        self._schedule(arrivals)
        end_s = self.scenario.seconds
        while self._events and self._events[0][0] <= end_s:
            self.now_s, _, happens = heapq.heappop(self._events)
            happens()
        return self.tally.samples

    @property
    def unfinished(self) -> int:
        """Requests that were at a worker, or waited, when the time was over."""
        return sum(len(there) for there in self._running.values()) + sum(mesh.waiting for mesh in self._meshes.values())

    def _schedule(self, arrivals: Iterable[Arrival]) -> None:
        self._arrivals: Iterator[Arrival] = iter(arrivals)
        self._next_arrival()
        self._every(_SHOW_S, self._show)
        for offset, region in enumerate(REGIONS):
            self._every(_ROUND_S, partial(self._round, region), first_s=0.3 + 0.25 * offset)
        self._every(1.0, self._expire)
        self._every(_SAMPLE_S, self._sample)
        self._schedule_churn()
        for partition in self.scenario.partitions:
            self._at(partition.start_s, partial(self._cut_off, partition))
            self._at(partition.end_s, partial(self._heal, partition))

    def _at(self, at_s: float, happens: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_s, self._count, happens))

    def _every(self, period_s: float, happens: Callable[[], None], first_s: float | None = None) -> None:
        def again() -> None:
            happens()
            self._at(self.now_s + period_s, again)

        self._at(period_s if first_s is None else first_s, again)

    def _next_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self._at(arrival.at_s, partial(self._arrive, arrival))

    def _arrive(self, arrival: Arrival) -> None:
        self._next_arrival()
        self.tally.requests += 1
        self._try(arrival, attempts=0, failed=frozenset())

    def _try(self, arrival: Arrival, *, attempts: int, failed: frozenset[WorkerId]) -> None:
        found = self._meshes[arrival.region].route_request(arrival, self.now_s, failed)
        if found is None:
            self._wait(arrival)
        else:
            self._begin(arrival, found, attempts)

    def _begin(self, arrival: Arrival, placed: Placed, attempts: int) -> None:
        machine, mesh = self._by_id[placed.worker_id], self._meshes[arrival.region]
        if not machine.takes(arrival.model):  # gone, full by the other gateway's requests, or just unloaded
            outcome = Outcome.ANSWERED if machine.alive else Outcome.PATH_FAILED
            mesh.release(placed, outcome, self.now_s, None, machine, arrival.model)
            if attempts + 1 >= _MAX_ATTEMPTS:
                self._wait(arrival)
            else:
                self._try(arrival, attempts=attempts + 1, failed=placed.failed | {placed.worker_id})
            return
        takes_s = machine.begin(arrival.model, arrival.work_s, self.now_s)
        running, number = Running(arrival, placed, machine, self.now_s, attempts), next(self._numbers)
        self._running.setdefault(machine.worker_id, {})[number] = running
        self.tally.begun(arrival, machine, self.now_s)
        self._at(self.now_s + takes_s, partial(self._end, running, number))

    def _wait(self, arrival: Arrival) -> None:
        if self._meshes[arrival.region].wait(arrival, self.now_s):
            self.tally.waited += 1
        else:
            self.tally.refused += 1

    def _end(self, running: Running, number: int) -> None:
        if not running.open:
            return
        machine, arrival = running.machine, running.arrival
        del self._running[machine.worker_id][number]
        machine.end(arrival.model)
        mesh = self._meshes[arrival.region]
        took_ms = (self.now_s - running.began_s) * 1000
        mesh.release(running.placed, Outcome.ANSWERED, self.now_s, took_ms, machine, arrival.model)
        self.tally.ended(arrival, self.now_s)
        self._give(machine)

    def _give(self, machine: Machine) -> None:
        """A place has come free: whoever waits for it comes first."""
        mesh = self._meshes[machine.region]
        while machine.in_flight < machine.slots:
            given = mesh.next_waiter(machine, self.now_s)
            if given is None:
                return
            arrival, placed = given
            self._begin(arrival, placed, attempts=0)

    def _show(self) -> None:
        for region, changed in self._changed.items():
            if region in self._cut or not changed:
                continue
            alive = [self._by_id[who].shown() for who in changed if self._by_id[who].alive]
            self._meshes[region].see(alive, [who for who in changed if not self._by_id[who].alive])
            for who in changed:
                if self._by_id[who].alive:
                    self._give(self._by_id[who])
            changed.clear()

    def _round(self, region: Region) -> None:
        if region in self._cut:
            return  # its scheduler does not see etcd: nothing is written
        for who, wanted in self._meshes[region].reconcile(self.now_s).items():
            machine = self._by_id.get(who)
            if machine is not None and machine.alive and set(machine.wanted) != set(wanted):
                machine.told(wanted)
                self._converge(machine)

    def _converge(self, machine: Machine) -> None:
        begun, changed = machine.step(self.now_s)
        if changed:
            self._changed[machine.region].add(machine.worker_id)
        for name, ready_s in begun:
            self._at(ready_s, partial(self._loaded, machine, name))

    def _loaded(self, machine: Machine, name: ModelName) -> None:
        if machine.alive:
            machine.loaded(name, self.now_s)
            self._changed[machine.region].add(machine.worker_id)
            self._converge(machine)

    def _expire(self) -> None:
        for mesh in self._meshes.values():
            self.tally.expired += mesh.expire(self.now_s)

    def _schedule_churn(self) -> None:
        churn, end_s = self.scenario.churn, self.scenario.seconds
        for _ in range(churn.leaves):
            self._at(self._rng.uniform(0.1, 0.95) * end_s, self._leave)
        for number in range(churn.joins):
            self._at(self._rng.uniform(0.1, 0.95) * end_s, partial(self._join, self.scenario.workers + number))

    def _leave(self) -> None:
        alive = [machine for machine in self.machines if machine.alive]
        machine = self._rng.choice(alive)
        machine.alive = False
        self._changed[machine.region].add(machine.worker_id)
        for running in list(self._running.pop(machine.worker_id, {}).values()):
            running.open = False
            mesh = self._meshes[running.arrival.region]
            mesh.release(running.placed, Outcome.PATH_FAILED, self.now_s, None, machine, running.arrival.model)
            if running.attempts + 1 >= _MAX_ATTEMPTS:
                self.tally.lost += 1
            else:
                failed = running.placed.failed | {machine.worker_id}
                self._try(running.arrival, attempts=running.attempts + 1, failed=failed)

    def _join(self, number: int) -> None:
        region = REGIONS[number % len(REGIONS)]
        machine = new_machine(number, region, self.scenario, self._by_name, self._rng)
        self.machines.append(machine)
        self._by_id[machine.worker_id] = machine
        self._changed[region].add(machine.worker_id)

    def _cut_off(self, partition: Partition) -> None:
        self._cut.add(partition.region)

    def _heal(self, partition: Partition) -> None:
        self._cut.discard(partition.region)

    def _sample(self) -> None:
        self.tally.sample(self.now_s, self.machines)
