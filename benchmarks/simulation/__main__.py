"""Simulates the mesh and compares strategies.

python -m benchmarks.simulation                                    10,000 workers, 7 regions, 500 models, all strategies
python -m benchmarks.simulation --workers 700 --strategy affinity  smaller
python -m benchmarks.simulation --record trace.jsonl               write the demand down, and stop
python -m benchmarks.simulation --trace trace.jsonl                use what was recorded instead
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.serving import machine
from benchmarks.simulation.machines import machines_of
from benchmarks.simulation.report import COLUMNS, Run, row, run_of, write_report
from benchmarks.simulation.trace import generated, models_of, record, recorded
from benchmarks.simulation.types import Churn, Partition, Scenario
from benchmarks.simulation.world import World
from placement.rules import Route
from placement.types import Strategy
from runtime.regions import ASIA


def simulated(scenario: Scenario, trace: Path | None, strategy: Strategy) -> Run:
    """One strategy's run, whole."""
    models, began_s = models_of(scenario), time.perf_counter()
    world = World(scenario, models, machines_of(scenario, models), Route(strategy=strategy))
    world.run(generated(scenario, models) if trace is None else recorded(trace))
    return run_of(strategy.value, world, time.perf_counter() - began_s)


def scenario_of(arguments: argparse.Namespace) -> Scenario:
    seconds = arguments.seconds
    cut = (Partition(ASIA, 0.5 * seconds, 0.6 * seconds),) if arguments.partition else ()
    return Scenario(
        workers=arguments.workers,
        models=arguments.models,
        seconds=seconds,
        requests_per_s=arguments.rate,
        churn=Churn(arguments.joins, arguments.leaves),
        partitions=cut,
        seed=arguments.seed,
    )


def compared(scenario: Scenario, trace: Path | None, strategies: list[Strategy], processes: int) -> list[Run]:
    """All of them, side by side in processes of their own, in the order asked for."""
    runs: list[Run] = []
    with Progress(transient=True) as progress, ProcessPoolExecutor(processes) as pool:
        task = progress.add_task("simulating", total=len(strategies))
        for run in pool.map(partial(simulated, scenario, trace), strategies):
            runs.append(run)
            progress.advance(task)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description="The mesh's own core under a virtual clock.")
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=600.0, help="virtual")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second at most, of all regions")
    parser.add_argument("--joins", type=int, default=250)
    parser.add_argument("--leaves", type=int, default=150)
    parser.add_argument(
        "--partition", action=argparse.BooleanOptionalAction, default=True, help="cut one region off for a while"
    )
    parser.add_argument(
        "--strategy", action="append", choices=[each.value for each in Strategy], help="repeatable; default: all"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trace", type=Path, help="JSON lines, as --record writes them")
    parser.add_argument("--record", type=Path, help="write the demand there, and stop")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--name", default="simulation", help="of the report's files")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    scenario = scenario_of(arguments)
    if arguments.record is not None:
        print(f"{record(arguments.record, generated(scenario, models_of(scenario))):,} requests written to {arguments.record}")
        return
    strategies = [Strategy(name) for name in arguments.strategy or [each.value for each in Strategy]]
    runs = compared(scenario, arguments.trace, strategies, arguments.processes)
    printed = Table(*COLUMNS, title=f"{scenario.workers:,} workers, {scenario.seconds:g} virtual s", caption=machine())
    for run in runs:
        printed.add_row(*row(run))
    Console(width=160).print(printed)
    when = datetime.now(UTC).date().isoformat()
    print(write_report(arguments.output, f"{when}-{arguments.name}", scenario, runs, machine(), when))


if __name__ == "__main__":
    main()
