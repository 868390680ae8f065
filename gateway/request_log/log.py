"""The requests that ended and are not in the database yet: as many as may wait, and no more.

Belongs to one event loop. Noting one never waits and never fails: where no more may wait, it is dropped and counted. What is
noted is either waiting, or written, or dropped for a reason. Never speaks to a database: `writer` does.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque

from gateway.exchange import Exchange
from gateway.request_log.metrics import LogMetrics
from gateway.request_log.types import Drop, KeptBodies, LogSettings
from runtime.clock import Clock
from runtime.telemetry import request_id_var

ROW_BYTES = 1_200
"""What one takes in memory without its words: the tuple, its numbers, the strings that are its own."""

MAX_NAME = 256
Noted = tuple[object, ...]
"""As `note` makes it and `entries.entry_of` reads it."""


class RequestLog:
    """A gateway.exchange.Log."""

    def __init__(self, clock: Clock, metrics: LogMetrics, settings: LogSettings | None = None) -> None:
        self._clock, self._metrics, self._settings = clock, metrics, settings or LogSettings()
        self._waiting: deque[Noted] = deque()
        self._max_rows, self._max_bytes = self._settings.queue_rows, self._settings.queue_bytes
        self._bytes = 0
        self._second, self._strangers = 0, 0
        self._ids = itertools.count(secrets.randbits(31) << 32)  # apart from those of all other processes
        self.keeps_words = self._settings.bodies is not KeptBodies.OFF
        self.full = asyncio.Event()
        """A batch is there."""
        metrics.follow(lambda: len(self._waiting), lambda: self._bytes)

    def __len__(self) -> int:
        return len(self._waiting)

    def note(self, exchange: Exchange, elapsed_s: float) -> None:
        waiting, said, caller = self._waiting, exchange.said, exchange.caller
        size_bytes = ROW_BYTES if said is None else ROW_BYTES + len(said.asked) + len(said.answered)
        if len(waiting) >= self._max_rows:
            self._metrics.dropped(Drop.QUEUE_FULL)
            return
        if self._bytes + size_bytes > self._max_bytes:
            self._metrics.dropped(Drop.BYTES_FULL)
            return
        now_s = self._clock.wall_s()
        if caller is None and not self._takes_stranger(int(now_s)):
            self._metrics.dropped(Drop.STRANGER)
            return
        self._bytes += size_bytes
        asked, model, first_s = exchange.asked, exchange.model, exchange.first_answer_s
        waiting.append(
            (
                size_bytes,
                now_s,
                next(self._ids),
                request_id_var.get() if caller is None else caller.request_id,
                None if caller is None else caller.key,
                "" if caller is None else caller.traceparent,
                exchange.method,
                asked if len(asked) <= MAX_NAME else asked[:MAX_NAME],
                model if len(model) <= MAX_NAME else model[:MAX_NAME],
                exchange.version,
                exchange.worker_id,
                exchange.code,
                exchange.reason,
                exchange.streamed,
                exchange.attempts,
                exchange.hedged,
                exchange.migrations,
                exchange.fell_back,
                exchange.cache,
                exchange.prompt_tokens,
                exchange.completion_tokens,
                exchange.request_bytes,
                exchange.answer_bytes,
                elapsed_s,
                None if first_s is None else first_s - exchange.started_s,
                said,
            )
        )
        if len(waiting) == self._settings.batch_rows:
            self.full.set()

    def take(self) -> list[Noted]:
        """The oldest ones, one batch of them at most. They are the caller's to write, or to drop."""
        waiting, most = self._waiting, self._settings.batch_rows
        taken = [waiting.popleft() for _ in range(min(len(waiting), most))]
        self._bytes -= sum(each[0] for each in taken)  # type: ignore[misc]  # of a tuple's first
        if len(waiting) < most:
            self.full.clear()
        return taken

    def drop_all(self, why: Drop) -> int:
        """How many there were."""
        count = len(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        self._metrics.dropped(why, count)
        return count

    def _takes_stranger(self, second: int) -> bool:
        if second != self._second:
            self._second, self._strangers = second, 0
        self._strangers += 1
        return self._strangers <= self._settings.strangers_per_s
