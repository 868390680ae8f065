"""Batches on their way into a database that is well, slow, away, hanging, or will not have one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.exchange import Said
from gateway.request_log.types import KeptBodies
from tests.gateway.request_log.ground import LogUnderTest, exchange_of, log_under_test
from tests.support.manual_clock import settle


@asynccontextmanager
async def running(under_test: LogUnderTest) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(under_test.writer.run())
    await settle()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def accounted(under_test: LogUnderTest, noted: int) -> None:
    """Noted is written, dropped, or waits; and written is what is kept."""
    written = under_test.count("written_total")
    assert written + under_test.dropped() + len(under_test.log) == noted
    assert written <= len(under_test.keeper.kept)
    assert len({each.row_id for each in under_test.keeper.kept}) == len(under_test.keeper.kept), "none twice"


async def test_a_few_are_written_after_a_moment_and_a_batch_at_once() -> None:
    under_test = log_under_test(batch_rows=5, every_s=1.0)
    async with running(under_test):
        under_test.note(3)
        await settle()
        assert under_test.keeper.batches == []
        await under_test.clock.advance(1.0)
        assert under_test.keeper.batches == [3]
        under_test.note(12)
        await settle()
        assert under_test.keeper.batches[1:] == [5, 5]
        await under_test.clock.advance(1.0)
        assert under_test.keeper.batches[1:] == [5, 5, 2]
    accounted(under_test, 15)


async def test_what_does_not_fit_while_the_database_is_away_is_dropped_and_the_rest_written_later() -> None:
    under_test = log_under_test(batch_rows=5, queue_rows=10)
    under_test.keeper.away = True
    async with running(under_test):
        under_test.note(5)
        await settle()  # a batch is taken, and kept while it is tried
        under_test.note(20)
        await under_test.clock.advance(120.0)
        assert under_test.count("dropped_total", reason="queue_full") == 10
        assert under_test.count("written_total") == 0
        assert 5 < under_test.keeper.attempts < 60, "later each time"
        under_test.keeper.away = False
        await under_test.clock.advance(30.0)
        assert len(under_test.keeper.kept) == 15
    accounted(under_test, 25)


async def test_a_batch_that_was_kept_though_nobody_heard_is_there_once() -> None:
    under_test = log_under_test(batch_rows=5)
    under_test.keeper.fails_after_keeping = 2
    async with running(under_test):
        under_test.note(10)
        await under_test.clock.advance(10.0)
        assert len(under_test.keeper.kept) == 10
    accounted(under_test, 10)


async def test_a_database_that_hangs_is_left_and_asked_again() -> None:
    under_test = log_under_test(batch_rows=5, write_s=0.05)
    under_test.keeper.hangs = True
    async with running(under_test):
        under_test.note(5)
        async with asyncio.timeout(30):
            while under_test.keeper.attempts < 2:
                await asyncio.sleep(0.02)
                await under_test.clock.advance(1.0)
        under_test.keeper.hangs = False
        async with asyncio.timeout(30):
            while len(under_test.keeper.kept) < 5:
                await asyncio.sleep(0.02)
                await under_test.clock.advance(1.0)
    accounted(under_test, 5)


@settings(deadline=None)
@given(noted=st.integers(1, 40), batch=st.integers(1, 20), refused=st.sets(st.integers(0, 39)))
async def test_only_what_is_refused_is_missing(noted: int, batch: int, refused: set[int]) -> None:
    under_test = log_under_test(batch_rows=batch)
    under_test.keeper.refused = frozenset(f"r{number}" for number in refused)
    async with running(under_test):
        under_test.note(noted)
        await under_test.clock.advance(5.0)
        missing = refused & set(range(noted))
        assert {each.request_id for each in under_test.keeper.kept} == {f"r{number}" for number in set(range(noted)) - missing}
        assert under_test.count("dropped_total", reason="refused") == len(missing)
    accounted(under_test, noted)


@pytest.mark.parametrize("noted", [0, 3, 5, 23])
async def test_the_last_ones_are_written_at_the_end(noted: int) -> None:
    under_test = log_under_test(batch_rows=5, every_s=1000.0)
    async with running(under_test) as task:
        under_test.note(noted)
        under_test.writer.end()
        await asyncio.wait_for(task, 10)
        assert len(under_test.keeper.kept) == noted
    accounted(under_test, noted)


async def test_at_the_end_a_database_that_is_away_is_not_waited_for() -> None:
    under_test = log_under_test(batch_rows=5)
    under_test.keeper.away = True
    async with running(under_test) as task:
        under_test.note(12)
        await settle()
        under_test.writer.end()
        await asyncio.wait_for(task, 10)
        assert under_test.count("dropped_total", reason="shutdown") == 5
        assert len(under_test.log) == 7, "whoever ends it drops the rest"
    accounted(under_test, 12)


async def test_cancelled_in_the_middle_it_still_accounts_for_what_it_had() -> None:
    under_test = log_under_test(batch_rows=5)
    under_test.keeper.hangs = True
    async with running(under_test):
        under_test.note(5)
        await settle()
        assert under_test.keeper.attempts == 1
    assert under_test.count("dropped_total", reason="shutdown") == 5
    accounted(under_test, 5)


async def test_what_cannot_be_made_an_entry_of_does_not_end_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    under_test = log_under_test(batch_rows=5)
    with monkeypatch.context() as patched:
        patched.setattr("gateway.request_log.writer.entry_of", None)
        async with running(under_test):
            under_test.note(5)
            await under_test.clock.advance(1.0)
            patched.undo()
            under_test.note(5)
            await under_test.clock.advance(1.0)
    assert under_test.count("dropped_total", reason="refused") == 5
    accounted(under_test, 10)


async def test_words_are_kept_redacted() -> None:
    under_test = log_under_test(batch_rows=1, bodies=KeptBodies.REDACTED)
    exchange = exchange_of()
    exchange.said = Said(b'{"prompt":"mail ann@example.com"}')
    async with running(under_test):
        under_test.log.note(exchange, 0.0)
        async with asyncio.timeout(30):
            while not under_test.keeper.kept:
                await asyncio.sleep(0.01)
    (kept,) = under_test.keeper.kept
    assert (kept.request_body, kept.answer_body) == ('{"prompt":"mail [email]"}', None)
