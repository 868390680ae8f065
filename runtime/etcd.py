"""The etcd session: the KeyValueStore over a real etcd.

Owns how a call of ours is asked of etcd: pages, timeouts, streams. Failover and login are `runtime.etcd_members`', messages
`runtime.etcd_codec`'s, keeping a lease `runtime.lease`'s, following a prefix `runtime.watch`'s.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from types import TracebackType
from typing import NoReturn, Self, TypeAlias

import grpc
import grpc.aio
from etcdserverpb import rpc_pb2
from mvccpb import kv_pb2

from runtime.clock import Clock, SystemClock
from runtime.etcd_codec import (
    changes_of,
    error_of,
    error_of_sentence,
    item_of,
    key_text,
    named_key,
    prefix_range,
    txn_request,
    txn_result,
)
from runtime.etcd_members import EtcdMembers, EtcdSettings, Member, Metadata
from runtime.keyvalue import (
    Changes,
    Compare,
    EtcdAccessRefused,
    EtcdUnavailable,
    KeyValue,
    LeaseNotFound,
    Read,
    RevisionGone,
    Snapshot,
    Step,
    TxnResult,
)
from runtime.lease import Granted, KeptLease, LeaseTiming, held_lease
from runtime.watch import ResumingWatch, Stamp, WatchTiming, followed_prefix, stamp_of

PAGE_KEYS = 256
_RANGE_ATTEMPTS = 3
_WatchCall: TypeAlias = grpc.aio.StreamStreamCall[rpc_pb2.WatchRequest, rpc_pb2.WatchResponse]


class EtcdStore:
    """A KeyValueStore over etcd, open while its context lasts. Entering does not wait for etcd.

    async with EtcdStore(EtcdSettings.at("127.0.0.1:2379")) as store: ...
    """

    def __init__(
        self,
        settings: EtcdSettings,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        lease_timing: LeaseTiming | None = None,
        watch_timing: WatchTiming | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._rng = rng or random.SystemRandom()
        self._lease_timing = lease_timing or LeaseTiming()
        self._watch_timing = watch_timing or WatchTiming()
        self._members = EtcdMembers(settings)
        self._timeout_s = settings.call_timeout_s

    async def __aenter__(self) -> Self:
        self._members.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._members.close()

    async def get(self, key: str) -> KeyValue | None:
        request = rpc_pb2.RangeRequest(key=named_key(key))
        answer = await self._range(request)
        return item_of(answer.kvs[0]) if answer.kvs else None

    async def range(self, prefix: str) -> Snapshot:
        for _ in range(_RANGE_ATTEMPTS - 1):
            with suppress(RevisionGone):  # compacted between two pages
                return await self._snapshot(prefix)
        return await self._snapshot(prefix)

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        request = rpc_pb2.PutRequest(key=named_key(key), value=value, lease=lease_id)

        async def call(member: Member, metadata: Metadata) -> rpc_pb2.PutResponse:
            return await member.kv.Put(request, timeout=self._timeout_s, metadata=metadata)

        return (await self._members.ask(call, repeatable=False)).header.revision

    async def delete(self, key: str) -> bool:
        return await self._delete(rpc_pb2.DeleteRangeRequest(key=named_key(key))) > 0

    async def delete_prefix(self, prefix: str) -> int:
        start, end = prefix_range(prefix)
        return await self._delete(rpc_pb2.DeleteRangeRequest(key=start, range_end=end))

    async def txn(self, compares: Sequence[Compare], success: Sequence[Step], failure: Sequence[Step] = ()) -> TxnResult:
        request = txn_request(compares, success, failure)

        async def call(member: Member, metadata: Metadata) -> rpc_pb2.TxnResponse:
            return await member.kv.Txn(request, timeout=self._timeout_s, metadata=metadata)

        only_reads = all(isinstance(step, Read) for step in (*success, *failure))
        return txn_result(await self._members.ask(call, repeatable=only_reads))

    def watch(self, prefix: str) -> AbstractAsyncContextManager[ResumingWatch]:
        return followed_prefix(self, prefix, clock=self._clock, rng=self._rng, timing=self._watch_timing)

    def lease(self, *, ttl_s: int = 15) -> AbstractAsyncContextManager[KeptLease]:
        return held_lease(self, ttl_s, clock=self._clock, rng=self._rng, timing=self._lease_timing)

    async def version(self) -> str:
        """The version of the member that answers, for whoever has to judge it."""

        async def call(member: Member, metadata: Metadata) -> rpc_pb2.StatusResponse:
            return await member.maintenance.Status(rpc_pb2.StatusRequest(), timeout=self._timeout_s, metadata=metadata)

        return (await self._members.ask(call, repeatable=True)).version

    async def compact(self, revision: int) -> None:
        """Forget the history before the revision."""
        request = rpc_pb2.CompactionRequest(revision=revision, physical=True)

        async def call(member: Member, metadata: Metadata) -> rpc_pb2.CompactionResponse:
            return await member.kv.Compact(request, timeout=self._timeout_s, metadata=metadata)

        await self._members.ask(call, repeatable=True)

    async def grant_lease(self, ttl_s: int) -> Granted:
        request = rpc_pb2.LeaseGrantRequest(TTL=ttl_s)

        async def call(member: Member, metadata: Metadata) -> rpc_pb2.LeaseGrantResponse:
            return await member.lease.LeaseGrant(request, timeout=self._timeout_s, metadata=metadata)

        # A grant that was repeated leaves a lease that nobody renews; it ends by itself.
        answer = await self._members.ask(call, repeatable=True)
        return Granted(answer.ID, answer.TTL)

    async def renew_lease(self, lease_id: int) -> float:
        async def call(member: Member, metadata: Metadata) -> int:
            stream = member.lease.LeaseKeepAlive(timeout=self._timeout_s, metadata=metadata)
            try:
                await stream.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease_id))
                answer = await stream.read()
            except asyncio.InvalidStateError:
                await _ended(stream, member)
            finally:
                stream.cancel()
            if not isinstance(answer, rpc_pb2.LeaseKeepAliveResponse):
                await _ended(stream, member)
            return answer.TTL

        remaining_s = await self._members.ask(call, repeatable=True)
        if remaining_s <= 0:
            raise LeaseNotFound(f"etcd knows no lease {lease_id:x} any more; it has to be granted again")
        return float(remaining_s)

    async def lease_keys(self, lease_id: int) -> frozenset[str]:
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id, keys=True)

        async def call(member: Member, metadata: Metadata) -> rpc_pb2.LeaseTimeToLiveResponse:
            return await member.lease.LeaseTimeToLive(request, timeout=self._timeout_s, metadata=metadata)

        answer = await self._members.ask(call, repeatable=True)
        if answer.TTL < 0:
            raise LeaseNotFound(f"etcd knows no lease {lease_id:x} any more; it has to be granted again")
        return frozenset(key_text(key) for key in answer.keys)

    async def revoke_lease(self, lease_id: int) -> None:
        request = rpc_pb2.LeaseRevokeRequest(ID=lease_id)

        async def call(member: Member, metadata: Metadata) -> rpc_pb2.LeaseRevokeResponse:
            return await member.lease.LeaseRevoke(request, timeout=self._timeout_s, metadata=metadata)

        await self._members.ask(call, repeatable=True)

    async def stamps_at(self, prefix: str, revision: int) -> Mapping[str, Stamp]:
        items, _ = await self._pages(prefix, revision=revision, keys_only=True)
        return {key_text(item.key): stamp_of(item_of(item)) for item in items}

    @asynccontextmanager
    async def changes(self, prefix: str, after_revision: int) -> AsyncIterator[EtcdChanges]:
        start, end = prefix_range(prefix)
        create = rpc_pb2.WatchCreateRequest(key=start, range_end=end, start_revision=after_revision + 1, progress_notify=True)
        member = await self._members.reach()
        stream = member.watch.Watch(metadata=await self._members.metadata(member))
        changes = EtcdChanges(stream, member, self._members)
        try:
            await changes.begin(create, self._timeout_s)
            yield changes
        finally:
            stream.cancel()

    async def _snapshot(self, prefix: str) -> Snapshot:
        items, revision = await self._pages(prefix, revision=0, keys_only=False)
        return Snapshot(tuple(item_of(item) for item in items), revision)

    async def _range(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        async def call(member: Member, metadata: Metadata) -> rpc_pb2.RangeResponse:
            return await member.kv.Range(request, timeout=self._timeout_s, metadata=metadata)

        return await self._members.ask(call, repeatable=True)

    async def _delete(self, request: rpc_pb2.DeleteRangeRequest) -> int:
        async def call(member: Member, metadata: Metadata) -> rpc_pb2.DeleteRangeResponse:
            return await member.kv.DeleteRange(request, timeout=self._timeout_s, metadata=metadata)

        return (await self._members.ask(call, repeatable=False)).deleted

    async def _pages(self, prefix: str, *, revision: int, keys_only: bool) -> tuple[list[kv_pb2.KeyValue], int]:
        """Everything under the prefix at one revision (0: the newest), page by page."""
        start, end = prefix_range(prefix)
        items: list[kv_pb2.KeyValue] = []
        while True:
            request = rpc_pb2.RangeRequest(key=start, range_end=end, limit=PAGE_KEYS, revision=revision, keys_only=keys_only)
            answer = await self._range(request)
            items.extend(answer.kvs)
            revision = revision or answer.header.revision
            if not answer.more or not answer.kvs:
                return items, revision
            start = answer.kvs[-1].key + b"\0"


class EtcdChanges:
    """One watch on one stream of its own."""

    def __init__(self, stream: _WatchCall, member: Member, members: EtcdMembers) -> None:
        self._stream, self._member, self._members = stream, member, members

    async def begin(self, create: rpc_pb2.WatchCreateRequest, timeout_s: float) -> None:
        """Return when etcd has agreed."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._stream.write(rpc_pb2.WatchRequest(create_request=create))
                await self._response()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._over()
        except TimeoutError as error:
            self._members.distrust(self._member)
            raise EtcdUnavailable(f"etcd {self._member.endpoint} did not begin a watch within {timeout_s} s") from error

    async def read(self) -> Changes:
        return changes_of(await self._response())

    async def _response(self) -> rpc_pb2.WatchResponse:
        try:
            answer = await self._stream.read()
        except grpc.aio.AioRpcError as failure:
            self._members.distrust(self._member)
            raise error_of(failure, self._member.endpoint) from failure
        if not isinstance(answer, rpc_pb2.WatchResponse):
            await self._over()
        if answer.compact_revision:
            raise RevisionGone(
                f"etcd has forgotten what happened before revision {answer.compact_revision}; read everything again"
            )
        if answer.canceled:
            error = error_of_sentence(answer.cancel_reason or "the watch was cancelled", self._member.endpoint)
            if isinstance(error, EtcdAccessRefused):
                self._members.forget_login()
            raise error
        return answer

    async def _over(self) -> NoReturn:
        """Raise what the stream ended with."""
        self._members.distrust(self._member)
        await _ended(self._stream, self._member)


async def _ended(stream: grpc.aio.Call, member: Member) -> NoReturn:
    """Raise what a stream ended with."""
    code, details = await stream.code(), await stream.details()
    raise error_of_sentence(details or "the stream ended", member.endpoint, code if code is not grpc.StatusCode.OK else None)
