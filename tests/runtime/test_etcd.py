"""The etcd session against a real etcd that is stopped, killed, emptied and compacted under it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from runtime.backoff import Backoff
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.keyvalue import EtcdRequestRefused, EtcdUnavailable, Lease, OutcomeUnknown, Write
from runtime.lease import LeaseTiming
from runtime.watch import WatchTiming
from tests.support.etcd import EtcdServer, running_etcd
from tests.support.forwarder import forwarder_to
from tests.support.waiting import PATIENCE_S, events_of, eventually, snapshot_of

QUICK = Backoff(first_s=0.05, max_s=0.3)
WATCHERS = "etcd_debugging_mvcc_watcher_total"
TTL_S = 2


def session(endpoints: str) -> EtcdStore:
    return EtcdStore(
        EtcdSettings.at(endpoints),
        lease_timing=LeaseTiming(backoff=QUICK),
        watch_timing=WatchTiming(backoff=QUICK),
    )


@pytest.fixture
async def shared_store(shared: EtcdServer) -> AsyncIterator[EtcdStore]:
    async with session(shared.endpoint) as opened:
        yield opened


async def settled(lease: Lease) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await lease.settle()


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    with running_etcd() as server:
        yield server


@pytest.fixture(scope="module")
def shared() -> Iterator[EtcdServer]:
    """For those that do not harm it."""
    with running_etcd() as server:
        yield server


@pytest.fixture
async def store(etcd: EtcdServer) -> AsyncIterator[EtcdStore]:
    async with session(etcd.endpoint) as opened:
        yield opened


async def test_a_restart_loses_nothing_and_costs_no_snapshot(etcd: EtcdServer, store: EtcdStore) -> None:
    await store.put("/w/1", b"1")
    async with store.watch("/w/") as watch, session(etcd.endpoint) as another:
        assert await snapshot_of(watch) == {"/w/1": b"1"}
        await eventually(lambda: watch.connected)
        await etcd.astop()
        await eventually(lambda: not watch.connected)
        with pytest.raises(EtcdUnavailable, match="running and reachable"):
            await store.get("/w/1")
        await etcd.astart()
        await another.put("/w/2", b"2")
        await another.delete("/w/1")
        assert await events_of(watch, 2) == [("/w/2", b"2"), ("/w/1", None)]
        await eventually(lambda: watch.connected)
        assert watch.synced_age_s == 0.0


async def test_a_kill_is_survived_by_watch_lease_and_calls(etcd: EtcdServer, store: EtcdStore) -> None:
    async with store.watch("/w/") as watch, store.lease(ttl_s=30) as lease:
        assert await snapshot_of(watch) == {}
        lease.put("/w/me", b"1")
        await settled(lease)
        assert await events_of(watch, 1) == [("/w/me", b"1")]
        before = lease.id
        await etcd.akill()
        lease.put("/w/me", b"2")
        assert not lease.settled
        await etcd.astart()
        await settled(lease)
        assert lease.id == before
        assert await events_of(watch, 1) == [("/w/me", b"2")]
        assert await store.get("/w/me") is not None


async def test_an_etcd_that_came_back_empty_is_filled_again(etcd: EtcdServer, store: EtcdStore) -> None:
    await store.put("/w/not-ours", b"lost")
    async with store.watch("/w/") as watch, store.lease(ttl_s=TTL_S) as lease:
        await snapshot_of(watch)
        lease.put("/w/a", b"1")
        lease.put("/w/b", b"2")
        await settled(lease)
        await events_of(watch, 2)
        before = lease.id
        await etcd.astop()
        etcd.empty()
        lease.put("/w/b", b"3")
        await etcd.astart()
        picture = await snapshot_of(watch)
        while picture != {"/w/a": b"1", "/w/b": b"3"}:
            picture |= {key: value for key, value in await events_of(watch, 1) if value is not None}
        await settled(lease)
        assert lease.id not in (0, before)
        assert await store.lease_keys(lease.id) == {"/w/a", "/w/b"}


async def test_an_etcd_that_came_back_empty_and_outgrew_our_revision_is_seen_through(
    etcd: EtcdServer, store: EtcdStore
) -> None:
    await store.put("/w/old", b"1")
    async with store.watch("/w/") as watch:
        await snapshot_of(watch)
        await eventually(lambda: watch.connected)
        await etcd.astop()
        etcd.empty()
        await etcd.astart()
        # Before the watch has looked again the new etcd is past the revision it would follow on from.
        await asyncio.to_thread(etcd.control, "put", "/w/new", "2")
        for _ in range(3):
            await asyncio.to_thread(etcd.control, "put", "/beside", "x")
        picture: dict[str, bytes] = {"/w/old": b"?"}
        while picture != {"/w/new": b"2"}:
            update = await watch.__anext__()
            if hasattr(update, "items"):
                picture = {item.key: item.value for item in update.items}
            else:
                picture |= {event.key: event.item.value for event in update.events if hasattr(event, "item")}


async def test_compaction_while_away_gives_a_fresh_snapshot(etcd: EtcdServer, store: EtcdStore) -> None:
    await store.put("/w/1", b"1")
    async with forwarder_to(etcd.port) as hop, session(hop.endpoint) as far, far.watch("/w/") as watch:
        await snapshot_of(watch)
        await eventually(lambda: watch.connected)
        await hop.cut()
        await eventually(lambda: not watch.connected)
        await store.delete("/w/1")
        await store.put("/w/2", b"2")
        await etcd.compact()
        await hop.mend()
        assert await snapshot_of(watch) == {"/w/2": b"2"}
        await store.put("/w/3", b"3")
        assert await events_of(watch, 1) == [("/w/3", b"3")]


async def test_a_lease_that_ended_while_etcd_could_not_be_reached_is_granted_anew(etcd: EtcdServer, store: EtcdStore) -> None:
    async with forwarder_to(etcd.port) as hop, session(hop.endpoint) as far, far.lease(ttl_s=TTL_S) as lease:
        lease.put("/l/1", b"1")
        await settled(lease)
        before = lease.id
        async with store.watch("/l/") as watch:
            assert await snapshot_of(watch) == {"/l/1": b"1"}
            await hop.cut()
            lease.put("/l/1", b"2")
            assert await events_of(watch, 1) == [("/l/1", None)]
            assert not lease.healthy
            await hop.mend()
            assert await events_of(watch, 1) == [("/l/1", b"2")]
        await settled(lease)
        item = await store.get("/l/1")
        assert item is not None
        assert item.lease_id == lease.id != before


async def test_a_lease_that_an_operator_revoked_is_granted_anew(shared: EtcdServer) -> None:
    async with session(shared.endpoint) as store, store.lease(ttl_s=TTL_S) as lease:
        lease.put("/l/1", b"1")
        await settled(lease)
        before = lease.id
        await asyncio.to_thread(shared.control, "lease", "revoke", f"{before:x}")
        async with asyncio.timeout(PATIENCE_S):
            while lease.id in (0, before) or not lease.settled:
                await lease.changed()
        assert await store.lease_keys(lease.id) == {"/l/1"}


async def test_a_lease_is_kept_beyond_its_time(shared: EtcdServer) -> None:
    async with session(shared.endpoint) as store, store.lease(ttl_s=TTL_S) as lease, store.watch("/l/") as watch:
        lease.put("/l/1", b"1")
        await settled(lease)
        before = lease.id
        granted = await store.grant_lease(TTL_S + 1)
        await store.put("/l/other", b"1", lease_id=granted.lease_id)
        picture = await snapshot_of(watch)
        assert picture.get("/l/1", b"1") == b"1"
        while ("/l/other", None) not in await events_of(watch, 1):
            pass
        assert lease.healthy
        assert lease.id == before
        assert await store.get("/l/1") is not None


async def test_leaving_frees_the_watch_and_the_lease_in_etcd(shared: EtcdServer, shared_store: EtcdStore) -> None:
    etcd, store = shared, shared_store
    tasks = asyncio.all_tasks()
    async with store.watch("/w/") as one, store.watch("/x/") as two, store.lease(ttl_s=60) as lease:
        lease.put("/w/1", b"1")
        await settled(lease)
        await eventually(lambda: one.connected and two.connected)
        assert await etcd.metric(WATCHERS) == 2
    assert await store.get("/w/1") is None
    async with asyncio.timeout(PATIENCE_S):
        while await etcd.metric(WATCHERS) != 0:
            await asyncio.sleep(0.01)
    assert "found 0 leases" in await asyncio.to_thread(etcd.control, "lease", "list")
    assert asyncio.all_tasks() <= tasks


async def test_being_cancelled_frees_them_too(shared: EtcdServer, shared_store: EtcdStore) -> None:
    etcd, store = shared, shared_store
    ready = asyncio.Event()

    async def hold() -> None:
        async with store.watch("/w/") as watch, store.lease(ttl_s=60) as lease:
            await settled(lease)
            await eventually(lambda: watch.connected)
            ready.set()
            await asyncio.Event().wait()

    tasks = asyncio.all_tasks()
    holding = asyncio.ensure_future(hold())
    await ready.wait()
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    async with asyncio.timeout(PATIENCE_S):
        while await etcd.metric(WATCHERS) != 0:
            await asyncio.sleep(0.01)
    assert "found 0 leases" in await asyncio.to_thread(etcd.control, "lease", "list")
    assert asyncio.all_tasks() <= tasks


async def test_large_values_pass_and_too_large_ones_are_refused(shared_store: EtcdStore) -> None:
    store = shared_store
    large = bytes(range(256)) * 4096  # 1 MiB
    async with store.watch("/big/") as watch:
        await snapshot_of(watch)
        for number in range(6):
            await store.put(f"/big/{number}", large)
        assert [value for _, value in await events_of(watch, 6)] == [large] * 6
    assert [item.value for item in (await store.range("/big/")).items] == [large] * 6
    for size in (2, 8):
        with pytest.raises(EtcdRequestRefused, match="smaller"):
            await store.put("/big/x", large * size)
    with pytest.raises(EtcdRequestRefused, match="too many operations"):
        await store.txn([], [Write(f"/{number}", b"") for number in range(200)])


async def test_a_session_that_starts_before_etcd_finds_it(etcd: EtcdServer) -> None:
    await etcd.astop()
    async with session(etcd.endpoint) as store, store.watch("/w/") as watch, store.lease(ttl_s=TTL_S) as lease:
        lease.put("/w/me", b"1")
        with pytest.raises(EtcdUnavailable):
            await store.range("/w/")
        assert not watch.connected
        assert watch.synced_age_s == float("inf")
        await etcd.astart()
        await settled(lease)
        picture = await snapshot_of(watch)
        if not picture:
            assert await events_of(watch, 1) == [("/w/me", b"1")]


async def test_a_write_whose_answer_is_lost_says_that_it_may_have_happened(etcd: EtcdServer, store: EtcdStore) -> None:
    await store.put("/a", b"1")
    writing = asyncio.ensure_future(_write_until_it_fails(store))
    await asyncio.sleep(0)
    await etcd.akill()
    error = await writing
    assert isinstance(error, EtcdUnavailable)
    if isinstance(error, OutcomeUnknown):
        assert "not known" in error.message


async def _write_until_it_fails(store: EtcdStore) -> Exception:
    while True:
        try:
            await store.put("/a", b"2")
        except EtcdUnavailable as error:
            return error


async def test_a_closed_session_says_so(shared: EtcdServer) -> None:
    async with session(shared.endpoint) as store:
        assert (await store.version()).startswith("3.")
    with pytest.raises(EtcdUnavailable, match="closed"):
        await store.get("/a")
