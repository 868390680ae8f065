"""What a link is told of the workers beside its own: who else could answer, so that a silent one's calls go there.

A worker counts only while it can be reached and is not silent itself: where all are, it is this gateway's own network that is
down, and nobody's calls are given up. Owns nothing; never chooses a worker.
"""

from __future__ import annotations

import asyncio

import structlog

from gateway.fleet import Fleet
from gateway.metrics import GatewayMetrics
from runtime.ids import WorkerId

_log = structlog.get_logger("penstock.links")


class OtherWorkers:
    """Implements `gateway.links.types.Others`. Belongs to one event loop."""

    def __init__(self, fleet: Fleet, metrics: GatewayMetrics, worker_id: WorkerId) -> None:
        self._fleet, self._metrics, self._worker_id = fleet, metrics, worker_id
        self._loop = asyncio.get_running_loop()

    def pass_over(self, silent_s: float) -> None:
        _log.warning("worker_fell_silent", worker_id=self._worker_id, silent_s=silent_s)
        self._metrics.silent()
        self._fleet.state.inhibit(self._worker_id, self._loop.time())

    def have(self, model: str, version: str) -> bool:
        links = self._fleet.links
        found = (links.get(worker.worker_id) for worker, _ in self._fleet.ready(model, version))
        own = links.get(self._worker_id)
        return any(link is not None and link is not own and link.ready and not link.is_silent for link in found)

    def took_over(self, calls: int) -> None:
        _log.warning("silent_workers_calls_given_up", worker_id=self._worker_id, calls=calls)
