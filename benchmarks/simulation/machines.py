"""A worker as the mesh meets it: places, memory, copies that take their time to load, and an end without a word.

Does what its assignment says, as the real one does: what is not assigned any more is unloaded when it is idle, what is missing
is loaded, two at a time, and what does not fit pushes the least recently used out.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.simulation.types import VERSION, Scenario, SimModel
from placement.types import Copy, CopyState, Worker
from runtime.ids import ModelName, Region, WorkerId
from runtime.regions import REGIONS

_GIB = 2**30
_LOADS_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of machines."""

    name: str
    speed: float
    memory_bytes: int
    cost: float


KINDS = (Kind("small", 1.0, 24 * _GIB, 1.0), Kind("middle", 2.0, 80 * _GIB, 2.5), Kind("large", 4.0, 141 * _GIB, 6.0))
_MIX = (60, 30, 10)


@dataclass(slots=True)
class Machine:
    """One worker."""

    worker_id: WorkerId
    region: Region
    kind: Kind
    slots: int
    models: Mapping[ModelName, SimModel]
    states: dict[ModelName, CopyState] = field(default_factory=dict)
    used_s: dict[ModelName, float] = field(default_factory=dict)
    wanted: tuple[ModelName, ...] = ()
    in_flight: int = 0
    at_models: dict[ModelName, int] = field(default_factory=dict)
    loading: set[ModelName] = field(default_factory=set)
    alive: bool = True
    loads: int = 0
    evictions: int = 0

    @property
    def memory_bytes(self) -> int:
        """Taken by what is loaded or loading."""
        held = (name for name, state in self.states.items() if state in (CopyState.READY, CopyState.LOADING))
        return sum(self.models[name].memory_bytes for name in held)

    def shown(self) -> Worker:
        """Its presence."""
        copies = tuple(
            Copy(name, VERSION, self.models[name].digest, state, memory_bytes=self.models[name].memory_bytes)
            for name, state in sorted(self.states.items())
        )
        return Worker(
            self.worker_id,
            self.region,
            "",
            copies=copies,
            max_in_flight=self.slots,
            memory_budget_bytes=self.kind.memory_bytes,
            gpu_memory_bytes=self.kind.memory_bytes,
            cost=self.kind.cost,
        )

    def told(self, wanted: Collection[ModelName]) -> None:
        """A new assignment."""
        self.wanted = tuple(sorted(wanted))

    def step(self, now_s: float) -> tuple[list[tuple[ModelName, float]], bool]:
        """Converge a little: what begins to load and when it will be ready, and whether anything changed."""
        changed, begun = False, []
        for name in [name for name in self.states if name not in self.wanted]:
            if not self.at_models.get(name) and name not in self.loading:
                del self.states[name]
                changed = True
        for name in self.wanted:
            if len(self.loading) >= _LOADS_AT_ONCE:
                break
            if self.states.get(name) in (None, CopyState.UNAVAILABLE) and self._made_room(name):
                self.states[name] = CopyState.LOADING
                self.loading.add(name)
                self.loads += 1
                begun.append((name, now_s + self.models[name].load_s / self.kind.speed**0.5))
                changed = True
        return begun, changed

    def loaded(self, name: ModelName, now_s: float) -> None:
        self.loading.discard(name)
        if self.states.get(name) is CopyState.LOADING:
            self.states[name] = CopyState.READY
            self.used_s[name] = now_s

    def takes(self, name: ModelName) -> bool:
        return self.alive and self.in_flight < self.slots and self.states.get(name) is CopyState.READY

    def begin(self, name: ModelName, work_s: float, now_s: float) -> float:
        """A request begins; how long it will take, the more beside it the longer."""
        self.in_flight += 1
        self.at_models[name] = self.at_models.get(name, 0) + 1
        self.used_s[name] = now_s
        crowding = 1.0 + 0.35 * (self.in_flight - 1)  # places share one device: batching wins back most, not all
        return work_s / self.kind.speed * crowding

    def end(self, name: ModelName) -> None:
        self.in_flight -= 1
        self.at_models[name] -= 1

    def _made_room(self, name: ModelName) -> bool:
        """Push the least recently used out until it fits, but nothing that is being used."""
        need = self.models[name].memory_bytes
        while self.memory_bytes + need > self.kind.memory_bytes:
            idle = [
                each
                for each, state in self.states.items()
                if state is CopyState.READY
                and not self.at_models.get(each)
                and each not in self.wanted[: len(self.wanted) // 2]
            ]
            if not idle:
                return False
            oldest = min(idle, key=lambda each: (self.used_s.get(each, 0.0), each))
            self.states[oldest] = CopyState.UNAVAILABLE
            self.evictions += 1
        return True


def machines_of(scenario: Scenario, models: Sequence[SimModel]) -> list[Machine]:
    """The fleet at the beginning, spread evenly over the regions."""
    rng, by_name = random.Random(f"machines {scenario.seed}"), {model.name: model for model in models}
    return [new_machine(number, REGIONS[number % len(REGIONS)], scenario, by_name, rng) for number in range(scenario.workers)]


def new_machine(
    number: int, region: Region, scenario: Scenario, models: Mapping[ModelName, SimModel], rng: random.Random
) -> Machine:
    kind = rng.choices(KINDS, _MIX)[0]
    return Machine(WorkerId(f"{number:020x}"), region, kind, round(scenario.slots * max(1.0, kind.speed / 2)), models)
