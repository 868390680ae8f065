"""The gateway's own view of the fleet, and its links to the workers in it.

Follows the scheduler's WatchFleet; while nobody answers there, the last view stays and warm traffic goes on. A link lives as
long as its worker is in the view and a little longer: calls that a leaving worker still finishes are let finish, those that
outlast this are failed, so that they are sent elsewhere. Copies of withdrawn versions and revoked nodes are not in the view,
from the moment in which the registry's notice is heard. Owns view, routing state and links. Never chooses a worker.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

import structlog

from gateway.links.types import CallContext, LinkLoad, Method
from gateway.types import FleetNews
from placement.assign import Placement
from placement.state import RoutingState
from placement.types import Copy, CopyState, Worker
from placement.view import FleetView
from runtime.backoff import DEFAULT_BACKOFF
from runtime.clock import Clock
from runtime.errors import PenstockError
from runtime.ids import ModelName, ModelVersion, NodeId, WorkerId
from runtime.notices import NoticeBoard

LINGER_S = 5.0
"""How long the open calls of a worker that left may go on."""

_LINGER_STEP_S = 0.05
_log = structlog.get_logger("penstock.fleet")


class FleetSource(Protocol):
    """Who knows the fleet."""

    def watch(self) -> AsyncGenerator[FleetNews, None]:
        """A snapshot, then changes. Ends or raises PenstockError when the connection does."""
        ...


class AnswerStream(Protocol):
    """The answers of one streaming call."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class Link(Protocol):
    """Calls to one worker."""

    address: str
    last_failure: str

    def start(self) -> None: ...

    async def close(self) -> None: ...

    async def wait_connected(self, timeout_s: float) -> bool: ...

    @property
    def ready(self) -> bool: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def load(self) -> LinkLoad: ...

    async def call(self, model: str, version: str, payload: bytes, context: CallContext) -> bytes: ...

    def stream(self, method: Method, model: str, version: str, payload: bytes, context: CallContext) -> AnswerStream: ...


class Fleet:
    """Belongs to one event loop. `run` follows the source until cancelled, and closes every link then."""

    def __init__(
        self, source: FleetSource, open_link: Callable[[Worker], Link], clock: Clock, board: NoticeBoard | None = None
    ) -> None:
        """Without a board every copy and every node is taken as it is told."""
        self._source, self._open_link, self._clock = source, open_link, clock
        self._board = board or NoticeBoard()
        self._board.on_model.append(self._hear_model)
        self._board.revocations.listeners.append(self._hear_revoked)
        self.view = FleetView()
        self.state = RoutingState(self.view)
        self.links: dict[WorkerId, Link] = {}
        self.placements: Mapping[tuple[ModelName, ModelVersion], Placement] = {}
        self.synced = False
        """Whether the scheduler was heard at all; before that an empty view means nothing."""
        self.stale = True
        """Nobody can tell now whether the view still holds."""
        self._changed = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change; take it before looking."""
        return self._changed

    def placed(self, model: str, version: str = "") -> bool:
        """Whether somebody wants copies of this model (of this version; empty: of any)."""
        return any(wish.model == model and version in ("", wish.version) for wish in self.wanted())

    def wanted(self) -> Iterator[Placement]:
        """What is to be loaded, of what may be served."""
        wishes = self.placements.values()
        return (wish for wish in wishes if wish.copies > 0 and not self._board.is_withdrawn(wish.model, wish.digest))

    def copies(self, model: str, version: str = "") -> tuple[tuple[Worker, Copy], ...]:
        """Copies of a model in any state (of this version; empty: of all)."""
        found = self.view.copies_of(ModelName(model))
        return found if not version else tuple(pair for pair in found if pair[1].version == version)

    def ready(self, model: str, version: str = "") -> tuple[tuple[Worker, Copy], ...]:
        """Copies that answer."""
        return tuple(pair for pair in self.copies(model, version) if pair[1].state is CopyState.READY)

    async def run(self) -> None:
        failures, rng = 0, random.Random()  # noqa: S311 (spreads reconnects)
        try:
            while True:
                try:
                    async with aclosing(self._source.watch()) as watch:
                        async for news in watch:
                            failures = 0
                            self.apply(news)
                    why = "the scheduler ended the watch"
                except PenstockError as error:
                    why = error.message
                failures += 1
                if failures == 1:
                    _log.warning("fleet_watch_lost", why=why, workers=len(self.view.workers))
                self.stale = True
                await self._clock.sleep(DEFAULT_BACKOFF.delay_s(failures, rng))
        finally:
            await self._close()

    def apply(self, news: FleetNews) -> None:
        """Take over what the scheduler says. Links follow the view."""
        known, revoked = self.view, self._board.revocations
        workers = [self._served(worker) for worker in news.workers if worker.worker_id not in revoked]
        if news.placements is not None:
            self.placements = {(wish.model, wish.version): wish for wish in news.placements}
        self.synced, self.stale = True, news.stale
        self._show(known.replaced_by(workers) if news.snapshot else known.with_changes(workers, news.removed))

    def _hear_model(self, model: ModelName) -> None:
        """Copies that were withdrawn are gone from the view, whatever their workers still do."""
        notice, index = self._board.model(model), self.view.models.get(model)
        if index is None or notice is None or not notice.withdrawn:
            return
        self._show(self.view.with_changes([self._served(self.view.workers[holder]) for holder in index.holders]))

    def _hear_revoked(self, node_id: NodeId) -> None:
        worker_id = WorkerId(node_id)
        if worker_id in self.view.workers:
            self._show(self.view.without_worker(worker_id))

    def _served(self, worker: Worker) -> Worker:
        kept = tuple(copy for copy in worker.copies if not self._board.is_withdrawn(copy.model, copy.digest))
        return worker if len(kept) == len(worker.copies) else replace(worker, copies=kept)

    def _show(self, view: FleetView) -> None:
        self.view = view
        self.state.adopt(view)
        self._relink()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _relink(self) -> None:
        for worker_id, link in list(self.links.items()):
            worker = self.view.workers.get(worker_id)
            if worker is None or worker.address != link.address:
                del self.links[worker_id]
                task = asyncio.create_task(self._let_go(worker_id, link), name=f"link-leaving-{worker_id}")
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
        for worker_id, worker in self.view.workers.items():
            if worker_id not in self.links:
                self.links[worker_id] = link = self._open_link(worker)
                link.start()

    async def _let_go(self, worker_id: WorkerId, link: Link) -> None:
        end_s, revoked = self._clock.monotonic_s() + LINGER_S, self._board.revocations
        try:
            while link.in_flight and self._clock.monotonic_s() < end_s and worker_id not in revoked:
                await self._clock.sleep(_LINGER_STEP_S)
            if link.in_flight:
                _log.warning("orphans_cancelled", worker_id=worker_id, calls=link.in_flight)
        finally:
            await link.close()

    async def _close(self) -> None:
        for task in self._leaving:
            task.cancel()
        closing = [link.close() for link in self.links.values()]
        await asyncio.gather(*self._leaving, *closing, return_exceptions=True)
        self.links.clear()
