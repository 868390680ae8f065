"""How late the event loop is: what every request of a process waits at least, whatever it asks for.

A timer of a tenth of a second; what it comes late is observed. Costs two calls and a histogram's bucket each time. Decides
nothing.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Histogram

EVERY_S = 0.1
_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_known: WeakKeyDictionary[CollectorRegistry, Histogram] = WeakKeyDictionary()


def measure_loop_lag(registry: CollectorRegistry) -> LoopLag:
    """Measure the running loop for as long as it runs, or until it is stopped."""
    if registry not in _known:
        _known[registry] = Histogram(
            "penstock_event_loop_lag_seconds",
            "how late the event loop came back to a timer, looked at ten times a second",
            buckets=_BUCKETS,
            registry=registry,
        )
    return LoopLag(asyncio.get_running_loop(), _known[registry])


class LoopLag:
    """One loop's timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lag: Histogram) -> None:
        self._loop, self._lag = loop, lag
        self._due_s = loop.time() + EVERY_S
        self._timer = loop.call_at(self._due_s, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        # Loops keep time in milliseconds and may come a part of one early.
        self._lag.observe(max(0.0, (now_s := self._loop.time()) - self._due_s))
        self._due_s = now_s + EVERY_S
        self._timer = self._loop.call_at(self._due_s, self._look)
