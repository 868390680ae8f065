"""The simulation loses no request and says the same twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.simulation.machines import machines_of
from benchmarks.simulation.report import run_of, write_report
from benchmarks.simulation.trace import generated, models_of, record, recorded
from benchmarks.simulation.types import Churn, Partition, Scenario
from benchmarks.simulation.world import World
from placement.rules import Route
from placement.types import Strategy
from runtime.regions import ASIA, EUROPE, REGIONS

SCENARIO = Scenario(
    workers=140,
    models=40,
    seconds=80.0,
    requests_per_s=25.0,
    churn=Churn(joins=6, leaves=12),
    partitions=(Partition(ASIA, 30.0, 50.0),),
)


def ran(strategy: Strategy, scenario: Scenario = SCENARIO) -> World:
    models = models_of(scenario)
    world = World(scenario, models, machines_of(scenario, models), Route(strategy=strategy))
    world.run(generated(scenario, models))
    return world


@pytest.mark.parametrize("strategy", Strategy)
def test_every_request_ends_exactly_once(strategy: Strategy) -> None:
    world = ran(strategy)
    tally = world.tally
    ended = len(tally.latencies_s) + tally.refused + tally.expired + tally.lost
    assert tally.requests == ended + world.unfinished
    assert len(tally.latencies_s) > 500


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    assert ran(Strategy.AFFINITY).tally.samples == ran(Strategy.AFFINITY).tally.samples
    assert ran(Strategy.AFFINITY).tally.samples != ran(Strategy.AFFINITY, replace(SCENARIO, seed=2)).tally.samples


def test_no_machine_holds_more_than_its_memory_or_its_places() -> None:
    for machine in ran(Strategy.TWO_CHOICES).machines:
        assert machine.memory_bytes <= machine.kind.memory_bytes
        assert 0 <= machine.in_flight <= machine.slots


def test_a_region_that_is_cut_off_goes_on_with_what_it_has() -> None:
    cut = replace(SCENARIO, partitions=(Partition(EUROPE, 40.0, 70.0),), churn=Churn())
    whole = replace(cut, partitions=())
    assert len(ran(Strategy.AFFINITY, cut).tally.latencies_s) > 0.9 * len(ran(Strategy.AFFINITY, whole).tally.latencies_s)


def test_a_recorded_trace_is_read_back(tmp_path: Path) -> None:
    models = models_of(SCENARIO)
    arrivals = list(generated(SCENARIO, models))
    assert record(tmp_path / "trace.jsonl", arrivals) == len(arrivals)
    assert list(recorded(tmp_path / "trace.jsonl")) == arrivals
    assert {each.region for each in arrivals} == set(REGIONS)
    counts = {model.name: sum(each.model == model.name for each in arrivals) for model in models}
    assert counts[models[0].name] > 3 * counts[models[10].name], "popularity is not Zipf's"


def test_the_report_has_a_row_and_a_line_for_each(tmp_path: Path) -> None:
    runs = [run_of(each.value, ran(each), 1.0) for each in (Strategy.AFFINITY, Strategy.COST)]
    page = write_report(tmp_path, "simulation", SCENARIO, runs, "a machine", "today").read_text()
    assert page.count("<tr><td>") == 2
    assert page.count("<svg") == page.count("asia cut off") == 9
    assert (tmp_path / "simulation.json").exists()
