"""Whole situations: a fleet, what its caller knows of it, a request and its route.

Drawn from a size and a seed: hypothesis drawing every field of forty workers takes a hundred times as long, and most of what it
draws is empty. The size shrinks; for one world print what `world_of(size, seed)` makes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from hypothesis import strategies as st

from placement.routing.prefixes import hashes_of
from placement.routing.sessions import SessionHome
from placement.routing.state import RoutingState
from placement.rules import Route, WorkerSelector
from placement.types import CopyState, Request, Strategy, Weights, Worker
from placement.view import FleetView
from runtime.ids import ModelVersion, Region, WorkerId
from tests.placement.fleets import DIGITS, HERE, THERE, copy, worker_named

NOW_S = 100.0
PREFIX = hashes_of("what everybody begins with, " * 200)
_SELECTORS = (
    WorkerSelector(labels=frozenset({"old"})),
    WorkerSelector(labels=frozenset({"old", "spot"})),
    WorkerSelector(tiers=frozenset({"A", "B"})),
    WorkerSelector(regions=frozenset({THERE})),
    WorkerSelector(worker_ids=frozenset(map(worker_named, range(0, 40, 3)))),
)
_TROUBLES = ("", "", "", "", "", "draining", "inhibited", "probed", "recovering")


@dataclass(frozen=True, slots=True)
class World:
    name: str
    view: FleetView = field(repr=False)
    state: RoutingState = field(repr=False)
    request: Request
    route: Route


def world_of(size: int, seed: int) -> World:
    """The same one for the same numbers."""
    rng = Random(seed)
    view = FleetView().with_changes(_worker(rng, number) for number in range(size))
    state = RoutingState(view)
    state.proximity = rng.choice([{}, {HERE: 0.1, THERE: 0.6}])
    for who in sorted(view.workers):
        _learn(rng, view, state, who)
    for key in ("ann", "bob"):
        seat = view.seats.get(worker_named(rng.randrange(80)))
        if seat is not None:
            state.sessions.settle(DIGITS, key, SessionHome(seat.worker_id, seat.tenure, ModelVersion("1")))
    return World(f"world_of({size}, {seed})", view, state, _request(rng, size), _route(rng))


worlds = st.builds(world_of, st.integers(0, 40), st.integers(0, 2**32 - 1))


def _worker(rng: Random, number: int) -> Worker:
    who = worker_named(number)
    return Worker(
        who,
        rng.choice([HERE, HERE, THERE]),
        f"{who}:9000",
        frozenset(rng.sample("ABC", rng.randrange(3))),
        (copy(rng.choice([CopyState.READY] * 5 + [CopyState.LOADING])),),
        rng.choice([0, 1, 2, 4, 8]),
        labels=frozenset(rng.sample(["old", "spot"], rng.randrange(3))),
        gpu_memory_bytes=rng.choice([0, 8, 80]) << 30,
        cost=rng.choice([0.5, 1.0, 1.0, 4.0]),
    )


def _learn(rng: Random, view: FleetView, state: RoutingState, who: WorkerId) -> None:
    slot, at_s = view.seats[who].slot, NOW_S - rng.choice([0.0, 2.0, 30.0])
    mine, foreign, trouble = rng.choice([0, 0, 1, 3]), rng.choice([0, 0, 2]), rng.choice(_TROUBLES)
    state.in_flight.values[slot] = mine
    state.hear(view, who, in_flight=mine + foreign, queued_rows=rng.choice([0, 0, 3]), now_s=at_s)
    if latency_ms := rng.choice([0.0, 1.0, 7.5, 900.0]):
        state._learn(slot, latency_ms, at_s)
    if trouble == "draining":
        state.health.drain(who, draining=True)
    elif trouble:
        state.inhibit(who, NOW_S - (1.0 if trouble == "inhibited" else 60.0))
    if trouble == "probed":
        state.health.probe(who, last_resort=False)
    # Now and then what was learned is of an earlier stay of the worker.
    tenure = view.seats[who].tenure + rng.choice([0, 0, 0, 1_000])
    state.prefixes.learn(PREFIX[: rng.choice([0, 0, 2, len(PREFIX)])], who, tenure)


def _request(rng: Random, size: int) -> Request:
    return Request(
        DIGITS,
        rng.choice([ModelVersion(""), ModelVersion("1")]),
        rng.choice([Region(""), HERE, HERE, THERE]),
        rng.choice(["", "ann", "bob"]),
        frozenset(worker_named(rng.randrange(size + 1)) for _ in range(rng.randrange(3))),
        rng.choice([(), PREFIX, PREFIX[:3]]),
        rng.random() < 0.3,
        rng.getrandbits(64),
    )


def _route(rng: Random) -> Route:
    weights = Weights(*(rng.choice([0.0, 0.25, 0.5, 1.0, 3.0]) for _ in range(8)))
    deny, allow, prefer = (_some(rng) for _ in range(3))
    shadow = rng.choice([None, *Strategy])
    return Route(rng.choice(list(Strategy)), weights, shadow, deny, allow, prefer, cross_region=rng.random() < 0.5)


def _some(rng: Random) -> tuple[WorkerSelector, ...]:
    return tuple(rng.sample(_SELECTORS, rng.choice([0, 0, 0, 1, 2])))
