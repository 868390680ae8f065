"""A log over many days, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from gateway.request_log.retention import EVERY_S, Retention
from gateway.request_log.types import DAY_MS, LogSettings
from runtime.database import DatabaseUnavailable
from tests.gateway.request_log.ground import entry, store_on
from tests.gateway.request_log.test_store import ALL, FOREVER
from tests.support.manual_clock import ManualClock


async def test_days_come_and_go(database_address: str) -> None:
    """A request every six hours for ten days, kept for three."""
    clock = ManualClock()
    settings = LogSettings(retention_ms=3 * DAY_MS, sums_ms=5 * DAY_MS)
    async with store_on(database_address) as (store, _):
        retention = Retention(store, clock, settings)
        most = 0
        for number in range(40):
            await clock.advance(6 * 3600)
            now_ms = int(clock.wall_s() * 1000)
            await store.write([entry(number, at_ms=now_ms)])
            look = asyncio.create_task(retention.look())
            while not look.done():
                await asyncio.sleep(0.005)
                await clock.advance(0.3)
            await look
            kept = {each.row_id for each in (await store.page(ALL)).entries}
            assert kept >= set(range(max(number - 11, 0), number + 1)), "of the last three days nothing is gone"
            most = max(most, len(kept))
        assert most <= 17, "what is too old is gone when its day is, at the latest"
        days = {each.key.day_ms for each in await store.usage(FOREVER)}
        assert 5 <= len(days) <= 6


@dataclass
class Shelf:
    away: bool = False
    left: int = 0
    looks: list[float] = field(default_factory=list)
    forgot: int = 0
    clock: ManualClock = field(default_factory=ManualClock)

    async def prepare(self, now_ms: int, days: int) -> None:
        self.looks.append(self.clock.monotonic_s())
        if self.away:
            raise DatabaseUnavailable("away")

    async def forget(self, before_ms: int) -> bool:
        self.forgot += 1
        self.left -= 1
        return self.left > 0

    async def forget_sums(self, before_ms: int) -> None: ...


async def test_each_hour_a_little_at_a_time_and_again_after_a_failure() -> None:
    shelf = Shelf(left=5)
    retention = Retention(shelf, shelf.clock, LogSettings())
    task = asyncio.create_task(retention.run())
    try:
        await shelf.clock.advance(0.1)
        assert (len(shelf.looks), shelf.forgot) == (1, 1), "others come between two steps"
        await shelf.clock.advance(60)
        assert (len(shelf.looks), shelf.forgot) == (1, 5)
        shelf.away = True
        await shelf.clock.advance(1.3 * EVERY_S)
        assert 4 < len(shelf.looks) < 40, "sooner after a failure, and later each time"
        shelf.away, before = False, len(shelf.looks)
        await shelf.clock.advance(0.9 * EVERY_S)
        assert len(shelf.looks) == before + 1
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
