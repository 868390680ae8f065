"""Times one placement decision over fleets of 10 to 10,000 workers, and weighs their view, against the bar.

The bar (design, section 15): < 50 µs at 1,000 workers, < 200 µs at 10,000; a view of 10,000 workers < 200 MiB.
Run: python -m benchmarks.placement
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc

from placement.policy import choose
from placement.state import RoutingState
from placement.types import Copy, CopyState, Granted, Outcome, Request, Strategy, Worker
from placement.view import FleetView
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId

_MODEL = ModelName("digits")
_BAR_US = {1_000: 50.0, 10_000: 200.0}
_BAR_VIEW_MIB = 200.0


def fleet(count: int, *, models: int = 4) -> list[Worker]:
    """Workers that all hold every model, which is the worst case of a decision."""
    return [
        Worker(
            WorkerId(f"{number:020x}"),
            Region("local"),
            f"10.0.{number // 256}.{number % 256}:9000",
            frozenset({"A"}),
            tuple(_copy(model) for model in range(models)),
            max_in_flight=64,
        )
        for number in range(count)
    ]


def _copy(number: int) -> Copy:
    name = _MODEL if number == 0 else ModelName(f"model-{number}")
    return Copy(name, ModelVersion("1"), Digest("0" * 64), CopyState.READY)


def decision_us(count: int, strategy: Strategy, session_key: str, *, rounds: int = 2_000) -> tuple[float, float]:
    """Median and 99th percentile of choose + reserve + release with half of the fleet's capacity taken."""
    view = FleetView().with_changes(fleet(count))
    state = RoutingState(view)
    for slot in range(count):
        state.in_flight.values[slot] = slot * 37 % 33
    for worker_id in list(view.workers)[:: max(count // 500, 1)]:
        state.hear(view, worker_id, in_flight=40, queued_rows=3, now_s=0.0)
    took: list[float] = []
    for number in range(rounds):
        request = Request(_MODEL, region=Region("local"), session_key=session_key and f"{session_key}{number}")
        began = time.perf_counter()
        granted = choose(view, state, request, now_s=1.0, strategy=strategy)
        if isinstance(granted, Granted):
            state.reserve(granted)
            state.release(granted, Outcome.ANSWERED, now_s=1.0, latency_ms=5.0)
        took.append((time.perf_counter() - began) * 1e6)
    return statistics.median(took), sorted(took)[int(rounds * 0.99)]


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
    failed = Worker(worker.worker_id, worker.region, worker.address, worker.tiers, worker.copies[1:], worker.max_in_flight)
    took: list[float] = []
    for number in range(20):
        began = time.perf_counter()
        view = view.with_worker(failed if number % 2 == 0 else worker)
        state.adopt(view)
        took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took)


def main() -> None:
    cases = [
        ("affinity, no session", Strategy.AFFINITY, ""),
        ("affinity, session", Strategy.AFFINITY, "user"),
        ("round-robin", Strategy.ROUND_ROBIN, ""),
        ("least-loaded", Strategy.LEAST_LOADED, ""),
    ]
    print(f"{'decision + reserve + release':<30}{'workers':>9}{'p50 µs':>9}{'p99 µs':>9}{'bar µs':>9}")
    for name, strategy, session_key in cases:
        for count in (2, 10, 100, 1_000, 10_000):
            median, tail = decision_us(count, strategy, session_key)
            bar = _BAR_US.get(count)
            verdict = "" if bar is None else ("  met" if median < bar else "  MISSED")
            print(f"{name:<30}{count:>9,}{median:>9.1f}{tail:>9.1f}{bar or '-':>9}{verdict}")
    for count in (10, 1_000, 10_000):
        print(f"one copy's change, new view adopted: {change_ms(count):8.2f} ms at {count:,} workers")
    size = view_mib(10_000)
    print(f"view of 10,000 workers, 4 models each: {size:.1f} MiB (bar {_BAR_VIEW_MIB:.0f}: {size < _BAR_VIEW_MIB and 'met'})")


if __name__ == "__main__":
    main()
