"""The request log in SQL, on both databases."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.request_log.entries import entry_of, sums_of
from gateway.request_log.log import RequestLog
from gateway.request_log.store import LogStore
from gateway.request_log.types import DAY_MS, EntriesRefused, Entry, Origin, Place, Question, UsageQuestion
from runtime.database import Database
from tests.gateway.request_log.ground import NOON_MS, caller_of, entry, exchange_of, log_under_test, store_on

ALL = Question("t", limit=1000)
FOREVER = UsageQuestion("t", 0, 2**62)


async def rows_of(database: Database) -> int:
    async with database.reading() as connection:
        return int(await connection.scalar(text("SELECT count(*) FROM request_log")) or 0)


async def test_what_is_written_is_read_newest_first(database_address: str) -> None:
    written = [entry(number, at_ms=NOON_MS + number // 3, first_answer_ms=None, request_body="{}") for number in range(10)]
    async with store_on(database_address) as (store, _):
        await store.write(written)
        read = (await store.page(ALL)).entries
        assert read == tuple(replace(each, request_body=None) for each in reversed(written))
        (named, *_) = (await store.page(replace(ALL, request_id="r"))).entries
        assert named == written[-1], "bodies come with a request that is named"


async def test_pages_hold_each_request_once(database_address: str) -> None:
    written = [entry(number, at_ms=NOON_MS - number % 4 * DAY_MS) for number in range(23)]
    async with store_on(database_address) as (store, _):
        await store.write(written)
        read: list[Entry] = []
        before: Place | None = None
        for _ in range(5):
            page = await store.page(Question("t", limit=5, before=before))
            read += page.entries
            before = page.rest
        assert before is None
        assert sorted(each.row_id for each in read) == list(range(23))
        assert [(each.at_ms, each.row_id) for each in read] == sorted(
            ((each.at_ms, each.row_id) for each in written), reverse=True
        )


async def test_questions(database_address: str) -> None:
    other = {"tenant": "u"}, {"key_id": "k2"}, {"model": "n"}, {"asked": "alias"}, {"code": "INTERNAL"}, {"request_id": "r2"}
    written = [entry(number, **changed) for number, changed in enumerate(({}, *other))]
    written.append(entry(7, at_ms=NOON_MS - DAY_MS))
    async with store_on(database_address) as (store, _):
        await store.write(written)

        async def found(**asked: object) -> set[int]:
            question = replace(ALL, **asked)  # type: ignore[arg-type]
            return {each.row_id for each in (await store.page(question)).entries}

        assert await found() == {0, 2, 3, 4, 5, 6, 7}
        assert await found(tenant="u") == {1}
        assert await found(tenant="nobody") == set()
        assert await found(key_id="k2") == {2}
        assert await found(model="n") == {3}
        assert await found(model="alias") == {4}
        assert await found(model="m") == {0, 2, 3, 4, 5, 6, 7}, "as it was asked for, or as it answered"
        assert await found(failed=True) == await found(code="INTERNAL") == {5}
        assert await found(request_id="r2") == {6}
        assert await found(until_ms=NOON_MS) == {7}
        assert await found(since_ms=NOON_MS, key_id="k2") == {2}
        assert await found(tenant="' OR 1=1 --") == set()


async def test_sums_are_those_of_the_entries_however_they_are_batched(database_address: str) -> None:
    changes = [{"code": "UNAVAILABLE"}, {"cache": "hit"}, {"key_id": "k2"}, {"model": "n"}, {"at_ms": NOON_MS - DAY_MS}, {}]
    written = [entry(number, **changes[number % 6]) for number in range(60)]  # type: ignore[arg-type]
    async with store_on(database_address) as (store, _):
        for begin in range(0, 60, 7):
            await store.write(written[begin : begin + 7])
        found = await store.usage(FOREVER)
        assert {each.key: each.sums for each in found} == {each.key: each.sums for each in sums_of(written)}
        assert [each.key.day_ms for each in found] == sorted((each.key.day_ms for each in found), reverse=True)
        today = replace(FOREVER, since_ms=NOON_MS - DAY_MS // 2)
        assert {each.key.day_ms for each in await store.usage(today)} == {NOON_MS - DAY_MS // 2}
        assert {each.key.key_id for each in await store.usage(replace(FOREVER, key_id="k2"))} == {"k2"}
        assert await store.usage(replace(FOREVER, tenant="u")) == []


async def test_a_batch_whose_fate_is_unknown_is_written_once(database_address: str) -> None:
    written = [entry(number) for number in range(5)]
    async with store_on(database_address) as (store, database):
        await store.write(written)
        await store.write(written, again=True)
        await store.write([entry(9)], again=True)
        assert await rows_of(database) == 6
        assert sum(each.sums[0] for each in await store.usage(FOREVER)) == 6


async def test_a_refused_batch_leaves_nothing(database_address: str) -> None:
    async with store_on(database_address) as (store, database):
        await store.write([entry(1)])
        with pytest.raises(EntriesRefused):
            await store.write([entry(2), entry(1)])
        assert await rows_of(database) == 1
        assert sum(each.sums[0] for each in await store.usage(FOREVER)) == 1


async def test_several_gateways_write_and_forget_in_one_database(database_address: str) -> None:
    async with store_on(database_address) as (one, database), store_on(database_address) as (other, _):

        async def work(store: LogStore, first: int) -> None:
            for number in range(6):
                day_ms = NOON_MS - number * DAY_MS
                await store.write([entry(first + number * 2 + each, at_ms=day_ms) for each in range(2)])

        await asyncio.gather(work(one, 0), work(other, 1000))
        assert await rows_of(database) == 24
        assert sum(each.sums[0] for each in await one.usage(FOREVER)) == 24
        before_ms = NOON_MS - DAY_MS // 2 - 2 * DAY_MS  # a day begins: three days remain
        for _ in range(10):
            await asyncio.gather(one.forget(before_ms), other.forget(before_ms))
        assert await rows_of(database) == 12
        # A day that the one dropped, and the other takes for prepared, is made anew once a batch was refused.
        with suppress(EntriesRefused):
            await other.write([entry(5000, at_ms=NOON_MS - 5 * DAY_MS)])
        await other.write([entry(5001, at_ms=NOON_MS - 5 * DAY_MS)], again=True)
        assert 5001 in {each.row_id for each in (await one.page(ALL)).entries}


async def test_days_are_made_ahead_and_dropped_whole(database_address: str) -> None:
    async with store_on(database_address) as (store, database):
        await store.prepare(NOON_MS, 2)
        await store.prepare(NOON_MS, 2)
        await store.write([entry(number, at_ms=NOON_MS + (number - 4) * DAY_MS) for number in range(7)])
        left = []
        while await store.forget(NOON_MS - DAY_MS // 2):
            left.append(await rows_of(database))
        assert await rows_of(database) == 3
        if database_address.startswith("postgresql"):
            assert left == [6, 5, 4], "a day at a time"
            async with database.reading() as connection:
                found = await connection.scalar(
                    text("SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('request_log')")
                )
            assert found == 3
        await store.forget_sums(NOON_MS - DAY_MS // 2)
        assert len(await store.usage(FOREVER)) == 3


async def test_an_sqlite_file_goes_a_little_at_a_time_and_shrinks(tmp_path: Path) -> None:
    file = tmp_path / "requests.db"
    async with store_on(str(file)) as (store, database):
        for begin in range(0, 3000, 500):
            await store.write([entry(begin + each, request_body="x" * 2000) for each in range(500)])
        async with database.reading() as connection:
            before = int((await connection.exec_driver_sql("PRAGMA page_count")).scalar() or 0)
        assert await store.forget(NOON_MS + 1)
        assert await rows_of(database) == 2000
        while await store.forget(NOON_MS + 1):
            pass
        async with database.reading() as connection:
            after = int((await connection.exec_driver_sql("PRAGMA page_count")).scalar() or 0)
        assert await rows_of(database) == 0
        assert after < before / 4


async def test_processes_that_start_together_share_one_new_file(tmp_path: Path) -> None:
    file = str(tmp_path / "requests.db")

    async def work(number: int) -> None:
        async with store_on(file) as (store, _):
            await store.write([entry(number)])

    await asyncio.gather(*(work(number) for number in range(6)))
    async with store_on(file) as (store, database):
        assert len((await store.page(ALL)).entries) == 6
        async with database.reading() as connection:
            assert (await connection.exec_driver_sql("PRAGMA auto_vacuum")).scalar() == 2


ODD = ["\x00", "\ud800", "a\x00b\udfffc", "x" * 10_000, "naïve ☃", "'; DROP TABLE request_log; --", "\u202e", "" * 300]


@pytest.mark.parametrize("odd", ODD)
async def test_any_text_and_number_is_taken(database_address: str, odd: str) -> None:
    under_test = log_under_test()
    log: RequestLog = under_test.log
    exchange = exchange_of(odd, caller=caller_of(request_id=odd))
    exchange.reason = exchange.fell_back = exchange.version = exchange.worker_id = exchange.cache = odd
    exchange.prompt_tokens, exchange.completion_tokens, exchange.request_bytes = 2**70, -1, 2**63
    exchange.attempts = exchange.migrations = 2**40
    log.note(exchange, 1e300)
    log.note(exchange, 0.0)
    async with store_on(database_address) as (store, _):
        await store.write([entry_of(noted, Origin()) for noted in log.take()])
        assert len((await store.page(ALL)).entries) == 2
