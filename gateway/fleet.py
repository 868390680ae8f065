"""The gateway's own view of the fleet: who serves what, what is wanted, by which rules requests are routed.

Follows the scheduler's WatchFleet; while nobody answers there, the last view stays and warm traffic goes on. Copies of
withdrawn versions and revoked nodes are not in the view, from the moment in which the registry's notice is heard. The view may
hold workers of other regions; wishes count where they are of the gateway's own. Owns view and routing state; links follow the
view (`gateway.links.roster`). Never chooses a worker.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

import structlog

from gateway.links.roster import Link, LinkRoster
from gateway.types import FleetNews
from placement.copies.assign import Placement
from placement.routing.state import RoutingState
from placement.rules import RoutingPolicy
from placement.types import ANY_REGION, ANY_VERSION, Copy, CopyState, Worker, newest
from placement.view import FleetView
from runtime.backoff import DEFAULT_BACKOFF
from runtime.clock import Clock
from runtime.errors import PenstockError
from runtime.ids import ModelName, ModelVersion, NodeId, Region, WorkerId
from runtime.notices import NoticeBoard

_log = structlog.get_logger("penstock.fleet")


class FleetSource(Protocol):
    """Who knows the fleet."""

    def watch(self) -> AsyncGenerator[FleetNews, None]:
        """A snapshot, then changes. Ends or raises PenstockError when the connection does."""
        ...


class Fleet:
    """Belongs to one event loop. `run` follows the source until cancelled, and closes every link then."""

    def __init__(
        self,
        source: FleetSource,
        open_link: Callable[[Worker], Link],
        clock: Clock,
        board: NoticeBoard | None = None,
        home: Region = ANY_REGION,
        *,
        cross_region: bool = False,
        all_regions: bool = False,
    ) -> None:
        """Without a board every copy and every node is taken as it is told; without a home, all regions are.

        `cross_region`: requests may leave their region, whatever rules say. `all_regions`: they may be from others than home.
        """
        self._source, self._clock, self.home = source, clock, home
        self._cross_region, self._all_regions = cross_region, all_regions
        self._board = board or NoticeBoard()
        self._roster = LinkRoster(open_link, clock, self._board.revocations, home)
        self._board.on_model.append(self._hear_model)
        self._board.revocations.listeners.append(self._hear_revoked)
        self.view = FleetView()
        self.state = RoutingState(self.view)
        self.links: Mapping[WorkerId, Link] = self._roster.links
        self.placements: Mapping[tuple[ModelName, ModelVersion], Placement] = {}
        self.policy = RoutingPolicy()
        self._elsewhere: Mapping[ModelName, tuple[Placement, ...]] = {}
        """What is wanted of models in other regions."""
        self._inhabited: tuple[FleetView, frozenset[Region]] = (self.view, frozenset())
        self.synced = False
        """Whether the scheduler was heard at all; before that an empty view means nothing."""
        self.stale = True
        """Nobody can tell now whether the view still holds."""
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change; take it before looking."""
        return self._changed

    async def until_synced(self) -> None:
        """Return once the scheduler was heard. The caller bounds the wait."""
        while not self.synced:
            await self._changed.wait()

    def placed(self, model: str, version: str = "", region: Region = ANY_REGION) -> bool:
        """Whether somebody wants copies of this model (of this version; empty: of any), be it only once they are asked for.

        `region`: where; any: at home.
        """
        if region not in (ANY_REGION, self.home):
            elsewhere = self._served_wishes(self._elsewhere.get(ModelName(model), ()))
            return any(wish.region == region and version in ("", wish.version) for wish in elsewhere)
        return any(wish.model == model and version in ("", wish.version) for wish in self.wanted())

    def wanted(self) -> Iterator[Placement]:
        """What is to be loaded, or will be when it is asked for, of what may be served."""
        return self._served_wishes(self.placements.values())

    def expected(self) -> Iterator[Placement]:
        """What is to be loaded, asked for or not."""
        return (wish for wish in self.wanted() if wish.copies > 0)

    def newest(self, model: str, region: Region = ANY_REGION) -> ModelVersion:
        """The newest version that is held, or to be held in this region (any: at home); empty: there is none."""
        index = self.view.models.get(ModelName(model))
        wished = {version for name, version in self.placements if name == model}
        if region not in (ANY_REGION, self.home):
            wished = {wish.version for wish in self._elsewhere.get(ModelName(model), ()) if wish.region == region}
        known = wished | index.versions() if index is not None else wished
        return newest(known) if known else ANY_VERSION

    def regions_with(self, model: str) -> list[Region]:
        """Regions that hold a model or are to hold it, as far as this gateway is told of them."""
        held = {worker.region for worker, _ in self.view.copies_of(ModelName(model))}
        wanted = {wish.region for wish in self._elsewhere.get(ModelName(model), ())}
        return sorted(held | wanted | ({self.home} if self.home and self.placed(model) else set()))

    def regions(self) -> set[Region]:
        """Every region that is known here."""
        known = {wish.region for wishes in self._elsewhere.values() for wish in wishes}.union(self.inhabited())
        return known | {self.home} if self.home else known

    def inhabited(self) -> frozenset[Region]:
        """Regions in which workers are, as far as this gateway is told of them."""
        view, found = self._inhabited
        if view is not self.view:
            found = frozenset({worker.region for worker in self.view.workers.values()})
            self._inhabited = (self.view, found)
        return found

    @property
    def crosses(self) -> bool:
        """Whether any request may leave its region."""
        return self._cross_region or any(rule.cross_region for rule in self.policy.rules)

    def link(self, worker_id: WorkerId) -> Link:
        """To a worker of the view; to one of another region it is made at its first request."""
        return self._roster.to(self.view.workers[worker_id])

    def drop_idle_links(self, in_use: Callable[[WorkerId], bool]) -> None:
        """Let links to other regions go that are not in use; call it about once a second."""
        self._roster.drop_idle(in_use)

    def copies(self, model: str, version: str = "") -> tuple[tuple[Worker, Copy], ...]:
        """Copies of a model in any state (of this version; empty: of all): those at home, and those elsewhere where home has
        none and requests may go there, or may be from there."""
        found = self.view.copies_of(ModelName(model))
        if self.home:
            near = tuple(pair for pair in found if pair[0].region == self.home)
            found = near if near or not (self.crosses or self._all_regions) else found
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
            await self._roster.close()

    def apply(self, news: FleetNews) -> None:
        """Take over what the scheduler says. Links follow the view."""
        known, revoked = self.view, self._board.revocations
        workers = [self._served(worker) for worker in news.workers if worker.worker_id not in revoked]
        if news.placements is not None:
            self._take_wishes(news.placements)
        if news.policy is not None:
            self.policy = news.policy
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

    def _served_wishes(self, wishes: Iterable[Placement]) -> Iterator[Placement]:
        return (
            wish
            for wish in wishes
            if (wish.copies > 0 or wish.max_copies > 0) and not self._board.is_withdrawn(wish.model, wish.digest)
        )

    def _served(self, worker: Worker) -> Worker:
        kept = tuple(copy for copy in worker.copies if not self._board.is_withdrawn(copy.model, copy.digest))
        return worker if len(kept) == len(worker.copies) else replace(worker, copies=kept)

    def _show(self, view: FleetView) -> None:
        self.view = view
        self.state.adopt(view)
        self._roster.follow(view)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _take_wishes(self, wishes: Iterable[Placement]) -> None:
        elsewhere: dict[ModelName, tuple[Placement, ...]] = {}
        own: dict[tuple[ModelName, ModelVersion], Placement] = {}
        for wish in wishes:
            if self.home in (ANY_REGION, wish.region):
                own[wish.model, wish.version] = wish
            elif wish.copies > 0 or wish.max_copies > 0:
                elsewhere[wish.model] = (*elsewhere.get(wish.model, ()), wish)
        self.placements, self._elsewhere = own, elsewhere
