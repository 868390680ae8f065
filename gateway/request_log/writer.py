"""From the queue of the request log into its database, batch by batch, whatever the database does meanwhile.

A batch is written until the database has it; what the database will not have is dropped alone, and counted. One batch is under
way at a time, so what waits here is bounded by the queue and that batch.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Protocol

import structlog

from gateway.request_log.entries import entry_of
from gateway.request_log.log import Noted, RequestLog
from gateway.request_log.metrics import LogMetrics
from gateway.request_log.types import Drop, EntriesRefused, Entry, LogSettings, Origin
from runtime.backoff import Backoff, sleep_unless
from runtime.clock import Clock
from runtime.errors import PenstockError

_AGAIN = Backoff(first_s=0.5, max_s=10.0)
_TOLD_EVERY_S = 60.0
_log = structlog.get_logger("penstock.request_log")


class Keeper(Protocol):
    """Where entries are kept: gateway.request_log.store.LogStore."""

    async def write(self, entries: Sequence[Entry], *, again: bool = False) -> None:
        """All of them, or none. `again`: they may be there already. Raises EntriesRefused, and whatever else says "not now"."""
        ...


class LogWriter:
    def __init__(
        self,
        log: RequestLog,
        keeper: Keeper,
        clock: Clock,
        metrics: LogMetrics,
        origin: Origin,
        settings: LogSettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._log, self._keeper, self._clock, self._metrics = log, keeper, clock, metrics
        self._origin, self._settings, self._rng = origin, settings or LogSettings(), rng or random.SystemRandom()
        self._ending, self._told_s = asyncio.Event(), float("-inf")

    def end(self) -> None:
        """What waits is still written; then `run` returns."""
        self._ending.set()
        self._log.full.set()

    async def run(self) -> None:
        """Until `end`; then what waits is written, as long as the database takes it. Whatever is taken is accounted for."""
        while self._log or not self._ending.is_set():
            if not self._ending.is_set():
                await sleep_unless(self._clock, self._settings.every_s, self._log.full)
            if (taken := self._log.take()) and not await self._settle(taken):
                return

    async def _settle(self, taken: list[Noted]) -> bool:
        """Written or dropped, all of them; False: the database took no more, and there is no time to wait for it."""
        left, doubtful, failures = len(taken), False, 0
        try:
            if not (entries := await self._entries(taken)):
                return True
            batches = [entries]
            while batches:
                batch = batches.pop()
                try:
                    await self._write(batch, again=doubtful)
                except EntriesRefused:
                    doubtful = True
                    parts = self._parted(batch)
                    batches += parts
                    left -= 0 if parts else 1
                except Exception as error:
                    doubtful, failures = True, failures + 1
                    self._failed(error)
                    if self._ending.is_set():
                        self._metrics.dropped(Drop.SHUTDOWN, left)
                        return False
                    batches.append(batch)
                    await sleep_unless(self._clock, _AGAIN.delay_s(failures, self._rng), self._ending)
                else:
                    failures, left = 0, left - len(batch)
        except BaseException:
            self._metrics.dropped(Drop.SHUTDOWN, left)
            raise
        return True

    async def _entries(self, taken: list[Noted]) -> list[Entry]:
        """None where a bug of ours keeps them from being made: the log goes on."""
        try:
            if not self._log.keeps_words:
                return [entry_of(noted, self._origin) for noted in taken]
            return await asyncio.to_thread(lambda: [entry_of(noted, self._origin) for noted in taken])
        except Exception:
            self._metrics.dropped(Drop.REFUSED, len(taken))
            _log.exception("requests_not_logged", requests=len(taken))
            return []

    async def _write(self, batch: list[Entry], *, again: bool) -> None:
        began_s = self._clock.monotonic_s()
        async with asyncio.timeout(self._settings.write_s):
            await self._keeper.write(batch, again=again)
        self._metrics.written(len(batch), self._clock.monotonic_s() - began_s)

    def _parted(self, batch: list[Entry]) -> list[list[Entry]]:
        """Halves, the later one first, to find the one that is refused; none where it was found."""
        if len(batch) == 1:
            self._metrics.dropped(Drop.REFUSED)
            _log.warning("request_not_logged", why="the database refuses its entry", method=batch[0].method)
            return []
        middle = len(batch) // 2
        return [batch[middle:], batch[:middle]]

    def _failed(self, error: Exception) -> None:
        self._metrics.failed()
        if self._clock.monotonic_s() - self._told_s >= _TOLD_EVERY_S:
            self._told_s = self._clock.monotonic_s()
            if isinstance(error, PenstockError | TimeoutError):
                why = getattr(error, "message", "") or f"it took longer than {self._settings.write_s:g} s"
                _log.warning("request_log_behind", why=why, waiting=len(self._log))
            else:
                _log.error("request_log_behind", waiting=len(self._log), exc_info=error)
