"""Who is in the fleet after what etcd showed."""

from __future__ import annotations

from runtime.ids import Region
from runtime.keyvalue import Delete, Event, KeyValue, Put
from scheduler.fleet import GRACE_S, Fleet
from scheduler.presence import Doubt
from scheduler.types import FleetDelta
from tests.scheduler.mesh import LOADING, Mesh, model


def fleet_of(mesh: Mesh, *names: str) -> Fleet:
    fleet = Fleet(mesh.reader())
    fleet.replace([mesh.item(name, model()) for name in names], now_s=0.0, now_wall_s=mesh.clock.wall_s())
    return fleet


def put(fleet: Fleet, mesh: Mesh, name: str, *copies: object) -> FleetDelta:
    return fleet.apply([Put(mesh.item(name, *copies))], now_s=0.0, now_wall_s=mesh.clock.wall_s())  # type: ignore[arg-type]


def test_heartbeats_are_no_news_but_states_are(mesh: Mesh) -> None:
    fleet, a = fleet_of(mesh, "a"), mesh.worker_id("a")
    before = fleet.members[a].worker.sequence
    assert not put(fleet, mesh, "a", model())
    assert fleet.members[a].worker.sequence > before
    assert put(fleet, mesh, "a", model(LOADING)) == FleetDelta(changed=(a,))


def test_an_ended_lease_removes_at_once_and_only_the_key_it_held(mesh: Mesh) -> None:
    fleet, a = fleet_of(mesh, "a", "b"), mesh.worker_id("a")
    elsewhere = Delete(mesh.key("a").replace("/here/", "/there/"), 5)
    assert not fleet.apply([elsewhere], now_s=0.0, now_wall_s=mesh.clock.wall_s())
    assert fleet.apply([Delete(mesh.key("a"), 5)], now_s=0.0, now_wall_s=mesh.clock.wall_s()) == FleetDelta(removed=(a,))
    assert set(fleet.members) == {mesh.worker_id("b")}


def test_gone_and_back_within_one_batch_is_there(mesh: Mesh) -> None:
    fleet, a = fleet_of(mesh, "a"), mesh.worker_id("a")
    delta = fleet.apply([Delete(mesh.key("a"), 5), Put(mesh.item("a", model()))], now_s=0.0, now_wall_s=mesh.clock.wall_s())
    assert delta == FleetDelta(changed=(a,))


def test_who_a_snapshot_lacks_stays_for_one_lease(mesh: Mesh) -> None:
    fleet, a, b = fleet_of(mesh, "a", "b"), mesh.worker_id("a"), mesh.worker_id("b")
    assert not fleet.replace([], now_s=100.0, now_wall_s=mesh.clock.wall_s())
    assert not fleet.expire(100.0 + GRACE_S - 1)
    put(fleet, mesh, "a", model())
    fleet.hold(110.0)
    assert not fleet.expire(110.0 + GRACE_S - 1), "while etcd is away nobody's time runs"
    assert fleet.expire(110.0 + GRACE_S) == FleetDelta(removed=(b,))
    assert set(fleet.members) == {a}


def test_the_doubtful_are_counted_and_do_not_replace_the_believed(mesh: Mesh) -> None:
    fleet, a = fleet_of(mesh, "a"), mesh.worker_id("a")
    for _ in range(3):
        item = mesh.item("b", model())
        forged = type(item)(mesh.key("a"), item.value, 1, 1, 1)
        assert not fleet.apply([Put(forged)], now_s=0.0, now_wall_s=mesh.clock.wall_s())
    assert fleet.refused == {Doubt.MISPLACED: 3}
    assert fleet.members[a].worker.copies


def test_who_is_not_believed_any_more_leaves_after_one_lease_unless_it_is_again(mesh: Mesh) -> None:
    fleet, a = fleet_of(mesh, "a"), mesh.worker_id("a")

    def hear(*, aged_s: float, now_s: float) -> FleetDelta:
        return fleet.apply([Put(mesh.item("a", model(), aged_s=aged_s))], now_s=now_s, now_wall_s=mesh.clock.wall_s())

    for now_s in (10.0, 15.0, 20.0):  # its clock went wrong; its lease does not end of that
        hear(aged_s=-3600.0, now_s=now_s)
        assert not fleet.expire(now_s)
    hear(aged_s=0.0, now_s=22.0)
    assert not fleet.expire(10.0 + GRACE_S)
    hear(aged_s=3600.0, now_s=30.0)
    assert fleet.expire(30.0 + GRACE_S) == FleetDelta(removed=(a,))
    assert fleet.refused == {Doubt.SKEWED: 4}


def test_an_older_backup_brings_nobody_back_and_sends_nobody_away(mesh: Mesh) -> None:
    before = [mesh.item(name, model()) for name in ("a", "b")]
    fleet = fleet_of(mesh, "a")
    put(fleet, mesh, "a", model(LOADING))
    gone = mesh.item("b", model())
    fleet.apply([Put(gone)], now_s=0.0, now_wall_s=mesh.clock.wall_s())
    fleet.apply([Delete(gone.key, 9)], now_s=0.0, now_wall_s=mesh.clock.wall_s())
    assert not fleet.replace(before, now_s=5.0, now_wall_s=mesh.clock.wall_s())
    assert set(fleet.members) == {mesh.worker_id("a")}
    assert [copy.state.value for copy in fleet.members[mesh.worker_id("a")].worker.copies] == ["LOADING"]
    put(fleet, mesh, "a", model(LOADING))
    assert not fleet.expire(5.0 + GRACE_S), "it registered again in time"


def test_a_worker_that_moved_is_not_taken_away_by_its_old_key(mesh: Mesh) -> None:
    there = Region("there")
    fleet, a = fleet_of(mesh, "a"), mesh.worker_id("a")
    moved = KeyValue(mesh.key("a", there), mesh.signed("a", mesh.presence("a", model(), region=there)), 2, 2, 1)
    events: list[Event] = [Put(moved), Delete(mesh.key("a"), 3)]
    assert fleet.apply(events, now_s=0.0, now_wall_s=mesh.clock.wall_s()) == FleetDelta(changed=(a,))
    assert fleet.members[a].worker.region == there
    both = [mesh.item("b", model()), moved]
    assert not fleet.replace(both, now_s=0.0, now_wall_s=mesh.clock.wall_s()).removed
    assert fleet.members[a].worker.region == there
