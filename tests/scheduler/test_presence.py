"""Which records are believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.identity import Role
from runtime.ids import Region
from runtime.keyvalue import KeyValue
from runtime.records import sign_record
from scheduler.presence import MAX_SKEW_S, Doubt, PresenceReader, PresenceRefused
from tests.scheduler.mesh import HERE, Mesh, model
from tests.support.manual_clock import ManualClock


def read(reader: PresenceReader, mesh: Mesh, value: bytes, key: str, *, live: bool = True) -> int:
    item = KeyValue(key, value, 1, 1, 1)
    return reader.read(item, now_wall_s=mesh.clock.wall_s(), live=live).worker.sequence


def doubt(reader: PresenceReader, mesh: Mesh, value: bytes, key: str, *, live: bool = True) -> Doubt:
    with pytest.raises(PresenceRefused) as caught:
        read(reader, mesh, value, key, live=live)
    return caught.value.doubt


def test_a_workers_own_fresh_record_is_believed(mesh: Mesh) -> None:
    item = mesh.item("a", model())
    member = mesh.reader().read(item, now_wall_s=mesh.clock.wall_s(), live=True)
    assert member.worker_id == mesh.worker_id("a")
    assert [copy.model for copy in member.worker.copies] == ["digits"]


def test_doubtful_records(mesh: Mesh, tmp_path: Path, clock: ManualClock) -> None:
    reader, key = mesh.reader(), mesh.key("a")
    good = mesh.presence("a", sequence=7)
    stranger = Mesh(tmp_path / "other mesh", clock)
    gateway = mesh.presence("g", sequence=1)
    gateway.worker_id = mesh.node("gateway", Role.GATEWAY).node_id
    signed = mesh.signed("a", good)
    cases = {
        "garbage": (b"\xff\xff garbage", key, Doubt.NOT_AUTHENTIC),
        "empty": (b"", key, Doubt.NOT_AUTHENTIC),
        "another mesh": (stranger.signed("a", stranger.presence("a")), key, Doubt.NOT_AUTHENTIC),
        "altered": (signed.replace(b"127.0.0.1", b"127.0.0.2"), key, Doubt.NOT_AUTHENTIC),
        "not a presence": (sign_record(mesh.node("a"), b"\xff\xff\xff"), key, Doubt.MALFORMED),
        "no worker": (mesh.signed("gateway", gateway, role=Role.GATEWAY), key, Doubt.NOT_A_WORKER),
        "of somebody else": (mesh.signed("b", good), key, Doubt.MISPLACED),
        "under another's key": (signed, mesh.key("b"), Doubt.MISPLACED),
        "in another region": (signed, mesh.key("a", Region("there")), Doubt.MISPLACED),
        "old": (mesh.signed("a", mesh.presence("a", sequence=8, aged_s=MAX_SKEW_S + 1)), key, Doubt.SKEWED),
        "of the future": (mesh.signed("a", mesh.presence("a", sequence=8, aged_s=-MAX_SKEW_S - 1)), key, Doubt.SKEWED),
    }
    for name, (value, where, expected) in cases.items():
        assert doubt(reader, mesh, value, where) is expected, name
    assert read(reader, mesh, signed, key) == 7, "the doubtful ones have not spoilt the good one"


def test_numbers_must_grow_but_the_very_last_record_may_be_written_again(mesh: Mesh) -> None:
    reader, key = mesh.reader(), mesh.key("a")
    first, second = (mesh.signed("a", mesh.presence("a", sequence=number)) for number in (1, 2))
    other_second = mesh.signed("a", mesh.presence("a", model(), sequence=2))
    assert [read(reader, mesh, value, key) for value in (first, second, second)] == [1, 2, 2]
    assert doubt(reader, mesh, first, key) is Doubt.REPLAYED
    assert doubt(reader, mesh, first, key, live=False) is Doubt.REPLAYED
    assert doubt(reader, mesh, other_second, key) is Doubt.REPLAYED


def test_a_snapshot_may_hold_old_records_but_none_of_the_future(mesh: Mesh) -> None:
    old = mesh.signed("a", mesh.presence("a", aged_s=600.0))
    future = mesh.signed("b", mesh.presence("b", aged_s=-600.0))
    assert read(mesh.reader(), mesh, old, mesh.key("a"), live=False) == 1
    assert doubt(mesh.reader(), mesh, future, mesh.key("b"), live=False) is Doubt.SKEWED


def test_regions_are_part_of_the_key(mesh: Mesh) -> None:
    assert mesh.key("a").split("/")[3] == HERE
