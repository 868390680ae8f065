import grpc
import pytest
from etcdserverpb import rpc_pb2
from hypothesis import given
from hypothesis import strategies as st
from mvccpb import kv_pb2

from runtime.errors import PenstockError
from runtime.etcd_codec import changes_of, error_of_sentence, key_bytes, key_text, prefix_range
from runtime.keyvalue import (
    Changes,
    Delete,
    EtcdAccessRefused,
    EtcdFailed,
    EtcdFull,
    EtcdOverloaded,
    EtcdRequestRefused,
    EtcdUnavailable,
    KeyValue,
    LeaseNotFound,
    Put,
    RevisionGone,
)

CODES = grpc.StatusCode


@given(prefix=st.binary(max_size=6), key=st.binary(min_size=1, max_size=8))
def test_a_key_is_in_the_range_exactly_if_it_has_the_prefix(prefix: bytes, key: bytes) -> None:
    start, end = prefix_range(key_text(prefix))
    inside = start <= key and (end == b"\0" or key < end)
    assert inside == (key.startswith(prefix) or (prefix == b"" and key >= b"\0"))


@given(key=st.binary())
def test_other_peoples_keys_survive_being_text(key: bytes) -> None:
    assert key_bytes(key_text(key)) == key


def test_events_say_how_far_the_history_has_come_and_a_header_only_where_there_are_none() -> None:
    """A header may be ahead of events that are still to come: following on from it would miss them."""
    header = rpc_pb2.ResponseHeader(revision=100)
    put = kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"/a", value=b"1", create_revision=6, mod_revision=6, version=1, lease=5))
    deletion = kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv_pb2.KeyValue(key=b"/a", mod_revision=7))
    changes = changes_of(rpc_pb2.WatchResponse(header=header, events=[put, deletion]))
    assert changes == Changes((Put(KeyValue("/a", b"1", 6, 6, 1, 5)), Delete("/a", 7)), 7)
    assert changes_of(rpc_pb2.WatchResponse(header=header)) == Changes((), 100)


@pytest.mark.parametrize(
    ("details", "code", "kind"),
    [
        ("etcdserver: requested lease not found", CODES.NOT_FOUND, LeaseNotFound),
        ("etcdserver: mvcc: required revision has been compacted", CODES.OUT_OF_RANGE, RevisionGone),
        ("etcdserver: mvcc: required revision is a future revision", CODES.OUT_OF_RANGE, RevisionGone),
        ("etcdserver: mvcc: database space exceeded", CODES.RESOURCE_EXHAUSTED, EtcdFull),
        ("etcdserver: too many requests", CODES.RESOURCE_EXHAUSTED, EtcdOverloaded),
        ("etcdserver: no leader", CODES.UNAVAILABLE, EtcdUnavailable),
        ("etcdserver: request timed out", CODES.UNAVAILABLE, EtcdUnavailable),
        ("Deadline Exceeded", CODES.DEADLINE_EXCEEDED, EtcdUnavailable),
        ("etcdserver: user name is empty", CODES.INVALID_ARGUMENT, EtcdAccessRefused),
        ("etcdserver: permission denied", CODES.PERMISSION_DENIED, EtcdAccessRefused),
        ("etcdserver: invalid auth token", CODES.UNAUTHENTICATED, EtcdAccessRefused),
        ("etcdserver: request is too large", CODES.INVALID_ARGUMENT, EtcdRequestRefused),
        ("etcdserver: duplicate key given in txn request", CODES.INVALID_ARGUMENT, EtcdRequestRefused),
        ("unknown service etcdserverpb.KV", CODES.UNIMPLEMENTED, EtcdAccessRefused),
        ("something new", CODES.UNKNOWN, EtcdFailed),
        # How a cancelled watch says it: no code of its own.
        ("rpc error: code = PermissionDenied desc = etcdserver: permission denied", None, EtcdAccessRefused),
        ("etcdserver: no leader", None, EtcdUnavailable),
        ("", None, EtcdUnavailable),
    ],
)
def test_what_etcd_says_becomes_what_the_caller_can_act_on(
    details: str, code: grpc.StatusCode | None, kind: type[PenstockError]
) -> None:
    error = error_of_sentence(details, "a:1", code)
    assert type(error) is kind
    assert "a:1" in error.message
    assert details in error.message
