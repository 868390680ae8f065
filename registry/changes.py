"""Tells watchers which keys changed, without ever waiting for one of them.

Owns the watchers' bounded queues. A watcher that does not keep up is ended, and starts again from nothing: what it would have
been told is gone. Never knows what changed about a key; who is told asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import Code, PenstockError
from runtime.ids import KeyId


class WatchLagged(PenstockError, code=Code.ABORTED, reason="WATCH_LAGGED"):
    """The watcher fell too far behind; it forgets what it knows and watches anew."""


class WatchesFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="WATCHES_FULL"):
    """As many watch as may."""


class WatchClosed(PenstockError, code=Code.UNAVAILABLE, reason="WATCH_CLOSED"):
    """The registry is stopping."""


class Watch:
    """One watcher's view."""

    def __init__(self, backlog: int) -> None:
        self._pending: dict[KeyId, None] = {}
        self._backlog = backlog
        self._end: PenstockError | None = None
        self._woken = asyncio.Event()

    async def changed(self) -> tuple[KeyId, ...]:
        """The keys that changed since the last call, at least one. Raises WatchLagged, WatchClosed."""
        await self._woken.wait()
        if self._end is not None:
            raise self._end
        taken = tuple(self._pending)
        self._pending.clear()
        self._woken.clear()
        return taken

    def add(self, key_id: KeyId) -> None:
        if len(self._pending) >= self._backlog and key_id not in self._pending:
            self.end(WatchLagged(f"more than {self._backlog} keys changed unread; forget all keys, then watch again"))
            return
        self._pending[key_id] = None
        self._woken.set()

    def end(self, why: PenstockError) -> None:
        self._end = self._end or why
        self._pending.clear()
        self._woken.set()


class KeyChanges:
    """All watchers of one process."""

    def __init__(self, *, max_watches: int = 256, backlog: int = 1024) -> None:
        self._max_watches, self._backlog = max_watches, backlog
        self._watches: set[Watch] = set()
        self._closed = False

    def publish(self, key_id: KeyId) -> None:
        for watch in self._watches:
            watch.add(key_id)

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Raises WatchesFull, WatchClosed."""
        if self._closed:
            raise _closed()
        if len(self._watches) >= self._max_watches:
            raise WatchesFull(f"{self._max_watches} watches stand already, as many as may", retry_after_s=5.0)
        watch = Watch(self._backlog)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    def close(self) -> None:
        """End every watch, so that a draining server need not wait for streams that never end."""
        self._closed = True
        for watch in self._watches:
            watch.end(_closed())


def _closed() -> WatchClosed:
    return WatchClosed("the registry is stopping; watch again when it is back", retry_after_s=1.0)
