"""What is reported of demand: nothing is lost that matters, nothing grows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ledger import Ledger
from gateway.links.types import LinkLoad
from gateway.refusals import FleetFull
from gateway.reports import KEPT_S, MAX_MODELS, Pending, Reports
from gateway.types import ModelCounts, WorkerSight
from placement.types import CopyState, Request
from runtime.ids import ModelName, ModelVersion, Region, WorkerId
from tests.gateway.fakes import FakeLink, FakeScheduler, copy_of, wish_of, worker_of
from tests.gateway.routed import CALL, M, Routed, routed
from tests.support.manual_clock import ManualClock

EUROPE = Region("europe")
KEY = (EUROPE, ModelName("m"), ModelVersion("1"))


def sight(worker_id: str, in_flight: int = 0) -> WorkerSight:
    return WorkerSight(WorkerId(worker_id), in_flight, 0, 0, 0.0, False, 0.0)


def test_time_at_workers_is_counted_while_it_passes() -> None:
    ledger = Ledger()
    tally = ledger.tallies[KEY]
    tally.begin(10.0, 1)
    assert ledger.drain(12.0)[KEY] == ModelCounts(1, busy_s=2.0)
    tally.begin(13.0, 1)
    tally.end(14.0)
    assert ledger.drain(15.0)[KEY] == ModelCounts(1, busy_s=4.0)
    tally.end(15.5)
    assert ledger.drain(16.0)[KEY] == ModelCounts(0, busy_s=0.5)
    assert ledger.drain(17.0) == {}
    assert len(ledger) == 0


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_busy_time_is_the_sum_of_all_requests_however_it_is_drained(steps: list[tuple[float, bool]], cuts: list[int]) -> None:
    ledger, now_s, open_since_s, busy_s, told_s = Ledger(), 0.0, list[float](), 0.0, 0.0
    for number, (passed_s, begins) in enumerate(steps):
        now_s += passed_s
        if begins or not open_since_s:
            ledger.tallies[KEY].begin(now_s, 1)
            open_since_s.append(now_s)
        else:
            ledger.tallies[KEY].end(now_s)
            busy_s += now_s - open_since_s.pop()
        if number in cuts:
            told_s += sum(counts.busy_s for counts in ledger.drain(now_s).values())
    told_s += sum(counts.busy_s for counts in ledger.drain(now_s).values())
    assert told_s == pytest.approx(busy_s + sum(now_s - since_s for since_s in open_since_s), abs=1e-6)


async def test_what_could_not_be_written_is_told_with_the_next() -> None:
    pending = Pending(EUROPE)
    pending.add(1.0, {KEY: ModelCounts(3, 1, 0, 0.5)}, [sight("a", 1), sight("b", 1)])
    report = await pending.next()
    pending.add(1.0, {KEY: ModelCounts(2, 0, 1, 0.25)}, [sight("a", 7)])
    pending.put_back(report)
    again = await pending.next()
    assert (again.interval_s, again.models, again.region) == (2.0, {KEY: ModelCounts(5, 1, 1, 0.75)}, EUROPE)
    assert {each.worker_id: each.in_flight for each in again.workers} == {"a": 7, "b": 1}


async def test_old_demand_is_forgotten_and_the_newest_kept() -> None:
    pending = Pending(EUROPE)
    pending.add(1.0, {KEY: ModelCounts(1)}, ())
    report = await pending.next()
    for _ in range(int(KEPT_S)):
        pending.add(1.0, {KEY: ModelCounts(1)}, ())
    pending.put_back(report)
    pending.add(1.0, {KEY: ModelCounts(100)}, ())
    told = await pending.next()
    assert (told.interval_s, told.models[KEY].requests) == (1.0, 100)


async def test_a_report_has_the_models_that_are_asked_for_most() -> None:
    pending = Pending(EUROPE)
    models = {(EUROPE, ModelName(f"m{number}"), ModelVersion("1")): ModelCounts(number) for number in range(MAX_MODELS + 10)}
    pending.add(1.0, models, ())
    told = await pending.next()
    assert len(told.models) == MAX_MODELS
    assert min(counts.requests for counts in told.models.values()) == 10


@asynccontextmanager
async def reporting(mesh: Routed, clock: ManualClock, *schedulers: FakeScheduler) -> AsyncIterator[Reports]:
    reports = Reports(mesh.fleet, mesh.router.ledger, schedulers, clock, mesh.metrics, EUROPE)
    running = asyncio.create_task(reports.run())
    try:
        yield reports
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def mesh() -> AsyncIterator[Routed]:
    links = {"a": FakeLink("127.0.0.1:1", load=LinkLoad(5, 3)), "b": FakeLink("127.0.0.1:1", rtt_ms=1.5)}
    workers = [worker_of("a", copy_of("m"), max_in_flight=1), worker_of("b", copy_of("n"))]
    async with routed(*workers, links=links) as made:
        yield made


def told(scheduler: FakeScheduler) -> Counter[str]:
    """Requests by model, over all reports."""
    requests: Counter[str] = Counter()
    for report in scheduler.reports:
        requests.update({model: counts.requests for (_, model, _), counts in report.models.items()})
    return requests


async def test_every_scheduler_is_told_every_second(mesh: Routed) -> None:
    clock, schedulers = ManualClock(), (FakeScheduler("s1"), FakeScheduler("s2"))
    async with reporting(mesh, clock, *schedulers):
        for _ in range(3):
            await mesh.router.infer(M, b"x", CALL)
            await mesh.router.infer(replace(M, model=ModelName("n")), b"x", CALL)
            await clock.advance(1.0)
        await clock.advance(1.0)
    for scheduler in schedulers:
        assert len(scheduler.reports) == 4
        assert told(scheduler) == {"m": 3, "n": 3}
        assert [report.interval_s for report in scheduler.reports] == [1.0] * 4
        assert [len(report.workers) for report in scheduler.reports] == [2, 2, 2, 0]
    seen = {each.worker_id: each for each in schedulers[0].reports[0].workers}
    assert (seen[WorkerId("a")].told_in_flight, seen[WorkerId("a")].queued_rows, seen[WorkerId("b")].rtt_ms) == (5, 3, 1.5)


async def test_a_scheduler_that_was_away_is_told_what_it_missed_and_nobody_waits_for_it(mesh: Routed) -> None:
    clock, there, away = ManualClock(), FakeScheduler("s1"), FakeScheduler("s2", away=True)
    async with reporting(mesh, clock, there, away):
        for _ in range(5):
            await mesh.router.infer(M, b"x", CALL)
            await clock.advance(1.0)
        assert (told(there), told(away)) == ({"m": 5}, {})
        away.away = False
        await clock.advance(20.0)
    assert told(away) == {"m": 5}
    assert sum(report.interval_s for report in away.reports) == pytest.approx(25.0)


async def test_refused_and_missed_requests_are_demand_too(mesh: Routed) -> None:
    clock, scheduler = ManualClock(), FakeScheduler("s1")
    mesh.links["a"].gate = asyncio.Event()
    mesh.tell(
        worker_of("a", copy_of("m"), copy_of("c", state=CopyState.LOADING), max_in_flight=1),
        worker_of("b", copy_of("n")),
        wishes=(wish_of("m"), wish_of("c", version="2")),
    )
    async with reporting(mesh, clock, scheduler):
        first = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(FleetFull):
                await mesh.router.infer(M, b"x", CALL)
        waiting = asyncio.create_task(mesh.router.infer(Request(ModelName("c")), b"x", CALL))
        await clock.advance(1.0)
        first.cancel()
        waiting.cancel()
    models = {(str(model), str(version)): counts for (_, model, version), counts in scheduler.reports[0].models.items()}
    assert (models["m", "1"].requests, models["m", "1"].refused) == (3, 2)
    assert (models["c", "2"].requests, models["c", "2"].missed) == (1, 1)
    assert [each.in_flight for each in scheduler.reports[0].workers] == [1]
