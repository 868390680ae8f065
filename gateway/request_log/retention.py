"""Keeps the request log as long as it is to be kept: days made ahead, old ones away, a little at a time.

Each gateway does it; the database lets one at a time. Never reads what it forgets.
"""

from __future__ import annotations

import random
from typing import Protocol

import structlog

from gateway.request_log.types import LogSettings
from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.errors import PenstockError

EVERY_S = 3_600.0
PAUSE_S = 0.2
"""Between two steps: whoever writes goes first."""

DAYS_AHEAD = 2
_AGAIN = Backoff(first_s=5.0, max_s=600.0)
_log = structlog.get_logger("penstock.request_log")


class Shelf(Protocol):
    """Where entries are kept: gateway.request_log.store.LogStore."""

    async def prepare(self, now_ms: int, days: int) -> None: ...

    async def forget(self, before_ms: int) -> bool: ...

    async def forget_sums(self, before_ms: int) -> None: ...


class Retention:
    def __init__(self, shelf: Shelf, clock: Clock, settings: LogSettings, rng: random.Random | None = None) -> None:
        self._shelf, self._clock, self._settings = shelf, clock, settings
        self._rng = rng or random.SystemRandom()

    async def run(self) -> None:
        """For ever, each gateway at moments of its own."""
        failures = 0
        while True:
            try:
                await self.look()
                failures = 0
            except PenstockError as error:
                failures += 1
                _log.warning("request_log_not_cleaned", why=error.message)
            except Exception:
                failures += 1
                _log.exception("request_log_not_cleaned")
            pause_s = _AGAIN.delay_s(failures, self._rng) if failures else EVERY_S * (1.0 + 0.2 * self._rng.random())
            await self._clock.sleep(pause_s)

    async def look(self) -> None:
        """Once: room for the days to come, and away with what is over."""
        now_ms = int(self._clock.wall_s() * 1000)
        await self._shelf.prepare(now_ms, DAYS_AHEAD)
        while await self._shelf.forget(now_ms - self._settings.retention_ms):
            await self._clock.sleep(PAUSE_S)
        await self._shelf.forget_sums(now_ms - self._settings.sums_ms)
