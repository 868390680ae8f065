"""What gateways tell, together; for how long it counts; and what is refused of it."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from penstock.scheduler.v1 import scheduler_pb2

from placement.copies.demand import FADED_S, Asked, Rate
from placement.types import Load
from runtime.errors import InvalidArgument, ResourceExhausted
from runtime.ids import ModelName, ModelVersion, Region, WorkerId
from scheduler.demand import codec, intake
from scheduler.demand.codec import report_of
from scheduler.demand.intake import GRACE_S, HEARD_S, DemandIntake
from scheduler.demand.types import Report, SeenWorker
from tests.support.manual_clock import ManualClock

HERE, DIGITS, V1 = Region("here"), ModelName("digits"), ModelVersion("1")
KEY = (HERE, DIGITS, V1)


def report(requests: int = 0, *workers: SeenWorker, busy_s: float = 0.0) -> Report:
    asked = (Asked(DIGITS, V1, requests, busy_s=busy_s),) if requests else ()
    return Report(HERE, 1.0, asked, workers)


def seen(
    name: str, in_flight: int = 0, told: int = 0, rows: int = 0, latency_ms: float = 0.0, avoided: bool = False
) -> SeenWorker:
    return SeenWorker(WorkerId(name), in_flight, told, rows, latency_ms, avoided)


async def test_gateways_add_up_and_who_wants_to_know_is_called(clock: ManualClock) -> None:
    taken, calls = DemandIntake(clock), []
    taken.on_asked.append(lambda: calls.append(1))
    with taken.listening() as one, taken.listening() as two:
        taken.hear(one, report())
        assert calls == [], "nothing was asked for"
        taken.hear(one, report(10))
        taken.hear(two, report(30))
        assert (len(taken), taken.reports, len(calls)) == (2, 3, 2)
        rates = taken.demand(clock.monotonic_s()).rates
        alone = Rate().plus(Asked(DIGITS, V1, 10), 1.0)
        assert rates[KEY].requests_per_s == pytest.approx(4 * alone.requests_per_s)


async def test_what_is_new_is_seen_at_once(clock: ManualClock) -> None:
    taken = DemandIntake(clock)
    with taken.listening() as gateway:
        assert not taken.demand(clock.monotonic_s()).rates
        taken.hear(gateway, report(1))
        assert KEY in taken.demand(clock.monotonic_s()).rates
    taken.missed(ModelName("sums"), ModelVersion(""), HERE)
    assert (HERE, "sums", "") in taken.demand(clock.monotonic_s()).rates


async def test_a_gateway_that_ends_is_heard_for_a_grace_and_then_forgotten(clock: ManualClock) -> None:
    taken = DemandIntake(clock)
    begun_s = clock.monotonic_s()
    with taken.listening() as gateway:
        assert taken.demand(clock.monotonic_s()).since_s is None, "it has told nothing yet"
        taken.hear(gateway, report(10, seen("a", 3)))
        assert taken.demand(clock.monotonic_s()).since_s == begun_s
    assert not taken.loads(), "its requests ended with it"
    await clock.advance(GRACE_S - 1)
    assert taken.demand(clock.monotonic_s()).since_s == begun_s
    await clock.advance(1.0)
    assert taken.demand(clock.monotonic_s()).since_s is None
    await clock.advance(FADED_S)
    demand = taken.demand(clock.monotonic_s())
    assert not demand.rates
    assert demand.used_s(KEY) == begun_s, "but when it was asked for last is remembered"
    with taken.listening() as gateway:
        taken.hear(gateway, report(1))
        assert taken.demand(clock.monotonic_s()).since_s == clock.monotonic_s()


async def test_the_scheduler_itself_is_no_gateway(clock: ManualClock) -> None:
    taken = DemandIntake(clock)
    taken.missed(DIGITS, V1, HERE)
    demand = taken.demand(clock.monotonic_s())
    assert demand.rates[KEY].missed_per_s > 0
    assert demand.since_s is None


async def test_loads_are_everybodys_requests_as_last_told(clock: ManualClock) -> None:
    taken = DemandIntake(clock)
    with taken.listening() as one, taken.listening() as two:
        taken.hear(one, report(0, seen("a", 3, told=4, rows=2, latency_ms=10.0), seen("b", 1, avoided=True)))
        taken.hear(two, report(0, seen("a", 5, told=6, rows=1, latency_ms=30.0)))
        assert taken.loads() == {"a": Load(0, 8, 2, 20.0), "b": Load(0, 1, 0, 0.0)}
        assert taken.avoided() == {"b"}
        taken.hear(one, report(0, seen("a", 1, told=9)))
        assert taken.loads() == {"a": Load(0, 9, 1, 30.0)}, "a message replaces the one before"
        await clock.advance(HEARD_S)
        assert not taken.loads()
        assert not taken.avoided()


async def test_gateways_are_bounded_and_those_that_left_too(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_GATEWAYS", 3)
    taken = DemandIntake(clock)
    with ExitStack() as streams:
        for _ in range(3):
            streams.enter_context(taken.listening())
        with pytest.raises(ResourceExhausted, match="3 gateways") as refused, taken.listening():
            pass
        assert refused.value.retry_after_s is not None
    for _ in range(10):
        with taken.listening() as gateway:
            taken.hear(gateway, report(1))
    assert len(taken._ended) == 3


async def test_a_stream_that_breaks_off_is_forgotten_too(clock: ManualClock) -> None:
    taken = DemandIntake(clock)

    async def gateway() -> None:
        with taken.listening():
            await asyncio.Event().wait()

    task = asyncio.create_task(gateway())
    await asyncio.sleep(0)
    assert len(taken) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(taken) == 0


pb = scheduler_pb2


def message(**fields: object) -> pb.ReportDemandRequest:
    return pb.ReportDemandRequest(**{"interval_ms": 500, "region": "here", **fields})  # type: ignore[arg-type]


def test_a_message_in_full() -> None:
    models = [
        pb.ModelDemand(model="digits", version="1", requests=9, refused=1, missed=2, busy_s=0.5),
        pb.ModelDemand(model="m"),
    ]
    workers = [
        pb.WorkerReport(worker_id="a", in_flight=1, told_in_flight=2, queued_rows=3, latency_ms=4.0, avoided=True),
        pb.WorkerReport(worker_id="b", latency_ms=float("nan")),
    ]
    assert report_of(message(models=models, workers=workers)) == Report(
        HERE,
        0.5,
        (Asked(DIGITS, V1, 9, 1, 2, 0.5), Asked(ModelName("m"), ModelVersion(""), 0)),
        (seen("a", 1, 2, 3, 4.0, True), seen("b")),
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (message(interval_ms=0), "interval_ms is 0"),
        (message(interval_ms=600_001), "interval_ms is 600001"),
        (message(region="Not a region"), "is no region"),
        (message(region=""), "'' is no region"),
        (message(models=[pb.ModelDemand(requests=1)]), "a model's name has"),
        (message(models=[pb.ModelDemand(model="m" * 129)]), "a model's name has"),
        (message(models=[pb.ModelDemand(model="m", version="1" * 129)]), "a version's"),
        (message(models=[pb.ModelDemand(model="m", busy_s=float("nan"))]), "busy_s of model 'm' is nan"),
        (message(models=[pb.ModelDemand(model="m", busy_s=-1.0)]), "busy_s of model 'm' is -1"),
        (message(workers=[pb.WorkerReport()]), "a worker_id has"),
        (message(workers=[pb.WorkerReport(worker_id="w" * 129)]), "one of 129"),
    ],
)
def test_what_is_no_report_is_refused_with_a_sentence(wrong: pb.ReportDemandRequest, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        report_of(wrong)


def test_messages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_MODELS", 2)
    monkeypatch.setattr(codec, "MAX_WORKERS", 2)
    for fields in ({"models": [pb.ModelDemand(model="m")] * 3}, {"workers": [pb.WorkerReport(worker_id="w")] * 3}):
        with pytest.raises(InvalidArgument, match="tell of fewer"):
            report_of(message(**fields))
