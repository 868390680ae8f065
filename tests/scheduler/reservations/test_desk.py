"""Which worker keeps a place, what happens where it does not, and that nothing stays kept that nobody heard of."""

from __future__ import annotations

import asyncio

import pytest

from placement.rules import Route, WorkerSelector
from runtime.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable
from runtime.ids import ModelVersion, WorkerId
from runtime.sealing import reservation_parts, verified_place
from scheduler.reservations.desk import WAIT_S
from scheduler.reservations.types import NobodyTakesSealed, NoPlace, WorkerUnknown
from tests.scheduler.mesh import LOADING, Mesh, model
from tests.scheduler.reservations.world import World, asked
from tests.support.manual_clock import ManualClock, settle


@pytest.fixture
def world(mesh: Mesh, clock: ManualClock) -> World:
    return World(mesh, clock)


async def test_a_place_comes_with_all_that_a_client_needs(world: World) -> None:
    world.show(a={})
    begun_s = world.clock.wall_s()
    kept = await world.desk.reserve(asked())
    assert (kept.worker.worker_id, kept.version, kept.worker.sealed_address) == (world.id("a"), "1", "a:7")
    assert kept.expires_wall_s == begun_s + 60
    worker_id, hold_id = reservation_parts(kept.reservation_id)
    assert world.workers.kept == {hold_id: worker_id}
    assert (world.workers.tenants, world.workers.digests) == (["acme"], [b"d" * 32])
    node = world.mesh.node("a")
    now_wall_s = node.certificate.begins_wall_s + 1_000
    place = verified_place(kept.record, node.authority_pem, worker_id=node.node_id, now_wall_s=now_wall_s)
    assert (place.address, place.x25519_public_key) == ("a:7", node.x25519_public_key)


async def test_places_spread_over_the_workers_though_nobody_reports_them(world: World) -> None:
    world.workers.places = 8
    world.show(a={}, b={}, c={})
    names = [world.worker_of((await world.desk.reserve(asked())).reservation_id) for _ in range(12)]
    assert {name: names.count(name) for name in "abc"} == {"a": 4, "b": 4, "c": 4}
    assert world.desk.kept == 12


async def test_what_was_given_back_or_ended_counts_no_more(world: World) -> None:
    world.workers.places = 2
    world.show(a={})
    first = await world.desk.reserve(asked(ttl_s=10.0))
    await world.desk.reserve(asked(ttl_s=600.0))
    await world.desk.release(first.reservation_id)
    assert world.desk.kept == 1
    assert world.workers.released == [reservation_parts(first.reservation_id)[1]]
    await world.clock.advance(601.0)
    assert world.desk.kept == 0
    assert world.outlook.state.load_of(world.outlook.view, world.id("a")).in_flight == 0


async def test_a_full_worker_is_passed_over_for_the_next(world: World) -> None:
    world.show(a={}, b={}, c={})
    other = World(world.mesh, world.clock, world.workers)  # another scheduler, which knows of none of the first one's
    other.show(a={}, b={}, c={})
    names = {world.worker_of((await world.desk.reserve(asked())).reservation_id) for _ in range(2)}
    names.add(world.worker_of((await other.desk.reserve(asked())).reservation_id))
    assert names == {"a", "b", "c"}
    third = World(world.mesh, world.clock, world.workers)
    third.show(a={}, b={}, c={})
    world.workers.asked.clear()
    with pytest.raises(NoPlace) as caught:
        await third.desk.reserve(asked())
    assert caught.value.retry_after_s == 0.1
    whom, waits = zip(*world.workers.asked, strict=True)
    assert len(set(whom[:3])) == 3
    assert whom[3] == whom[0]
    assert waits == (0.0, 0.0, 0.0, WAIT_S), "all were asked before one was asked to wait"


async def test_a_worker_out_of_reach_is_passed_over_and_told_to_let_go(world: World) -> None:
    world.show(a={}, b={})
    for name in "ab":
        world.workers.answers = {world.id(name): Unavailable("it is gone")}
        other = await world.desk.reserve(asked())
        assert world.worker_of(other.reservation_id) == ("b" if name == "a" else "a")
        await world.desk.release(other.reservation_id)
    world.workers.answers = {world.id(name): Unavailable("it is gone") for name in "ab"}
    world.workers.released.clear()
    with pytest.raises(Unavailable, match="it is gone"):
        await world.desk.reserve(asked())
    assert len(world.workers.released) == 2, "it may have kept the place and only its answer was lost"


async def test_what_no_other_worker_would_answer_differently_is_answered_at_once(world: World) -> None:
    world.show(a={}, b={})
    world.workers.answers = dict.fromkeys(map(world.id, "ab"), InvalidArgument("no such thing"))
    with pytest.raises(InvalidArgument):
        await world.desk.reserve(asked())
    assert len(world.workers.asked) == 1


async def test_a_caller_that_leaves_has_nothing_kept(world: World) -> None:
    world.show(a={})
    world.workers.late = True
    asking = asyncio.ensure_future(world.desk.reserve(asked()))
    await settle()
    assert len(world.workers.kept) == 1
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not world.workers.kept
    assert world.outlook.state.load_of(world.outlook.view, world.id("a")).in_flight == 0


async def test_only_workers_with_a_port_for_it_are_asked(world: World) -> None:
    world.show(a={"sealed_address": ""}, b={})
    assert world.worker_of((await world.desk.reserve(asked())).reservation_id) == "b"
    world.show(a={"sealed_address": ""})
    world.outlook.follow(world.fleet.drop(world.id("b")))
    with pytest.raises(NobodyTakesSealed, match="start some with --sealed-port"):
        await world.desk.reserve(asked())


async def test_a_scheduler_that_has_not_seen_etcd_says_so_and_not_that_there_is_nobody(world: World) -> None:
    with pytest.raises(Unavailable, match="has not reached etcd yet"):
        await world.desk.reserve(asked())


async def test_why_there_is_none(world: World) -> None:
    world.show()
    with pytest.raises(NotFound, match="no worker holds a copy of model 'digits'"):
        await world.desk.reserve(asked())
    world.show(a={})
    with pytest.raises(NotFound, match="version 9"):
        await world.desk.reserve(asked(version=ModelVersion("9")))
    world.route = Route(deny=(WorkerSelector(),))
    with pytest.raises(PermissionDenied):
        await world.desk.reserve(asked())
    assert world.desk.refused == 3


async def test_a_model_that_is_being_loaded_is_to_be_asked_for_again(world: World) -> None:
    world.show(a={"models": [model(LOADING)]})
    with pytest.raises(Unavailable, match="LOADING") as caught:
        await world.desk.reserve(asked())
    assert caught.value.retry_after_s == 1.0


async def test_any_scheduler_can_give_a_place_back(world: World, mesh: Mesh, clock: ManualClock) -> None:
    world.show(a={})
    kept = await world.desk.reserve(asked())
    other = World(mesh, clock, world.workers)
    other.show(a={})
    await other.desk.release(kept.reservation_id)
    assert not world.workers.kept
    for _ in range(2):
        await other.desk.release(kept.reservation_id)  # the same where there is none
    gone = kept.reservation_id.replace(world.id("a"), "f" * 20)
    await other.desk.release(gone)
    with pytest.raises(InvalidArgument, match="names no reservation"):
        await other.desk.release("nothing")


async def test_a_worker_is_told_to_drain(world: World) -> None:
    world.show(a={})
    await world.desk.drain(world.id("a"), 5.0)
    assert world.workers.drained == [(world.id("a"), 5.0)]
    with pytest.raises(WorkerUnknown, match="no worker 'nobody' is in the fleet"):
        await world.desk.drain(WorkerId("nobody"), 5.0)
