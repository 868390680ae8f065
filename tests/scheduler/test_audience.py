"""What watchers are told, and that the slow cost no memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from placement.copies.assign import Placement
from placement.rules import RoutingPolicy
from runtime.ids import NodeId, Region, WorkerId
from runtime.keyvalue import Delete, Put
from scheduler import audience as audience_module
from scheduler.audience import Audience, TooManyWatchers, Update, Watcher
from scheduler.fleet import Fleet
from scheduler.leading.types import Leader
from tests.scheduler.mesh import HERE, LOADING, Mesh, model, wish


@dataclass
class Stage:
    """An audience before a fleet that the test changes."""

    mesh: Mesh
    wishes: list[Placement] = field(default_factory=list)
    stale: bool = False

    def __post_init__(self) -> None:
        self.fleet = Fleet(self.mesh.reader())
        self.audience = Audience(self.fleet, lambda: self.wishes, stale=lambda: self.stale, ready=lambda: self.fleet.synced)
        self.fleet.replace([], now_s=0.0, now_wall_s=self.mesh.clock.wall_s())

    def put(self, name: str, *copies: object) -> None:
        item = self.mesh.item(name, *copies)  # type: ignore[arg-type]
        self.audience.tell(self.fleet.apply([Put(item)], now_s=0.0, now_wall_s=self.mesh.clock.wall_s()))

    def drop(self, name: str) -> None:
        self.audience.tell(self.fleet.apply([Delete(self.mesh.key(name), 1)], now_s=0.0, now_wall_s=self.mesh.clock.wall_s()))


@pytest.fixture
def stage(mesh: Mesh) -> Stage:
    return Stage(mesh)


async def told(watcher: Watcher) -> Update:
    async with asyncio.timeout(5):
        update = await watcher.next()
    assert update is not None
    return update


async def silent(watcher: Watcher) -> bool:
    try:
        async with asyncio.timeout(0.05):
            await watcher.next()
    except TimeoutError:
        return True
    return False


async def test_first_everything_then_changes(stage: Stage) -> None:
    a = stage.mesh.worker_id("a")
    stage.put("a", model())
    stage.wishes = [wish(1)]
    with stage.audience.watching(Region("")) as watcher:
        first = await told(watcher)
        assert (first.snapshot, [each.worker_id for each in first.members]) == (True, [a])
        assert first.placements == (wish(1),)
        assert await silent(watcher)
        stage.put("a", model())
        assert await silent(watcher), "a heartbeat is no news"
        stage.put("a", model(LOADING))
        second = await told(watcher)
        assert (second.snapshot, [each.worker_id for each in second.members], second.placements) == (False, [a], None)
        stage.drop("a")
        assert (await told(watcher)).removed == (a,)
        stage.stale = True
        stage.audience.tell_staleness()
        assert (await told(watcher)).stale
        stage.audience.tell_staleness()
        assert await silent(watcher), "it knows"


async def test_nothing_is_said_before_etcd_was_seen(stage: Stage) -> None:
    stage.fleet.synced = False
    with stage.audience.watching(Region("")) as watcher:
        assert await silent(watcher)
        stage.fleet.synced = True
        stage.audience.wake()
        assert (await told(watcher)).snapshot


async def test_the_slow_hear_how_it_is_now(stage: Stage) -> None:
    with stage.audience.watching(Region("")) as watcher:
        await told(watcher)
        for _ in range(10):
            stage.put("a", model(LOADING))
            stage.put("b", model(LOADING))
            stage.put("a", model())
            stage.drop("b")
        update = await told(watcher)
        assert [each.worker_id for each in update.members] == [stage.mesh.worker_id("a")]
        assert update.removed == (), "it never knew of b"
        assert await silent(watcher)


async def test_far_behind_is_told_everything(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audience_module, "MAX_NAMES", 2)
    with stage.audience.watching(Region("")) as watcher:
        await told(watcher)
        for name in "abc":
            stage.put(name, model())
        update = await told(watcher)
        assert update.snapshot
        assert len(update.members) == 3


async def test_a_region_is_all_that_its_watcher_sees(stage: Stage) -> None:
    with stage.audience.watching(Region("there")) as there, stage.audience.watching(HERE) as here:
        await told(there)
        await told(here)
        stage.put("a", model())
        assert await silent(there)
        assert len((await told(here)).members) == 1


async def test_watchers_are_bounded_and_leave(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audience_module, "MAX_WATCHERS", 1)
    with stage.audience.watching(HERE), pytest.raises(TooManyWatchers), stage.audience.watching(HERE):
        pass
    assert len(stage.audience) == 0


async def test_closing_ends_every_watch(stage: Stage) -> None:
    with stage.audience.watching(HERE) as watcher:
        await told(watcher)
        stage.audience.close()
        assert await watcher.next() is None
    assert WorkerId("x") not in stage.fleet.members


async def test_leaders_and_the_policy_are_told_at_first_and_when_they_change(stage: Stage) -> None:
    leaders = [Leader(NodeId("one"), "one:1", (), 7)]
    policies = [RoutingPolicy(generation=1)]
    stage.audience.leaders, stage.audience.policy = lambda: tuple(leaders), lambda: policies[0]
    with stage.audience.watching(HERE) as watcher:
        first = await told(watcher)
        assert (first.leaders, first.policy) == (tuple(leaders), policies[0])
        stage.put("a", model())
        second = await told(watcher)
        assert (second.leaders, second.policy) == (None, None), "as they were"
        leaders[0] = Leader(NodeId("two"), "two:1", (), 9)
        stage.audience.tell_leaders()
        assert (await told(watcher)).leaders == tuple(leaders)
        policies[0] = RoutingPolicy(generation=2)
        stage.audience.tell_policy()
        assert (await told(watcher)).policy == policies[0]
        assert await silent(watcher)
