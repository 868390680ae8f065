"""Which records are believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from penstock.worker.v1 import presence_pb2

from runtime.identity import Role
from runtime.ids import NodeId, Region
from runtime.keyvalue import KeyValue
from runtime.records import sign_record
from runtime.revocations import Revocations
from scheduler.presence import MAX_SKEW_S, SILENCE_S, Doubt, PresenceReader, PresenceRefused
from tests.scheduler.mesh import HERE, Mesh, model
from tests.support.manual_clock import ManualClock


def read(reader: PresenceReader, mesh: Mesh, value: bytes, key: str, *, live: bool = True, lease_id: int = 0) -> int:
    item = KeyValue(key, value, 1, 1, 1, lease_id)
    return reader.read(item, now_wall_s=mesh.clock.wall_s(), live=live).worker.sequence


def doubt(reader: PresenceReader, mesh: Mesh, value: bytes, key: str, *, live: bool = True, lease_id: int = 0) -> Doubt:
    with pytest.raises(PresenceRefused) as caught:
        read(reader, mesh, value, key, live=live, lease_id=lease_id)
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
    unsigned = presence_pb2.SignedRecord.FromString(signed)
    unsigned.signature = b""
    another_key = presence_pb2.SignedRecord.FromString(mesh.signed("b", good))
    another_key.certificate = mesh.node("a").certificate_der
    self_made = presence_pb2.SignedRecord.FromString(signed)
    self_made.certificate = stranger.node("a").certificate_der
    cases = {
        "unsigned": (unsigned.SerializeToString(), key, Doubt.NOT_AUTHENTIC),
        "bare": (good.SerializeToString(), key, Doubt.NOT_AUTHENTIC),
        "signed by another's key": (another_key.SerializeToString(), key, Doubt.NOT_AUTHENTIC),
        "enrolled by nobody": (self_made.SerializeToString(), key, Doubt.NOT_AUTHENTIC),
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


def test_whoever_was_revoked_is_believed_no_more(mesh: Mesh) -> None:
    revocations = Revocations()
    reader, key = mesh.reader(revocations), mesh.key("a")
    assert read(reader, mesh, mesh.signed("a", mesh.presence("a")), key) == 1
    revocations.add(NodeId(mesh.worker_id("a")))
    assert doubt(reader, mesh, mesh.signed("a", mesh.presence("a")), key) is Doubt.NOT_AUTHENTIC
    assert doubt(reader, mesh, mesh.signed("a", mesh.presence("a")), key, live=False) is Doubt.NOT_AUTHENTIC


def test_a_restarted_worker_goes_on_under_its_name_and_a_younger_lease(mesh: Mesh) -> None:
    reader, key = mesh.reader(), mesh.key("a")
    records = [mesh.signed("a", mesh.presence("a", sequence=number)) for number in range(1, 6)]
    assert [read(reader, mesh, value, key, lease_id=7) for value in records[:2]] == [1, 2]
    assert [read(reader, mesh, value, key, lease_id=8) for value in records[2:]] == [3, 4, 5]
    assert doubt(reader, mesh, records[0], key, lease_id=9) is Doubt.REPLAYED, "whoever had it goes on above its former self"


async def test_of_two_processes_with_one_identity_the_younger_is_believed_while_it_lives(
    mesh: Mesh, clock: ManualClock
) -> None:
    reader, key = mesh.reader(), mesh.key("a")

    def record() -> bytes:
        return mesh.signed("a", mesh.presence("a"))

    assert [read(reader, mesh, record(), key, lease_id=lease) for lease in (7, 8)] == [1, 2]
    for _ in range(3):
        assert doubt(reader, mesh, record(), key, lease_id=7) is Doubt.TWICE
        await clock.advance(5.0)
        read(reader, mesh, record(), key, lease_id=8)
    await clock.advance(SILENCE_S)
    read(reader, mesh, record(), key, lease_id=7)
    assert doubt(reader, mesh, record(), key, lease_id=8) is Doubt.TWICE, "and so the other way round"
