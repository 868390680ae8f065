"""Pending alias moves, carried through by a scheduler over a store in memory and a clock that stands still."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from penstock.worker.v1 import worker_pb2

from placement.copies.wishes import AssignedModel
from runtime.errors import Aborted, PenstockError, Unavailable, VersionWithdrawn
from runtime.ids import DEFAULT_TENANT, Digest, ModelName, ModelVersion, NodeId, assignment_key, placement_key
from runtime.memory_store import MemoryStore
from runtime.notices import AliasTarget, ModelNotice, NoticeBoard, PendingTarget
from scheduler.codec import assignment_bytes, placement_from
from scheduler.loop import Scheduler
from scheduler.placements import Placements
from scheduler.presence import Doubt
from scheduler.switches import ECHO_S, Switches
from tests.scheduler.mesh import FAILED, HERE, LOADING, READY, Mesh, assigned, memory_scheduler, wish
from tests.support.manual_clock import ManualClock, settle

DIGITS = ModelName("digits")
OLD, NEW = Digest("1" * 64), Digest("2" * 64)


@dataclass
class Settled:
    """The registry's side: what it was told, and what it answers."""

    told: list[tuple[str, int, str]] = field(default_factory=list)
    answers: list[PenstockError] = field(default_factory=list)

    async def settle_alias(self, model: ModelName, alias: str, generation: int, abandoned_because: str = "") -> None:
        self.told.append((alias, generation, abandoned_because))
        if self.answers:
            raise self.answers.pop(0)


@dataclass
class World:
    mesh: Mesh
    clock: ManualClock
    store: MemoryStore
    scheduler: Scheduler
    placements: Placements
    switches: Switches
    registry: Settled

    @property
    def board(self) -> NoticeBoard:
        return self.scheduler.board

    def pending(self, *, generation: int = 5, to: Digest = NEW, withdrawn: frozenset[Digest] = frozenset()) -> None:
        """The registry tells that `stable` is to move from version 1 to 2."""
        coming = PendingTarget(ModelVersion("2"), to, 0, int(self.clock.wall_s() * 1000))
        alias = AliasTarget("stable", ModelVersion("1"), OLD, 0, generation, coming)
        self.board.hear_model(
            ModelNotice(DIGITS, DEFAULT_TENANT, frozenset(), (alias,), withdrawn=withdrawn, generation=generation)
        )

    def moved(self, *, generation: int = 6) -> None:
        alias = AliasTarget("stable", ModelVersion("2"), NEW, 0, generation)
        self.board.hear_model(ModelNotice(DIGITS, DEFAULT_TENANT, frozenset(), (alias,), generation=generation))

    async def hold(self, name: str, **versions: worker_pb2.ModelState.ValueType) -> None:
        """The worker says that it holds these: `v1=READY`."""
        digests = {"v1": OLD, "v2": NEW}
        copies = [
            worker_pb2.ModelCopy(
                model=DIGITS, version=version[1:], digest=digests[version], state=state, task="tensor", reason="no memory"
            )
            for version, state in versions.items()
        ]
        await self.mesh.announce(self.store, name, *copies)
        await self.clock.advance(1.0)

    async def limits(self, version: str) -> tuple[int, int] | None:
        """The least and the most copies that are wished for."""
        item = await self.store.get(placement_key(HERE, DIGITS, ModelVersion(version)))
        found = None if item is None else placement_from(item.value)
        return None if found is None else (found.copies, found.max_copies)

    async def wished(self, version: str) -> tuple[int, int] | None:
        item = await self.store.get(placement_key(HERE, DIGITS, ModelVersion(version)))
        found = None if item is None else placement_from(item.value)
        return None if found is None else (found.copies, found.generation)


@asynccontextmanager
async def opened_world(mesh: Mesh, clock: ManualClock) -> AsyncIterator[World]:
    async with memory_scheduler(mesh) as (store, scheduler):
        placements = Placements(store, scheduler.control, HERE, scheduler.board)
        registry = Settled()
        switches = Switches(scheduler, placements, registry, clock, Random(3), limit_s=60.0)
        await placements.place(wish(2, version="1", digest=OLD))
        async with switches.running():
            await clock.advance(1.0)
            yield World(mesh, clock, store, scheduler, placements, switches, registry)


@pytest.fixture
async def world(mesh: Mesh, clock: ManualClock) -> AsyncIterator[World]:
    async with opened_world(mesh, clock) as made:
        yield made


async def test_a_target_is_wished_for_warmed_and_switched_to(world: World) -> None:
    await world.hold("a", v1=READY)
    await world.hold("b", v1=READY)
    world.pending()
    await world.clock.advance(1.0)
    assert await world.wished("2") == (2, 1)
    await world.hold("a", v1=READY, v2=READY)
    await world.hold("b", v1=READY, v2=LOADING)
    assert (world.registry.told, len(world.switches)) == ([], 1)
    await world.hold("b", v1=READY, v2=READY)
    assert world.registry.told == [("stable", 5, "")]
    world.moved()
    await world.clock.advance(30.0)
    assert (world.registry.told, len(world.switches)) == ([("stable", 5, "")], 0)
    assert await world.wished("2") == (2, 1), "wished for once"
    assert await world.wished("1") == (2, 1), "and the old one stays, for a way back"


async def test_a_move_that_was_there_before_is_found(mesh: Mesh, clock: ManualClock) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        placements, registry = Placements(store, scheduler.control, HERE), Settled()
        coming = PendingTarget(ModelVersion("2"), NEW, 0, 0)
        alias = AliasTarget("stable", ModelVersion(""), Digest(""), 0, 1, coming)
        scheduler.board.hear_model(ModelNotice(DIGITS, DEFAULT_TENANT, frozenset(), (alias,), generation=1))
        async with Switches(scheduler, placements, registry, clock, Random(3)).running():
            await clock.advance(1.0)
    assert registry.told == [("stable", 1, "")], "nothing carries, so nothing is to be warmed"


async def test_a_registry_that_is_away_is_asked_again_ever_later(world: World) -> None:
    await world.hold("a", v1=READY, v2=READY)
    world.registry.answers = [Unavailable("the registry is away")] * 3
    world.pending()
    await world.clock.advance(0.5)
    assert 1 <= len(world.registry.told) <= 2
    await world.clock.advance(10.0)
    assert world.registry.told[:4] == [("stable", 5, "")] * 4


async def test_a_move_that_another_one_replaced_is_left_to_the_next_notice(world: World) -> None:
    await world.hold("a", v1=READY, v2=READY)
    world.registry.answers = [Aborted("the alias was changed since")]
    world.pending(generation=5)
    await world.clock.advance(0.3)
    assert world.registry.told == [("stable", 5, "")]
    world.pending(generation=7)
    await world.clock.advance(1.0)
    assert world.registry.told[1:] == [("stable", 7, "")]


async def test_a_switch_that_nobody_hears_of_is_told_again(world: World) -> None:
    await world.hold("a", v1=READY, v2=READY)
    world.pending()
    await world.clock.advance(1.0)
    assert len(world.registry.told) == 1
    await world.clock.advance(ECHO_S)
    assert len(world.registry.told) == 2


async def test_what_no_worker_can_load_is_given_up_and_leaves_no_wish_behind(world: World) -> None:
    await world.hold("a", v1=READY)
    world.pending()
    await world.clock.advance(1.0)
    assert await assigned(world.store, world.mesh, "a") == [("digits", 1), ("digits", 1)]
    await world.hold("a", v1=READY, v2=FAILED)
    [(alias, generation, why)] = world.registry.told
    assert (alias, generation) == ("stable", 5)
    assert "no memory" in why
    assert await world.wished("2") == (0, 2)


async def test_a_wish_that_somebody_changed_meanwhile_stays_theirs(world: World) -> None:
    await world.hold("a", v1=READY)
    world.pending()
    await world.clock.advance(1.0)
    await world.placements.place(wish(4, version="2", digest=NEW))
    await world.hold("a", v1=READY, v2=LOADING)
    await world.clock.advance(61.0)
    assert len(world.registry.told) >= 1
    assert await world.wished("2") == (4, 2)


async def test_a_failure_from_before_the_move_is_tried_anew(world: World) -> None:
    await world.placements.place(wish(2, version="2", digest=NEW))
    await world.hold("a", v1=READY)
    await world.hold("a", v1=READY, v2=FAILED)
    world.pending()
    await world.clock.advance(1.0)
    assert await world.wished("2") == (2, 2)
    assert world.registry.told == []
    await world.hold("a", v1=READY, v2=READY)
    assert world.registry.told == [("stable", 5, "")]


async def test_what_takes_too_long_is_given_up(world: World) -> None:
    await world.hold("a", v1=READY)
    world.pending()
    await world.hold("a", v1=READY, v2=LOADING)
    await world.clock.advance(50.0)
    assert world.registry.told == []
    await world.clock.advance(15.0)
    assert re.search(r"was not warm after 6[01] s", world.registry.told[0][2])


async def test_nothing_is_decided_while_etcd_is_away(world: World) -> None:
    await world.hold("a", v1=READY)
    world.pending()
    await world.clock.advance(1.0)
    world.store.go_away()
    await world.clock.advance(70.0)
    assert world.registry.told == []


async def test_one_move_that_breaks_holds_up_no_other(world: World) -> None:
    await world.hold("a", v1=READY, v2=READY)

    async def broken(model: ModelName, alias: str, generation: int, abandoned_because: str = "") -> None:
        if alias == "stable":
            raise ValueError("a bug")
        world.registry.told.append((alias, generation, abandoned_because))

    world.registry.settle_alias = broken  # type: ignore[method-assign]
    coming = PendingTarget(ModelVersion("2"), NEW, 0, 0)
    aliases = tuple(AliasTarget(name, ModelVersion("1"), OLD, 0, 5, coming) for name in ("stable", "canary"))
    world.board.hear_model(ModelNotice(DIGITS, DEFAULT_TENANT, frozenset(), aliases, generation=5))
    await world.clock.advance(1.0)
    assert world.registry.told == [("canary", 5, "")]


async def test_a_withdrawn_version_is_assigned_to_nobody_and_cannot_be_placed(world: World) -> None:
    await world.hold("a", v1=READY)
    assert await assigned(world.store, world.mesh, "a") == [("digits", 1)]
    world.board.hear_model(ModelNotice(DIGITS, DEFAULT_TENANT, frozenset(), withdrawn=frozenset({OLD}), generation=9))
    await world.clock.advance(0.1)
    assert await assigned(world.store, world.mesh, "a") == []
    with pytest.raises(VersionWithdrawn, match="withdrawn"):
        await world.placements.place(wish(1, version="1", digest=OLD))
    assert (await world.placements.place(wish(0, version="1", digest=OLD))).copies == 0, "to take it back is fine"


async def test_a_move_to_a_withdrawn_version_is_none(world: World) -> None:
    await world.hold("a", v1=READY, v2=READY)
    world.pending(withdrawn=frozenset({NEW}))
    await world.clock.advance(5.0)
    assert (world.registry.told, len(world.switches)) == ([], 0)


async def test_a_revoked_worker_leaves_at_once_and_is_believed_no_more(world: World) -> None:
    await world.hold("a", v1=READY)
    who = world.mesh.worker_id("a")
    world.board.hear_node(NodeId(who))
    assert who not in world.scheduler.fleet.members
    await world.hold("a", v1=READY)
    await settle()
    assert who not in world.scheduler.fleet.members
    assert world.scheduler.fleet.refused[Doubt.NOT_AUTHENTIC] >= 1


async def test_what_demand_made_of_the_old_version_is_asked_of_the_new_one_until_it_has_moved(world: World) -> None:
    await world.placements.place(replace(wish(1, version="1", digest=OLD), max_copies=8))
    for name in ("a", "b", "c"):
        await world.hold(name)
    # As if demand had made it two: the assignments are what tells.
    told = assignment_bytes([AssignedModel(DIGITS, ModelVersion("1"), OLD, 2)])
    world.scheduler.reconciler._leads = lambda _: None
    for name in ("a", "b"):
        await world.store.put(assignment_key(HERE, world.mesh.worker_id(name)), told)
        await world.hold(name, v1=READY)
    world.pending()
    await world.clock.advance(1.0)
    assert await world.limits("2") == (2, 8)
    await world.hold("a", v1=READY, v2=READY)
    await world.hold("b", v1=READY, v2=READY)
    assert world.registry.told == [("stable", 5, "")]
    assert await world.limits("2") == (1, 8), "from now on demand decides"


async def test_a_version_that_is_placed_on_demand_moves_at_once_and_stays_so(world: World) -> None:
    await world.placements.place(replace(wish(0, version="1", digest=OLD), max_copies=8, tier="A"))
    world.pending()
    await world.clock.advance(2.0)
    assert world.registry.told == [("stable", 5, "")]
    assert await world.limits("2") == (0, 8)


async def test_a_move_that_is_given_up_leaves_nothing_on_demand_either(world: World) -> None:
    await world.placements.place(replace(wish(1, version="1", digest=OLD), max_copies=8))
    await world.hold("a", v1=READY)
    world.pending()
    await world.clock.advance(1.0)
    await world.hold("a", v1=READY, v2=FAILED)
    assert "no memory" in world.registry.told[0][2]
    assert await world.limits("2") == (0, 0)
