"""Times one placement decision over fleets of 2 to 10,000 workers, and weighs their view, against the bar.

Every strategy, and what makes deciding harder: sessions, known prefixes, rules that deny and prefer, workers that are passed
over, choosing among regions. The bar (design, section 15): < 50 µs at 1,000 workers, < 200 µs at 10,000; a view of 10,000
workers < 200 MiB. Times are of the thread alone: what else the machine does makes caches colder, but is not counted.
Run: python -m benchmarks.placement [--output FILE.json]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import tracemalloc
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from benchmarks.serving import machine
from placement.routing.policy import choose
from placement.routing.prefixes import hashes_of
from placement.routing.state import RoutingState
from placement.rules import Route, WorkerSelector
from placement.types import Copy, CopyState, Granted, Outcome, Request, Strategy, Weights, Worker
from placement.view import FleetView
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId

_MODEL = ModelName("digits")
_HOME = Region("local")
_COUNTS = (2, 10, 100, 1_000, 10_000)
_BAR_US = {1_000: 50.0, 10_000: 200.0}
_BAR_VIEW_MIB = 200.0
_DENY = (WorkerSelector(labels=frozenset({"old"})),)
_PREFER = (WorkerSelector(labels=frozenset({"new"})),)
_EVERYTHING = Weights(gpu=0.25, cost=0.25)


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked, and how."""

    name: str
    route: Route = field(default_factory=Route)
    sessions: bool = False
    prefixes: bool = False
    passed_over: float = 0.0
    """A part of the workers."""
    abroad: bool = False
    """Nobody at home has room."""


@dataclass(frozen=True, slots=True)
class Timing:
    name: str
    workers: int
    median_us: float
    p99_us: float
    bar_us: float | None
    met: bool | None


CASES = (
    *(Case(strategy.value, Route(strategy=strategy)) for strategy in Strategy),
    *(Case(f"{strategy.value}, 5 % passed over", Route(strategy=strategy), passed_over=0.05) for strategy in Strategy),
    *(
        Case(f"{strategy.value}, deny and prefer", Route(strategy=strategy, deny=_DENY, prefer=_PREFER), passed_over=0.05)
        for strategy in Strategy
    ),
    Case("affinity, session", sessions=True),
    Case("affinity, prefix of 32 blocks", prefixes=True),
    Case(
        "affinity, all of it",
        Route(weights=_EVERYTHING, deny=_DENY, prefer=_PREFER),
        sessions=True,
        prefixes=True,
        passed_over=0.05,
    ),
    Case("cross-region, home is full", Route(cross_region=True), abroad=True),
)


def fleet(count: int, *, models: int = 4, abroad: bool = False) -> list[Worker]:
    """Workers that all hold every model, which is the worst case of a decision."""
    regions = [_HOME, *(Region(f"region-{number}") for number in range(6))] if abroad else [_HOME]
    return [
        Worker(
            WorkerId(f"{number:020x}"),
            regions[number % len(regions)],
            f"10.0.{number // 256}.{number % 256}:9000",
            frozenset({"A"}),
            tuple(_copy(model) for model in range(models)),
            max_in_flight=64,
            labels=frozenset({"old"} if number % 20 == 0 else {"new"} if number % 3 == 0 else ()),
            gpu_memory_bytes=(8 + number % 5 * 16) << 30,
            cost=1.0 + number % 4,
        )
        for number in range(count)
    ]


def _copy(number: int) -> Copy:
    name = _MODEL if number == 0 else ModelName(f"model-{number}")
    return Copy(name, ModelVersion("1"), Digest("0" * 64), CopyState.READY)


def decision_us(count: int, case: Case, *, rounds: int = 1_000) -> tuple[float, float]:
    """Median and 99th percentile of choose + reserve + release with half of the fleet's capacity taken."""
    view = FleetView().with_changes(fleet(count, abroad=case.abroad))
    state = RoutingState(view)
    _load(view, state, case)
    requests = [_request(case, number) for number in range(rounds)]
    took: list[float] = []
    for request in requests:
        began_ns = time.thread_time_ns()
        granted = choose(view, state, request, now_s=1.0, route=case.route)
        if isinstance(granted, Granted):
            state.reserve(granted)
            state.release(granted, Outcome.ANSWERED, now_s=1.0, latency_ms=5.0)
        took.append((time.thread_time_ns() - began_ns) / 1e3)
    return statistics.median(took), sorted(took)[int(rounds * 0.99)]


def _load(view: FleetView, state: RoutingState, case: Case) -> None:
    for slot in range(len(view.workers)):
        state.in_flight.values[slot] = slot * 37 % 33
    for worker_id in list(view.workers)[:: max(len(view.workers) // 500, 1)]:
        state.hear(view, worker_id, in_flight=40, queued_rows=3, now_s=0.0)
    for number, (worker_id, worker) in enumerate(view.workers.items()):
        if case.abroad and worker.region == _HOME:
            state.in_flight.values[view.seats[worker_id].slot] = 64
        if case.passed_over and number % round(1 / case.passed_over) == 1:
            state.inhibit(worker_id, 0.0)
    if case.prefixes:
        for number, (worker_id, seat) in enumerate(list(view.seats.items())[:64]):
            state.prefixes.learn(hashes_of(_prompt(number)), worker_id, seat.tenure)


def _request(case: Case, number: int) -> Request:
    return Request(
        _MODEL,
        region=_HOME,
        session_key=f"user{number}" if case.sessions else "",
        prefix=hashes_of(_prompt(number)) if case.prefixes else (),
        draw=Random(number).getrandbits(64),
    )


def _prompt(number: int) -> str:
    """The first half is everybody's, as a system prompt is."""
    return "the same for all " * 256 + f"{number % 64} of its own " * 512


def view_mib(count: int) -> float:
    gc.collect()
    tracemalloc.start()
    view = FleetView().with_changes(fleet(count))
    state = RoutingState(view)
    size = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    del view, state
    return size


def change_ms(count: int) -> float:
    """One worker's copy of one model changes state: a new view, adopted."""
    view = FleetView().with_changes(fleet(count))
    state = RoutingState(view)
    worker = view.workers[WorkerId(f"{count // 2:020x}")]
    failed = replace(worker, copies=worker.copies[1:])
    took: list[float] = []
    for number in range(20):
        began_ns = time.thread_time_ns()
        view = view.with_worker(failed if number % 2 == 0 else worker)
        state.adopt(view)
        took.append((time.thread_time_ns() - began_ns) / 1e6)
    return statistics.median(took)


def timings() -> list[Timing]:
    print(f"{'decision + reserve + release':<40}{'workers':>9}{'p50 µs':>9}{'p99 µs':>9}{'bar µs':>9}")
    made: list[Timing] = []
    for case in CASES:
        for count in _COUNTS:
            median, tail = decision_us(count, case)
            bar = _BAR_US.get(count)
            made.append(Timing(case.name, count, round(median, 1), round(tail, 1), bar, None if bar is None else median < bar))
            verdict = "" if bar is None else ("  met" if median < bar else "  MISSED")
            print(f"{case.name:<40}{count:>9,}{median:>9.1f}{tail:>9.1f}{bar or '-':>9}{verdict}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    made = timings()
    changes = {count: round(change_ms(count), 2) for count in (10, 1_000, 10_000)}
    for count, took_ms in changes.items():
        print(f"one copy's change, new view adopted: {took_ms:8.2f} ms at {count:,} workers")
    size = view_mib(10_000)
    verdict = "met" if size < _BAR_VIEW_MIB else "MISSED"
    print(f"view of 10,000 workers, 4 models each: {size:.1f} MiB (bar {_BAR_VIEW_MIB:.0f}: {verdict})")
    if arguments.output is not None:
        results = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "decisions": [asdict(each) for each in made],
            "view_change_ms": changes,
            "view_of_10000_mib": round(size, 1),
        }
        arguments.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
