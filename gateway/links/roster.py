"""Which links there are: one to every worker of the gateway's own region, and to those of others that are in use.

A link lives as long as its worker is in the view and a little longer: calls that a leaving worker still finishes are let
finish, those that outlast this are failed, so that they are sent elsewhere. A worker of another region is linked to at its
first request, and let go when none came for a while. Owns the links. Never chooses a worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import structlog

from gateway.links.types import CallContext, LinkLoad, Method
from placement.types import ANY_REGION, Worker
from placement.view import FleetView
from runtime.clock import Clock
from runtime.ids import NodeId, Region, WorkerId
from runtime.revocations import Revocations

LINGER_S = 5.0
"""How long the open calls of a worker that left may go on."""

IDLE_S = 60.0
"""How long a link to another region is kept without a request."""

_LINGER_STEP_S = 0.05
_log = structlog.get_logger("penstock.links")


class AnswerStream(Protocol):
    """The answers of one streaming call."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class Link(Protocol):
    """Calls to one worker."""

    address: str
    last_failure: str
    rtt_ms: float
    """0: not measured."""

    def start(self) -> None: ...

    async def close(self) -> None: ...

    async def wait_connected(self, timeout_s: float) -> bool: ...

    @property
    def ready(self) -> bool: ...

    @property
    def is_silent(self) -> bool:
        """It owes answers and has said nothing for a while."""
        ...

    @property
    def in_flight(self) -> int: ...

    @property
    def load(self) -> LinkLoad: ...

    async def call(self, model: str, version: str, payload: bytes, context: CallContext) -> bytes: ...

    def stream(self, method: Method, model: str, version: str, payload: bytes, context: CallContext) -> AnswerStream: ...


class LinkRoster:
    """Belongs to one event loop; `close` it. Where `home` is any region, every worker is at home."""

    def __init__(
        self, open_link: Callable[[Worker], Link], clock: Clock, revocations: Revocations, home: Region = ANY_REGION
    ) -> None:
        self._open_link, self._clock, self._revocations, self._home = open_link, clock, revocations, home
        self.links: dict[WorkerId, Link] = {}
        self._used_s: dict[WorkerId, float] = {}
        """When links to other regions were last seen in use."""
        self._leaving: set[asyncio.Task[None]] = set()

    def follow(self, view: FleetView) -> None:
        """Links as this view has workers."""
        for worker_id, link in list(self.links.items()):
            worker = view.workers.get(worker_id)
            if worker is None or worker.address != link.address:
                self._leave(worker_id)
        for worker_id, worker in view.workers.items():
            if worker_id not in self.links and self._home in (ANY_REGION, worker.region):
                self.to(worker)

    def to(self, worker: Worker) -> Link:
        """The link to a worker of the view; it begins to connect where there was none."""
        link = self.links.get(worker.worker_id)
        if link is None:
            self.links[worker.worker_id] = link = self._open_link(worker)
            link.start()
            if self._home not in (ANY_REGION, worker.region):
                self._used_s[worker.worker_id] = self._clock.monotonic_s()
        return link

    def drop_idle(self, in_use: Callable[[WorkerId], bool]) -> None:
        """Let links to other regions go that were not `in_use` for a while. Call it about once a second."""
        now_s = self._clock.monotonic_s()
        for worker_id, used_s in list(self._used_s.items()):
            link = self.links.get(worker_id)
            if link is None:
                del self._used_s[worker_id]
            elif link.in_flight or in_use(worker_id):
                self._used_s[worker_id] = now_s
            elif now_s - used_s >= IDLE_S:
                self._leave(worker_id)

    async def close(self) -> None:
        for task in self._leaving:
            task.cancel()
        closing = [link.close() for link in self.links.values()]
        await asyncio.gather(*self._leaving, *closing, return_exceptions=True)
        self.links.clear()

    def _leave(self, worker_id: WorkerId) -> None:
        link = self.links.pop(worker_id)
        self._used_s.pop(worker_id, None)
        task = asyncio.create_task(self._let_go(worker_id, link), name=f"link-leaving-{worker_id}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _let_go(self, worker_id: WorkerId, link: Link) -> None:
        end_s = self._clock.monotonic_s() + LINGER_S
        try:
            while link.in_flight and self._clock.monotonic_s() < end_s and NodeId(worker_id) not in self._revocations:
                await self._clock.sleep(_LINGER_STEP_S)
            if link.in_flight:
                _log.warning("orphans_cancelled", worker_id=worker_id, calls=link.in_flight)
        finally:
            await link.close()
