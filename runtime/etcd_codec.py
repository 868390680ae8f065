"""etcd's messages as our values, our steps as etcd's messages, and etcd's failures as our errors.

Owns the table of errors. Never sends anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio
from etcdserverpb import rpc_pb2
from mvccpb import kv_pb2

from runtime.errors import PenstockError
from runtime.keyvalue import (
    Aspect,
    Changes,
    Compare,
    Delete,
    EtcdAccessRefused,
    EtcdFailed,
    EtcdFull,
    EtcdOverloaded,
    EtcdRequestRefused,
    EtcdUnavailable,
    Event,
    KeyValue,
    LeaseNotFound,
    Put,
    Read,
    Remove,
    RevisionGone,
    Step,
    TxnResult,
    Write,
)

# By etcd's sentence, where the code alone does not tell. Source: etcd api/v3rpc/rpctypes/error.go; grpc-go's size limit.
_BY_SENTENCE: tuple[tuple[str, type[PenstockError], str], ...] = (
    ("etcdserver: requested lease not found", LeaseNotFound, "it expired or etcd lost it; it has to be granted again"),
    ("etcdserver: mvcc: required revision has been compacted", RevisionGone, "read everything again"),
    ("etcdserver: mvcc: required revision is a future revision", RevisionGone, "etcd lost data; read everything again"),
    ("etcdserver: mvcc: database space exceeded", EtcdFull, "compact, defragment, then `etcdctl alarm disarm`"),
    ("etcdserver: too many requests", EtcdOverloaded, "it is behind; slow down"),
    ("etcdserver: user name is empty", EtcdAccessRefused, "this etcd wants a user and a password; configure them"),
    ("etcdserver: authentication failed", EtcdAccessRefused, "check the configured user and password"),
    (
        "etcdserver: authentication is not enabled",
        EtcdAccessRefused,
        "this etcd knows no users; configure none, or enable auth there",
    ),
    ("etcdserver: permission denied", EtcdAccessRefused, "grant the user's role these keys"),
    ("etcdserver: invalid auth token", EtcdAccessRefused, "the login has expired"),
    ("etcdserver: revision of auth store is old", EtcdAccessRefused, "the login has expired"),
    ("grpc: received message larger than max", EtcdRequestRefused, "etcd takes 1.5 MiB; make the value smaller"),
    ("etcdserver: request is too large", EtcdRequestRefused, "etcd takes 1.5 MiB; make the value smaller"),
)

_BY_CODE: dict[grpc.StatusCode, tuple[type[PenstockError], str]] = {
    grpc.StatusCode.UNAVAILABLE: (EtcdUnavailable, "is it running and reachable?"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (EtcdUnavailable, "no answer in time; is it overloaded or cut off?"),
    grpc.StatusCode.CANCELLED: (EtcdUnavailable, "the connection was given up"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (EtcdOverloaded, "slow down"),
    grpc.StatusCode.UNAUTHENTICATED: (EtcdAccessRefused, "check the configured user and password"),
    grpc.StatusCode.PERMISSION_DENIED: (EtcdAccessRefused, "grant the user's role these keys"),
    grpc.StatusCode.INVALID_ARGUMENT: (EtcdRequestRefused, "the request has to change"),
    grpc.StatusCode.UNIMPLEMENTED: (EtcdAccessRefused, "what listens there is no etcd of version 3; check the endpoint"),
}

_EXPIRED_LOGIN = ("etcdserver: invalid auth token", "etcdserver: revision of auth store is old")

_ASPECTS: dict[Aspect, rpc_pb2.Compare.CompareTarget.ValueType] = {
    Aspect.VERSION: rpc_pb2.Compare.VERSION,
    Aspect.CREATE_REVISION: rpc_pb2.Compare.CREATE,
    Aspect.MOD_REVISION: rpc_pb2.Compare.MOD,
    Aspect.LEASE_ID: rpc_pb2.Compare.LEASE,
}


def error_of(failure: grpc.aio.AioRpcError, endpoint: str) -> PenstockError:
    """What an RPC to that member failed with."""
    return error_of_sentence(failure.details() or "", endpoint, failure.code())


def error_of_sentence(details: str, endpoint: str, code: grpc.StatusCode | None = None) -> PenstockError:
    """The error for etcd's own words, which a cancelled watch gives without a code."""
    for sentence, kind, advice in _BY_SENTENCE:
        if sentence in details:
            return kind(f"etcd {endpoint}: {details}; {advice}")
    if code is None:
        return EtcdUnavailable(f"etcd {endpoint}: {details}")
    kind, advice = _BY_CODE.get(code, (EtcdFailed, "this is not expected of etcd"))
    return kind(f"etcd {endpoint}: {code.name}: {details}; {advice}")


def is_expired_login(failure: grpc.aio.AioRpcError) -> bool:
    """Whether the call was refused, unexecuted, because its token is not valid any more."""
    return any(sentence in (failure.details() or "") for sentence in _EXPIRED_LOGIN)


def key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def key_text(key: bytes) -> str:
    """Other people's keys may be no UTF-8; they must not break a range."""
    return key.decode("utf-8", "surrogateescape")


def named_key(key: str) -> bytes:
    """A key to write or read. Raises EtcdRequestRefused for an empty one."""
    if not key:
        raise EtcdRequestRefused("a key needs a name; an empty one was given")
    return key_bytes(key)


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """The range [key, end) of everything under a prefix. Source: etcd's rpc.proto, RangeRequest.range_end."""
    start = key_bytes(prefix)
    kept = start.rstrip(b"\xff")
    if not kept:
        return start or b"\0", b"\0"
    return start, kept[:-1] + bytes([kept[-1] + 1])


def item_of(message: kv_pb2.KeyValue) -> KeyValue:
    return KeyValue(
        key_text(message.key), message.value, message.create_revision, message.mod_revision, message.version, message.lease
    )


def changes_of(message: rpc_pb2.WatchResponse) -> Changes:
    """A watch response. Events say how far the history has come; only a response without any may go by its header."""
    events = tuple(_event_of(event) for event in message.events)
    return Changes(events, message.events[-1].kv.mod_revision if events else message.header.revision)


def _event_of(message: kv_pb2.Event) -> Event:
    if message.type == kv_pb2.Event.DELETE:
        return Delete(key_text(message.kv.key), message.kv.mod_revision)
    return Put(item_of(message.kv))


def txn_request(compares: Sequence[Compare], success: Sequence[Step], failure: Sequence[Step]) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(
        compare=[_condition(compare) for compare in compares],
        success=[_step(step) for step in success],
        failure=[_step(step) for step in failure],
    )


def txn_result(message: rpc_pb2.TxnResponse) -> TxnResult:
    reads = [answer.response_range for answer in message.responses if answer.WhichOneof("response") == "response_range"]
    found = tuple(item_of(read.kvs[0]) if read.kvs else None for read in reads)
    return TxnResult(message.succeeded, message.header.revision, found)


def _condition(compare: Compare) -> rpc_pb2.Compare:
    key, target = named_key(compare.key), _ASPECTS[compare.aspect]
    match compare.aspect:
        case Aspect.VERSION:
            return rpc_pb2.Compare(key=key, target=target, version=compare.equals)
        case Aspect.CREATE_REVISION:
            return rpc_pb2.Compare(key=key, target=target, create_revision=compare.equals)
        case Aspect.MOD_REVISION:
            return rpc_pb2.Compare(key=key, target=target, mod_revision=compare.equals)
        case Aspect.LEASE_ID:
            return rpc_pb2.Compare(key=key, target=target, lease=compare.equals)


def _step(step: Step) -> rpc_pb2.RequestOp:
    match step:
        case Write():
            put = rpc_pb2.PutRequest(key=named_key(step.key), value=step.value, lease=step.lease_id)
            return rpc_pb2.RequestOp(request_put=put)
        case Remove():
            return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=named_key(step.key)))
        case Read():
            return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=named_key(step.key)))
