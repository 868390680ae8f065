"""Which regions this scheduler leads, and who leads the others.

A scheduler stands in one group: of the regions that it was given, or of the whole mesh. A group's leader claims each of its
regions, and leads those that it has; the mesh's leader leads what nobody names. Both prove it with each write: the claim is
theirs, or there is none. So a region that gets a group of its own, or loses it, is never written by two.

Alias moves span regions: the mesh's leader carries them through; where no scheduler stands for the mesh, the leader of the
first group by name does.

Decides who leads. Never decides what a leader does; never remembers that it led: who acts asks again.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import structlog

from runtime.candidates import Term, claim_key
from runtime.clock import Clock
from runtime.election import Election
from runtime.errors import NotLeader
from runtime.ids import NodeId, Region
from runtime.keyvalue import Compare, KeyValueStore, absent, created_at
from scheduler.leading.codec import leader_bytes, leader_of
from scheduler.leading.types import LIMITS, MESH, Group, Leader, regions_named

_log = structlog.get_logger("penstock.leading")


class Leadership:
    """Of one scheduler."""

    def __init__(
        self,
        store: KeyValueStore,
        clock: Clock,
        rng: random.Random,
        group: Group,
        scheduler_id: NodeId,
        *,
        ttl_s: int = 5,
    ) -> None:
        self._group, self._scheduler_id = group, scheduler_id
        self._election = Election(store, clock, rng, group.name, group.regions, ttl_s=ttl_s)
        self._election.on_change.append(self._hear)
        self._told: tuple[tuple[Leader, ...], Term | None] = ((), None)
        self.elections = 0
        """How often this scheduler became a leader."""
        self.on_change: list[Callable[[], None]] = []
        """Called when leaders, or what this scheduler leads, became others."""

    @asynccontextmanager
    async def running(self, address: str) -> AsyncIterator[None]:
        """Stand, reachable at this host:port, while the context lasts; leaving resigns."""
        value = leader_bytes(Leader(self._scheduler_id, address, self._group.regions, 0))
        async with self._election.watching(), self._election.standing(value, is_former=self._is_own):
            yield

    def leads(self, region: Region) -> Sequence[Compare] | None:
        """The conditions on which this scheduler may write for the region; None: it does not lead it."""
        term = self._election.term()
        if term is None:
            return None
        claim = self._election.candidates.at(claim_key(region))
        if self._group.regions:
            has_it = claim is not None and claim.value == term.key.encode()
            return (*term.fence(), created_at(claim.key, claim.create_revision)) if claim is not None and has_it else None
        if claim is not None or any(region in regions_named(group) for group in self._election.candidates.leaders()):
            return None
        return (*term.fence(), absent(claim_key(region)))

    def leads_moves(self) -> Sequence[Compare] | None:
        """The conditions on which this scheduler carries alias moves through; None: another one does."""
        term = self._election.term()
        if term is None:
            return None
        groups = self._election.candidates.leaders().keys() - {LIMITS}
        mover = MESH if MESH in groups else min(groups, default=MESH)
        return term.fence() if mover == self._group.name else None

    def require(self, region: Region) -> None:
        """Raises NotLeader where this scheduler does not lead the region."""
        if self.leads(region) is None:
            leader = self.leader_of(region)
            by = f"{leader.scheduler_id} at {leader.address} does" if leader is not None else "nobody does for the moment"
            raise NotLeader(f"this scheduler does not lead region {region!r}; {by}", retry_after_s=0.5)

    def leaders(self) -> tuple[Leader, ...]:
        """Of all groups, by name; a leader that has none of its regions yet is left out."""
        candidates, found = self._election.candidates, []
        held = {(item.value, name) for name, item in candidates.claims().items()}
        for group, candidate in sorted(candidates.leaders().items()):
            regions = [region for region in regions_named(group) if (candidate.key.encode(), region) in held]
            leader = leader_of(candidate.value, regions, candidate.create_revision)
            if leader is not None and (regions or group == MESH):
                found.append(leader)
        return tuple(found)

    def led(self) -> tuple[str, ...]:
        """Names of the regions that this scheduler leads now; `*`: those that nobody names."""
        if not self._group.regions:
            return ("*",) if self._election.term() is not None else ()
        return tuple(region for region in self._group.regions if self.leads(region) is not None)

    def leader_of(self, region: Region) -> Leader | None:
        """As far as is known here."""
        leaders = self.leaders()
        named = [leader for leader in leaders if region in leader.regions]
        return next(iter(named or [leader for leader in leaders if not leader.regions]), None)

    def _is_own(self, value: bytes) -> bool:
        leader = leader_of(value, (), 0)
        return leader is not None and leader.scheduler_id == self._scheduler_id

    def _hear(self) -> None:
        before, now = self._told, (self.leaders(), self._election.term())
        if now == before:
            return
        self._told = now
        if now[1] != before[1]:
            self.elections += now[1] is not None
            _log.info("leads" if now[1] is not None else "leads_no_more", group=self._group.name, term=(now[1] or before[1]))
        for changed in self.on_change:
            changed()
