"""Boxes, answer streams, and whose key to believe: what a stranger on the way can and cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.public import PrivateKey
from penstock.worker.v1 import presence_pb2

from runtime.errors import InvalidArgument
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import WorkerId
from runtime.records import RecordRefused, sign_record
from runtime.sealing import (
    BOX_OVERHEAD_BYTES,
    AnswerAltered,
    AnswerOpener,
    AnswerSealer,
    BoxRefused,
    SealedCall,
    is_token,
    open_call,
    reservation_id,
    reservation_parts,
    seal_call,
    token_sha256_of,
    verified_place,
)

KEY = PrivateKey(b"\x01" * 32)
REPLY_KEY = b"\x02" * 32
CALL = SealedCall("w.h", "w", 1, b"what nobody else may read", b"\x03" * 32, REPLY_KEY, timeout_s=2.5, request_id="r-1")
NOW_S = 1_800_000_000.0

messages = st.lists(st.binary(max_size=200), min_size=1, max_size=6)


def sealed(parts: list[bytes]) -> tuple[bytes, list[bytes]]:
    sealer = AnswerSealer(REPLY_KEY)
    return sealer.header, [sealer.seal(part, final=part_number == len(parts)) for part_number, part in enumerate(parts, 1)]


def opened(header: bytes, parts: list[bytes], key: bytes = REPLY_KEY) -> list[bytes]:
    """What a client has in the end. Raises AnswerAltered."""
    opener = AnswerOpener(key, header)
    found = [opener.open(part) for part in parts]
    opener.end()
    return found


@given(st.binary(max_size=500), st.integers(0, 2**31 - 1), st.floats(0, 1e6, allow_nan=False), st.text(max_size=40))
def test_what_is_sealed_to_a_worker_is_what_it_opens(payload: bytes, method: int, timeout_s: float, request_id: str) -> None:
    call = replace(CALL, payload=payload, method=method, timeout_s=round(timeout_s, 6), request_id=request_id)
    box = seal_call(call, bytes(KEY.public_key))
    found = open_call(box, KEY)
    assert replace(found, timeout_s=0) == replace(call, timeout_s=0)
    assert abs(found.timeout_s - call.timeout_s) <= 1e-6


def test_no_two_boxes_of_one_call_are_alike_and_none_shows_its_payload() -> None:
    one, other = (seal_call(CALL, bytes(KEY.public_key)) for _ in range(2))
    assert one != other
    assert CALL.payload not in one + other
    assert len(one) >= len(CALL.payload) + BOX_OVERHEAD_BYTES


def test_only_the_worker_it_was_sealed_to_opens_a_box() -> None:
    with pytest.raises(BoxRefused):
        open_call(seal_call(CALL, bytes(KEY.public_key)), PrivateKey.generate())


@settings(max_examples=60)
@given(st.data())
def test_a_box_with_any_bit_changed_does_not_open(data: st.DataObject) -> None:
    box = bytearray(seal_call(CALL, bytes(KEY.public_key)))
    bit = data.draw(st.integers(0, len(box) * 8 - 1))
    box[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BoxRefused):
        open_call(bytes(box), KEY)


@pytest.mark.parametrize("box", [b"", b"x" * 20, b"\x00" * 48, b"\x00" * 200])
def test_what_is_no_box_is_refused(box: bytes) -> None:
    with pytest.raises(BoxRefused):
        open_call(box, KEY)


def test_a_box_with_a_reply_key_of_another_size_is_refused() -> None:
    for size in (0, 31, 33):
        with pytest.raises(BoxRefused, match=f"a reply key of {size} bytes"):
            open_call(seal_call(replace(CALL, reply_key=b"k" * size), bytes(KEY.public_key)), KEY)


def test_what_a_call_holds_is_not_in_its_representation() -> None:
    shown = repr(CALL)
    assert "nobody else" not in shown
    assert "x03" not in shown
    assert "x02" not in shown


@given(messages)
def test_an_answer_opens_as_it_was_sealed(parts: list[bytes]) -> None:
    header, stream = sealed(parts)
    assert opened(header, stream) == parts


@given(messages)
def test_an_answer_under_another_key_does_not_open(parts: list[bytes]) -> None:
    header, stream = sealed(parts)
    with pytest.raises(AnswerAltered):
        opened(header, stream, b"\x09" * 32)


@given(st.data(), messages)
def test_an_answer_cut_off_anywhere_is_noticed(data: st.DataObject, parts: list[bytes]) -> None:
    header, stream = sealed(parts)
    with pytest.raises(AnswerAltered, match="cut off"):
        opened(header, stream[: data.draw(st.integers(0, len(stream) - 1))])


@given(st.data(), st.lists(st.binary(max_size=50), min_size=2, max_size=6, unique=True))
def test_an_answer_with_messages_swapped_left_out_or_repeated_is_noticed(data: st.DataObject, parts: list[bytes]) -> None:
    header, stream = sealed(parts)
    first = data.draw(st.integers(0, len(stream) - 2))
    kind = data.draw(st.sampled_from(["swap", "drop", "repeat"]))
    if kind == "swap":
        stream[first], stream[first + 1] = stream[first + 1], stream[first]
    elif kind == "drop":
        del stream[first]
    else:
        stream.insert(first, stream[first])
    with pytest.raises(AnswerAltered):
        opened(header, stream)


@settings(max_examples=60)
@given(st.data(), messages)
def test_an_answer_with_any_bit_changed_is_noticed(data: st.DataObject, parts: list[bytes]) -> None:
    header, stream = sealed(parts)
    altered = [bytearray(header), *map(bytearray, stream)]
    part = data.draw(st.sampled_from(altered))
    bit = data.draw(st.integers(0, len(part) * 8 - 1))
    part[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AnswerAltered):
        opened(bytes(altered[0]), [bytes(each) for each in altered[1:]])


def test_nothing_may_follow_the_last_message_and_a_header_has_one_size() -> None:
    header, stream = sealed([b"all"])
    with pytest.raises(AnswerAltered, match="after the answer's last one"):
        opened(header, [*stream, *stream])
    with pytest.raises(AnswerAltered, match="header of 23 bytes"):
        AnswerOpener(REPLY_KEY, header[:-1])
    with pytest.raises(AnswerAltered, match="too short"):
        opened(header, [b"short"])


def test_a_token_is_known_by_its_digest_alone() -> None:
    assert is_token(b"secret", token_sha256_of(b"secret"))
    assert not is_token(b"Secret", token_sha256_of(b"secret"))
    assert not is_token(b"", b"")


def test_a_reservation_is_named_by_worker_and_hold() -> None:
    name = reservation_id(WorkerId("a1"), "0" * 32)
    assert reservation_parts(name) == ("a1", "0" * 32)
    for wrong in (
        "",
        "a1",
        "a1.",
        "." + "0" * 32,
        "a1." + "0" * 31,
        "a1." + "G" * 32,
        name + "0",
        f"{name}\n",
        "a/1." + "0" * 32,
    ):
        with pytest.raises(InvalidArgument, match="names no reservation"):
            reservation_parts(wrong)


def worker_of(folder: Path, role: Role = Role.WORKER) -> NodeIdentity:
    return Authority.open(folder / "ca").enrol(folder / role.value, role)


def presence_of(identity: NodeIdentity, **changes: object) -> bytes:
    told: dict[str, object] = {
        "worker_id": identity.node_id,
        "region": "here",
        "sealed_address": "127.0.0.1:7",
        "x25519_public_key": identity.x25519_public_key,
        **changes,
    }
    return presence_pb2.Presence(**told).SerializeToString()  # type: ignore[arg-type]


def test_a_place_is_believed_for_the_authoritys_signature_alone(tmp_path: Path) -> None:
    identity = worker_of(tmp_path)
    wall_s = identity.certificate.begins_wall_s + 1_000
    record = sign_record(identity, presence_of(identity))
    place = verified_place(record, identity.authority_pem, worker_id=identity.node_id, now_wall_s=wall_s)
    assert [place.worker_id, place.region, place.address] == [identity.node_id, "here", "127.0.0.1:7"]
    assert place.x25519_public_key == bytes(identity.signing_key.to_curve25519_private_key().public_key)


def test_a_place_that_is_not_that_workers_is_not_believed(tmp_path: Path) -> None:
    identity, gateway = worker_of(tmp_path), worker_of(tmp_path, Role.GATEWAY)
    stranger = worker_of(tmp_path / "elsewhere")
    wall_s = identity.certificate.begins_wall_s + 1_000
    whole = presence_of(identity)
    cases = {
        "of another mesh": (sign_record(stranger, presence_of(identity)), "not issued by this mesh's authority"),
        "of another node": (sign_record(gateway, whole), "that is to be worker"),
        "about another worker": (sign_record(identity, presence_of(identity, worker_id="x")), "a presence of 'x'"),
        "without an address": (sign_record(identity, presence_of(identity, sealed_address="")), "no key or no address"),
        "with half a key": (sign_record(identity, presence_of(identity, x25519_public_key=b"k")), "no key or no address"),
        "no presence": (sign_record(identity, b"\xff\xff"), "is no presence"),
        "no record": (b"\xff", "not a signed record"),
        "altered": (sign_record(identity, whole).replace(b"127.0.0.1:7", b"127.0.0.1:8"), "does not fit its record"),
    }
    for record, sentence in cases.values():
        with pytest.raises(RecordRefused, match=sentence):
            verified_place(record, identity.authority_pem, worker_id=identity.node_id, now_wall_s=wall_s)
    late_s = identity.certificate.expires_wall_s + 1
    with pytest.raises(RecordRefused, match="has expired"):
        verified_place(sign_record(identity, whole), identity.authority_pem, worker_id=identity.node_id, now_wall_s=late_s)
