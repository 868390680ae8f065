"""A small world in which workers come, go, break and run out of memory: whatever happens, it comes to rest."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from hypothesis import given, settings
from hypothesis import strategies as st

from placement.copies.assign import Plan, Shortage, assign
from placement.copies.demand import Demand, DemandKey, Rate, Trace
from placement.copies.failures import Failures, bars, observed
from placement.copies.scale import Scale, scales
from placement.copies.wishes import Assignments, Placement, Wanted
from placement.types import Copy, CopyState, Worker
from runtime.ids import Digest, ModelName, ModelVersion, WorkerId
from tests.placement.fleets import HERE, worker

GIB = 1 << 30
MODELS = ("m0", "m1", "m2")
V1 = ModelVersion("1")
S = CopyState
ROUNDS = 25
"""In which everything comes to rest; a broken version is tried five times, and what gives way does so one after the other."""

STEP_S = 5.0


def digest_of(model: str) -> Digest:
    return Digest(hashlib.sha256(model.encode()).hexdigest())


@dataclass
class World:
    """Workers that obey, and a scheduler that looks at them again and again."""

    sizes: Mapping[str, int]
    now_s: float = 50_000.0
    budgets: dict[str, int] = field(default_factory=dict)
    broken: set[tuple[str, str]] = field(default_factory=set)
    """Worker and model: it fails to load there."""
    wishes: dict[str, Placement] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    """Concurrency by model; 0: asked for now and then. Not in here: not asked for."""
    held: dict[str, dict[str, Copy]] = field(default_factory=dict)
    current: Assignments = field(default_factory=dict)
    before: Mapping[DemandKey, Scale] = field(default_factory=dict)
    failures: Failures = field(default_factory=dict)
    plan: Plan = field(default_factory=lambda: Plan({}))

    def fleet(self) -> list[Worker]:
        return [
            dataclasses.replace(
                worker(name, *self.held.get(name, {}).values(), capacity=10), memory_budget_bytes=self.budgets[name] * GIB
            )
            for name in self.budgets
        ]

    def demand(self) -> Demand:
        keys = {model: (HERE, ModelName(model), V1) for model in MODELS}
        return Demand(
            {keys[model]: Rate(1.0, height) for model, height in self.busy.items()},
            {keys[model]: Trace(self.now_s, ((int(self.now_s // 300), height),)) for model, height in self.busy.items()},
            0.0,
        )

    def look(self) -> bool:
        """One round; whether it changed anything."""
        fleet, demand, wishes = self.fleet(), self.demand(), list(self.wishes.values())
        self.before = scales(wishes, fleet, self.current, demand, self.before, now_s=self.now_s)
        self.failures = observed(self.failures, fleet, self.current, self.now_s)
        used_s = {wish.key: demand.used_s(wish.key) or 0.0 for wish in wishes}
        wanted = Wanted({key: scale.copies for key, scale in self.before.items()}, used_s)
        self.plan = assign(wishes, fleet, self.current, wanted=wanted, bars=bars(self.failures, wishes))
        gone = {who: models for who, models in self.current.items() if who not in self.plan.assignments}
        after = {**gone, **self.plan.assignments}
        changed, self.current = after != self.current, after
        return changed

    def obey(self) -> None:
        """Each worker does what it is told, as far as it fits; who lets go of something for memory says so."""
        for name in self.budgets:
            held, told = self.held.setdefault(name, {}), self.current.get(WorkerId(name), ())
            for model in set(held) - {each.model for each in told}:
                del held[model]
            for each in told:
                copy = held.get(each.model)
                if copy is None or (copy.state is S.UNAVAILABLE and self._fits(name, each.model)):
                    held[each.model] = self._loaded(name, each.model)

    def _loaded(self, name: str, model: str) -> Copy:
        state = S.FAILED if (name, model) in self.broken else S.READY if self._fits(name, model) else S.UNAVAILABLE
        reason = "" if state is S.READY else f"it is {state.value}"
        return Copy(ModelName(model), V1, digest_of(model), state, reason, memory_bytes=self.sizes[model] * GIB)

    def _fits(self, name: str, model: str) -> bool:
        taken = sum(self.sizes[other] for other, copy in self.held[name].items() if copy.state is S.READY)
        return taken + self.sizes[model] <= self.budgets[name]

    def rest(self) -> None:
        for _ in range(ROUNDS):
            before = {name: dict(held) for name, held in self.held.items()}
            changed = self.look()
            self.obey()
            self.now_s += STEP_S
            if not changed and self.held == before:
                return
        raise AssertionError(f"no rest after {ROUNDS} rounds: {self.current}")

    def ready(self, model: str) -> int:
        return sum(model in held and held[model].state is S.READY for name, held in self.held.items() if name in self.budgets)


class Event(Protocol):
    """Something that happens to the world."""

    def happen(self, world: World) -> None: ...


@dataclass(frozen=True)
class Joins:
    name: str
    gib: int

    def happen(self, world: World) -> None:
        world.budgets[self.name] = self.gib
        world.held[self.name] = {}  # also where it was there before: it was started anew


@dataclass(frozen=True)
class Leaves:
    name: str

    def happen(self, world: World) -> None:
        world.budgets.pop(self.name, None)
        world.held.pop(self.name, None)


@dataclass(frozen=True)
class Wished:
    model: str
    copies: int
    most: int

    def happen(self, world: World) -> None:
        generation = world.wishes[self.model].generation + 1 if self.model in world.wishes else 1
        digest, size = digest_of(self.model), world.sizes[self.model] * GIB
        world.wishes[self.model] = Placement(
            ModelName(self.model), V1, digest, HERE, self.copies, generation, self.most, memory_bytes=size
        )


@dataclass(frozen=True)
class AskedFor:
    model: str
    concurrency: float | None

    def happen(self, world: World) -> None:
        world.busy.pop(self.model, None)
        if self.concurrency is not None:
            world.busy[self.model] = self.concurrency


@dataclass(frozen=True)
class Breaks:
    name: str
    model: str

    def happen(self, world: World) -> None:
        world.broken.add((self.name, self.model))
        held = world.held.get(self.name, {})
        if self.model in held:
            held[self.model] = dataclasses.replace(held[self.model], state=S.FAILED, reason="it broke")


names = st.integers(0, 6).map(lambda number: f"w{number}")
models = st.sampled_from(MODELS)
events = st.one_of(
    st.builds(Joins, names, st.integers(2, 8)),
    st.builds(Joins, names, st.integers(2, 8)),
    st.builds(Leaves, names),
    st.builds(Wished, models, st.integers(0, 3), st.sampled_from([0, 2, 4, 8])),
    st.builds(AskedFor, models, st.sampled_from([None, 0.0, 3.0, 20.0, 60.0])),
    st.builds(Breaks, names, models),
)
sizes = st.tuples(*(st.integers(1, 4) for _ in MODELS)).map(lambda drawn: dict(zip(MODELS, drawn, strict=True)))


@settings(deadline=None, max_examples=200)
@given(sizes, st.lists(st.tuples(events, st.booleans()), max_size=14))
def test_whatever_happens_it_comes_to_rest(drawn: dict[str, int], story: list[tuple[Event, bool]]) -> None:
    """Events come one at a time or several before anybody looks."""
    world = World(drawn)
    for event, looked_at in story:
        event.happen(world)
        if looked_at:
            world.look()
            world.obey()
            world.now_s += STEP_S
    world.rest()
    assert not world.look(), "and stays so"
    for name, gib in world.budgets.items():
        told = [each.model for each in world.current.get(WorkerId(name), ())]
        loading = [model for model in told if world.held[name][model].state is not S.FAILED]
        assert sum(drawn[model] for model in loading) <= gib, "nobody is promised memory that is not there"
        assert all(world.held[name][model].state is not S.UNAVAILABLE for model in told), "and nothing waits for any"


@settings(deadline=None, max_examples=80)
@given(st.lists(events, min_size=3, max_size=10), st.randoms())
def test_where_all_fits_the_order_of_events_makes_no_difference_to_how_many(story: list[Event], rng: random.Random) -> None:
    """Each event about something else, so that none undoes another."""
    about = {(type(event), *_subject(event)): event for event in story if not isinstance(event, Leaves | Breaks)}
    counts = []
    for order in (list(about), rng.sample(list(about), len(about))):
        world = World(dict.fromkeys(MODELS, 0))
        for subject in order:
            about[subject].happen(world)
            world.look()
            world.obey()
            world.now_s += STEP_S
        world.rest()
        counts.append([world.ready(model) for model in MODELS])
    assert counts[0] == counts[1]


def _subject(event: Event) -> tuple[str, ...]:
    match event:
        case Joins(name=name):
            return (name,)
        case Wished(model=model) | AskedFor(model=model):
            return (model,)
    return ()


def test_a_worker_that_is_lost_is_made_up_for_and_nobody_else_moves() -> None:
    world = World(dict.fromkeys(MODELS, 1))
    for number in range(6):
        Joins(f"w{number}", 3).happen(world)
    for model in MODELS:
        Wished(model, 3, 0).happen(world)
    world.rest()
    before = {who: set(told) for who, told in world.current.items()}
    Leaves("w3").happen(world)
    world.rest()
    assert [world.ready(model) for model in MODELS] == [3, 3, 3]
    assert all(before[who] <= set(told) for who, told in world.current.items() if who in world.budgets)


def test_a_model_that_is_asked_for_comes_grows_and_goes() -> None:
    world = World(dict.fromkeys(MODELS, 1))
    for number in range(6):
        Joins(f"w{number}", 2).happen(world)
    Wished("m0", 0, 8).happen(world)
    counts = []
    for concurrency in (None, 0.0, 3.0, 40.0):
        AskedFor("m0", concurrency).happen(world)
        world.rest()
        counts.append(world.ready("m0"))
    assert counts == [0, 1, 2, 6], "none, the first, a second one for what is busy, as many as are needed"
    AskedFor("m0", None).happen(world)
    world.now_s += 10_000.0
    for _ in range(6):
        world.rest()
        world.now_s += 1_000.0
    assert world.ready("m0") == 0
    assert not world.plan.shortfalls


def test_a_version_that_loads_nowhere_is_given_up_on_and_the_others_are_well() -> None:
    world = World(dict.fromkeys(MODELS, 1))
    for number in range(7):
        Joins(f"w{number}", 4).happen(world)
        Breaks(f"w{number}", "m0").happen(world)
    for model in MODELS:
        Wished(model, 2, 0).happen(world)
    world.rest()
    assert [world.ready(model) for model in MODELS] == [0, 2, 2]
    assert [each.reason for each in world.plan.shortfalls] == [Shortage.FAILED]
    assert sum(any(each.model == "m0" for each in told) for told in world.current.values()) == 6, "five, and one at once"
    world.broken.clear()
    Wished("m0", 2, 0).happen(world)
    for held in world.held.values():
        held.pop("m0", None)
    world.rest()
    assert world.ready("m0") == 2


def test_a_copy_that_is_let_go_of_where_nobody_tells_of_memory_is_stood_in_for_once() -> None:
    """It may come back, so it keeps its order; but it is not taken for a copy that demand wants to be kept."""
    wish = Placement(ModelName("m0"), V1, digest_of("m0"), HERE, 0, 1, 8)
    evicted = Copy(ModelName("m0"), V1, digest_of("m0"), S.UNAVAILABLE, "unloaded to make room for another")
    key = wish.key
    current: Assignments = {}
    before: Mapping[DemandKey, Scale] = {}
    demand = Demand({key: Rate(1.0)}, {key: Trace(0.0)}, 0.0)
    counts = []
    for second in range(10):
        fleet = [worker(f"w{number}", *([evicted] if number == 0 and second > 1 else [])) for number in range(6)]
        before = scales([wish], fleet, current, demand, before, now_s=float(second))
        current = assign([wish], fleet, current, wanted=Wanted({key: before[key].copies})).assignments
        counts.append(sum(map(bool, current.values())))
    assert counts == [1, 1, 2, 2, 2, 2, 2, 2, 2, 2]
