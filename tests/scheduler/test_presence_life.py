"""Workers come, fall silent, begin anew and come twice: leases in a store in memory, on a clock that stands still."""

from __future__ import annotations

from runtime.memory_store import MemoryStore
from scheduler.fleet import GRACE_S
from scheduler.loop import Scheduler
from scheduler.presence import Doubt
from tests.scheduler.mesh import HERE, Mesh, memory_scheduler, model
from tests.support.manual_clock import ManualClock

TTL_S = 15
HEARTBEAT_S = 5.0


class Worker:
    """One process of a worker: a lease of its own, and records under it."""

    def __init__(self, mesh: Mesh, store: MemoryStore, name: str, lease_id: int) -> None:
        self._mesh, self._store, self._name, self._lease_id = mesh, store, name, lease_id

    @classmethod
    async def begun(cls, mesh: Mesh, store: MemoryStore, name: str) -> Worker:
        worker = cls(mesh, store, name, (await store.grant_lease(TTL_S)).lease_id)
        await worker.beat()
        return worker

    async def beat(self, *, aged_s: float = 0.0) -> None:
        await self._store.renew_lease(self._lease_id)
        record = self._mesh.signed(self._name, self._mesh.presence(self._name, model(), aged_s=aged_s))
        await self._store.put(self._mesh.key(self._name), record, lease_id=self._lease_id)


def there(mesh: Mesh, scheduler: Scheduler, name: str) -> bool:
    return mesh.worker_id(name) in scheduler.fleet.members


async def test_a_silent_worker_is_no_ghost_for_longer_than_its_lease(mesh: Mesh, clock: ManualClock) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        await Worker.begun(mesh, store, "a")
        await clock.advance(TTL_S - 0.1)
        assert there(mesh, scheduler, "a")
        await clock.advance(0.2)
        assert not there(mesh, scheduler, "a")


async def test_a_worker_started_again_is_the_same_one_and_outlives_its_former_lease(mesh: Mesh, clock: ManualClock) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        await Worker.begun(mesh, store, "a")
        await clock.advance(3.0)
        again = await Worker.begun(mesh, store, "a")
        for _ in range(6):
            await clock.advance(HEARTBEAT_S)
            assert there(mesh, scheduler, "a")
            await again.beat()
        assert len(scheduler.fleet.members) == 1
        assert scheduler.fleet.refused == {}


async def test_two_processes_with_one_identity_make_one_worker_that_stays(mesh: Mesh, clock: ManualClock) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        first, second = await Worker.begun(mesh, store, "a"), await Worker.begun(mesh, store, "a")
        for _ in range(8):
            await clock.advance(HEARTBEAT_S)
            before = scheduler.fleet.members[mesh.worker_id("a")].payload
            await first.beat()
            await clock.advance(0.1)
            assert scheduler.fleet.members[mesh.worker_id("a")].payload == before, "the older one changes nothing"
            await second.beat()
        await clock.advance(0.1)
        assert scheduler.fleet.refused == {Doubt.TWICE: 8}
        for _ in range(5):  # the younger one ends; the older one is all there is
            await first.beat()
            await clock.advance(HEARTBEAT_S)
        assert there(mesh, scheduler, "a")


async def test_a_clock_that_goes_wrong_ends_a_membership_and_one_put_right_begins_it_again(
    mesh: Mesh, clock: ManualClock
) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        worker = await Worker.begun(mesh, store, "a")
        for _ in range(int(GRACE_S / HEARTBEAT_S) + 1):
            await worker.beat(aged_s=600.0)
            await clock.advance(HEARTBEAT_S)
        assert not there(mesh, scheduler, "a")
        await worker.beat()
        await clock.advance(0.1)
        assert there(mesh, scheduler, "a")


async def test_a_forged_record_under_a_workers_key_takes_no_place_of_its_own(mesh: Mesh, clock: ManualClock) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        worker = await Worker.begun(mesh, store, "a")
        forged = mesh.signed("b", mesh.presence("a", model(), region=HERE))
        await store.put(mesh.key("a"), forged)
        await clock.advance(1.0)
        assert [each.worker.sequence for each in scheduler.fleet.members.values()] == [1]
        await worker.beat()
        await clock.advance(GRACE_S + 1.0)
        assert scheduler.fleet.refused == {Doubt.MISPLACED: 1}


async def test_etcd_that_came_back_without_its_data_gets_everybody_back_under_new_leases(
    mesh: Mesh, clock: ManualClock
) -> None:
    async with memory_scheduler(mesh) as (store, scheduler):
        await Worker.begun(mesh, store, "a")
        await Worker.begun(mesh, store, "b")
        await clock.advance(1.0)
        store.go_away()
        await clock.advance(300.0)
        store.come_back(empty=True)
        await clock.advance(5.0)
        assert len(scheduler.fleet.members) == 2, "for one lease longer they are believed to be about to register"
        await Worker.begun(mesh, store, "a")
        await clock.advance(GRACE_S - 4.0)
        assert set(scheduler.fleet.members) == {mesh.worker_id("a")}
