"""What waits for the database: bounded, in order, accounted for."""

from __future__ import annotations

import contextvars
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.exchange import Exchange, Said
from gateway.request_log.entries import entry_of, sums_of, trace_id_of
from gateway.request_log.log import ROW_BYTES
from gateway.request_log.types import DAY_MS, Entry, KeptBodies, Origin
from runtime.telemetry import request_id_var
from tests.gateway.request_log.ground import NOON_MS, TRACE_ID, caller_of, entry, exchange_of, log_under_test

HERE = Origin("europe", "node", 2)


async def test_an_entry_tells_all_that_is_known_of_the_request() -> None:
    under_test = log_under_test()
    exchange = exchange_of("asked")
    exchange.granted("w2", "answered", "7")
    exchange.used(11, 13)
    exchange.hedged, exchange.migrations, exchange.fell_back, exchange.cache, exchange.streamed = True, 1, "first", "miss", True
    exchange.first_answer_s = exchange.started_s + 0.25
    exchange.code, exchange.reason = "UNAVAILABLE", "LINK_LOST"
    under_test.log.note(exchange, 0.5)
    (noted,) = under_test.log.take()
    assert replace(entry_of(noted, HERE), row_id=0, first_answer_ms=250.0) == Entry(
        at_ms=int(under_test.clock.wall_s() * 1000),
        row_id=0,
        request_id="r",
        tenant="t",
        key_id="k",
        method="ModelInfer",
        asked="asked",
        model="answered",
        version="7",
        worker_id="w2",
        code="UNAVAILABLE",
        reason="LINK_LOST",
        streamed=True,
        attempts=2,
        hedged=True,
        migrations=1,
        fell_back="first",
        cache="miss",
        prompt_tokens=11,
        completion_tokens=13,
        request_bytes=100,
        answer_bytes=50,
        elapsed_ms=500.0,
        first_answer_ms=250.0,
        region="europe",
        gateway="node",
        process=2,
        trace_id=TRACE_ID,
    )
    assert "never-to-be-seen" not in repr(noted)


async def test_a_request_of_nobody_known_has_its_id_and_no_tenant() -> None:
    under_test = log_under_test()

    def refused() -> None:
        request_id_var.set("r-1")
        under_test.log.note(Exchange("ModelInfer", code="UNAUTHENTICATED"), 0.0)

    contextvars.copy_context().run(refused)
    (noted,) = under_test.log.take()
    found = entry_of(noted, HERE)
    assert (found.request_id, found.tenant, found.key_id, found.first_answer_ms) == ("r-1", "", "", None)


async def test_those_who_are_not_let_in_do_not_fill_it() -> None:
    under_test = log_under_test(strangers_per_s=5)
    for _ in range(3):
        for _ in range(20):
            under_test.log.note(Exchange("ModelInfer", code="UNAUTHENTICATED"), 0.0)
            under_test.log.note(exchange_of(), 0.0)
        await under_test.clock.advance(1.0)
    assert len(under_test.log) == 3 * (5 + 20)
    assert under_test.count("dropped_total", reason="stranger") == 3 * 15


async def test_no_two_entries_share_a_number() -> None:
    logs = [log_under_test().log for _ in range(3)]
    for log in logs:
        for _ in range(100):
            log.note(exchange_of(), 0.0)
    numbers = {entry_of(noted, HERE).row_id for log in logs for noted in log.take()}
    assert len(numbers) == 300
    assert all(0 <= number < 2**63 for number in numbers)


@settings(deadline=None)
@given(
    rows=st.integers(1, 20), batch=st.integers(1, 10), size=st.integers(1, 20), steps=st.lists(st.integers(-1, 8), max_size=30)
)
async def test_no_more_waits_than_may_and_all_of_it_is_accounted_for(
    rows: int, batch: int, size: int, steps: list[int]
) -> None:
    under_test = log_under_test(queue_rows=rows, queue_bytes=size * ROW_BYTES, batch_rows=batch)
    noted, taken = 0, []
    for step in steps:
        if step < 0:
            taken += under_test.log.take()
        under_test.note(max(step, 0))
        noted += max(step, 0)
        assert len(under_test.log) <= min(rows, size)
        assert under_test.count("waiting") == len(under_test.log)
        assert under_test.count("waiting_bytes") == len(under_test.log) * ROW_BYTES
        assert under_test.log.full.is_set() == (len(under_test.log) >= batch) or len(under_test.log) > batch
        assert noted == len(taken) + len(under_test.log) + under_test.dropped()
    numbers = [entry_of(each, HERE).row_id for each in taken]
    assert numbers == sorted(numbers), "the oldest leave first"


async def test_words_count_for_what_they_take() -> None:
    under_test = log_under_test(queue_bytes=3 * ROW_BYTES, bodies=KeptBodies.REDACTED)
    assert under_test.log.keeps_words
    exchange = exchange_of()
    exchange.said = Said(b"x" * ROW_BYTES, b"y" * ROW_BYTES)
    under_test.log.note(exchange, 0.0)
    under_test.log.note(exchange, 0.0)
    assert (len(under_test.log), under_test.count("dropped_total", reason="bytes_full")) == (1, 1)
    assert len(under_test.log.take()) == 1
    under_test.log.note(exchange, 0.0)
    assert len(under_test.log) == 1


def test_trace_ids() -> None:
    assert trace_id_of(f"00-{TRACE_ID}-00f067aa0ba902b7-01") == TRACE_ID
    for none in ("", "00", f"00-{TRACE_ID[:-1]}-x-01", f"00-{TRACE_ID[:-1]}g-00f067aa0ba902b7-01", "-" * 100):
        assert trace_id_of(none) == ""


def test_sums_count_what_no_model_answered_together() -> None:
    refused = [entry(number, model=f"guess-{number}", worker_id="", code="NOT_FOUND") for number in range(50)]
    (found,) = sums_of(refused)
    assert (found.key.model, found.key.day_ms, found.sums[:2]) == ("", NOON_MS - DAY_MS // 2, (50, 50))
    assert caller_of().key.key_id == found.key.key_id
