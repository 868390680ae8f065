"""Those who watch the fleet: each is told what changed since it was last told, however slowly it reads.

What waits for a slow watcher is a set of names, not a queue of messages: when it reads again it is told how these workers are
now, and what happened in between never was. A watcher that fell behind by too many names is told everything anew. So nothing
here grows with time. Decides what to tell whom; never does I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from placement.copies.assign import Placement
from placement.rules import RoutingPolicy
from runtime.errors import Code, PenstockError
from runtime.ids import Region, WorkerId
from scheduler.fleet import Fleet
from scheduler.leading.types import Leader
from scheduler.types import FleetDelta, Member

MAX_WATCHERS = 4_096
MAX_NAMES = 20_000


class TooManyWatchers(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="TOO_MANY_WATCHERS"):
    """No more may watch the fleet here."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one watcher is told."""

    snapshot: bool
    members: tuple[Member, ...]
    removed: tuple[WorkerId, ...]
    stale: bool
    placements: tuple[Placement, ...] | None
    """All of them; None where none changed."""
    leaders: tuple[Leader, ...] | None = None
    """All of them; None where none changed."""
    policy: RoutingPolicy | None = None
    """None where it did not change, or is not known yet."""


class Watcher:
    """One of them: what it has not been told yet."""

    def __init__(self, audience: Audience, region: Region) -> None:
        self._audience, self._region = audience, region
        self._names: set[WorkerId] = set()
        self._told: set[WorkerId] = set()
        self._everything, self._placements, self._leaders, self._policy, self._stale = True, True, True, True, False
        self._news = asyncio.Event()
        self._news.set()

    def hear(self, delta: FleetDelta) -> None:
        self._names.update(delta.changed, delta.removed)
        if len(self._names) > MAX_NAMES:
            self._everything = True
            self._names.clear()
        self._news.set()

    def hear_of_placements(self) -> None:
        self._placements = True
        self._news.set()

    def hear_of_leaders(self) -> None:
        self._leaders = True
        self._news.set()

    def hear_of_policy(self) -> None:
        self._policy = True
        self._news.set()

    def hear_of_staleness(self, stale: bool) -> None:
        if stale is not self._stale:
            self._news.set()

    def wake(self) -> None:
        self._news.set()

    async def next(self) -> Update | None:
        """What changed, as soon as anything did and etcd has been seen; None once the audience is closed."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._audience.closed:
                return None
            if self._audience.ready() and (update := self._update()) is not None:
                return update

    def _update(self) -> Update | None:
        fleet, stale = self._audience.fleet, self._audience.stale()
        names = set(fleet.members) if self._everything else self._names
        present = {who: fleet.members[who] for who in names if who in fleet.members and self._sees(fleet.members[who])}
        removed = () if self._everything else tuple(sorted(who for who in names & self._told if who not in present))
        update = Update(
            self._everything,
            tuple(present[who] for who in sorted(present)),
            removed,
            stale,
            placements=tuple(self._audience.placements()) if self._placements else None,
            leaders=self._audience.leaders() if self._leaders else None,
            policy=self._audience.policy() if self._policy else None,
        )
        others = self._placements or self._leaders or update.policy is not None or stale is not self._stale
        nothing = not (self._everything or present or removed or others)
        self._told = set(present) if self._everything else (self._told | set(present)) - set(removed)
        self._names, self._everything, self._stale = set(), False, stale
        self._placements = self._leaders = self._policy = False
        return None if nothing else update

    def _sees(self, member: Member) -> bool:
        return self._region in ("", member.worker.region)


class Audience:
    """All of them."""

    def __init__(
        self,
        fleet: Fleet,
        placements: Callable[[], list[Placement]],
        *,
        stale: Callable[[], bool],
        ready: Callable[[], bool],
        leaders: Callable[[], tuple[Leader, ...]] = tuple,
        policy: Callable[[], RoutingPolicy | None] = lambda: None,
    ) -> None:
        self.fleet, self.placements, self.stale, self.ready = fleet, placements, stale, ready
        self.leaders, self.policy = leaders, policy
        self.closed = False
        self._watchers: set[Watcher] = set()

    def __len__(self) -> int:
        return len(self._watchers)

    @contextmanager
    def watching(self, region: Region) -> Iterator[Watcher]:
        """Watch a region's workers, or all (empty). Raises TooManyWatchers."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise TooManyWatchers(f"{MAX_WATCHERS} watch this scheduler's fleet already; ask another one", retry_after_s=5.0)
        watcher = Watcher(self, region)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def tell(self, delta: FleetDelta) -> None:
        """Workers changed."""
        if delta:
            for watcher in self._watchers:
                watcher.hear(delta)

    def tell_placements(self) -> None:
        """Wishes changed."""
        for watcher in self._watchers:
            watcher.hear_of_placements()

    def tell_leaders(self) -> None:
        """Other schedulers lead."""
        for watcher in self._watchers:
            watcher.hear_of_leaders()

    def tell_policy(self) -> None:
        """Requests are to be routed otherwise."""
        for watcher in self._watchers:
            watcher.hear_of_policy()

    def tell_staleness(self) -> None:
        """Whether etcd is seen may have changed."""
        stale = self.stale()
        for watcher in self._watchers:
            watcher.hear_of_staleness(stale)

    def wake(self) -> None:
        """There may be news for all."""
        for watcher in self._watchers:
            watcher.wake()

    def close(self) -> None:
        """End every watch."""
        self.closed = True
        self.wake()
