"""What every KeyValueStore keeps: one body for etcd and for the in-memory store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.keyvalue import (
    Changes,
    Delete,
    EtcdRequestRefused,
    KeyValueStore,
    LeaseNotFound,
    Put,
    Read,
    Remove,
    RevisionGone,
    Snapshot,
    Write,
    absent,
    created_at,
    unchanged,
)
from runtime.memory_store import MemoryStore
from tests.support.etcd import EtcdServer, running_etcd
from tests.support.waiting import events_of, eventually, snapshot_of, update_of

Store = EtcdStore | MemoryStore


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with running_etcd() as server:
        yield server


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        async with MemoryStore() as memory:
            yield memory
        return
    server: EtcdServer = request.getfixturevalue("etcd")
    async with EtcdStore(EtcdSettings.at(server.endpoint)) as session:
        await session.delete_prefix("")
        yield session


def follows_protocol(store: Store) -> KeyValueStore:
    """mypy proves here that both keep the Protocol."""
    return store


async def test_a_key_that_was_never_written_is_none(store: Store) -> None:
    assert await follows_protocol(store).get("/absent") is None


async def test_what_is_put_is_got_with_its_revisions(store: Store) -> None:
    first = await store.put("/a", b"1")
    second = await store.put("/a", b"\x00\xff")
    item = await store.get("/a")
    assert item is not None
    assert (item.value, item.create_revision, item.mod_revision, item.version, item.lease_id) == (
        b"\x00\xff",
        first,
        second,
        2,
        0,
    )
    assert second == first + 1


async def test_a_key_may_be_any_text(store: Store) -> None:
    await store.put("/größe/水 \x00", b"x")
    assert [item.key for item in (await store.range("/größe/")).items] == ["/größe/水 \x00"]


async def test_an_empty_key_is_refused(store: Store) -> None:
    with pytest.raises(EtcdRequestRefused, match="needs a name"):
        await store.put("", b"x")
    with pytest.raises(EtcdRequestRefused):
        await store.get("")


async def test_a_range_holds_the_prefix_and_nothing_beside_it(store: Store) -> None:
    for key in ("/a/2", "/a/1", "/a", "/a0", "/b/1", "/a/\U0010ffff"):
        await store.put(key, key.encode())
    snapshot = await store.range("/a/")
    assert [item.key for item in snapshot.items] == ["/a/1", "/a/2", "/a/\U0010ffff"]
    assert snapshot.revision == await store.put("/z", b"") - 1
    assert len((await store.range("")).items) == 7


async def test_a_range_of_many_keys_is_whole_and_in_order(store: Store) -> None:
    keys = [f"/many/{number:04}" for number in range(600)]
    for start in range(0, 600, 100):
        await store.txn([], [Write(key, b"v") for key in keys[start : start + 100]])
    assert [item.key for item in (await store.range("/many/")).items] == keys


async def test_delete_says_whether_there_was_something(store: Store) -> None:
    await store.put("/a", b"1")
    assert await store.delete("/a")
    assert not await store.delete("/a")
    assert await store.get("/a") is None


async def test_delete_prefix_counts(store: Store) -> None:
    for key in ("/p/1", "/p/2", "/q"):
        await store.put(key, b"")
    assert await store.delete_prefix("/p/") == 2
    assert await store.delete_prefix("/p/") == 0
    assert await store.get("/q") is not None


async def test_compare_and_swap_lets_one_of_two_writers_win(store: Store) -> None:
    revision = await store.put("/a", b"1")
    first = await store.txn([unchanged("/a", revision)], [Write("/a", b"2")], [Read("/a")])
    second = await store.txn([unchanged("/a", revision)], [Write("/a", b"3")], [Read("/a")])
    assert (first.succeeded, second.succeeded) == (True, False)
    (seen,) = second.reads
    assert seen is not None
    assert (seen.value, seen.mod_revision) == (b"2", first.revision)


async def test_only_one_creates(store: Store) -> None:
    results = await asyncio.gather(*(store.txn([absent("/leader")], [Write("/leader", b"%d" % n)]) for n in range(5)))
    assert sorted(result.succeeded for result in results) == [False, False, False, False, True]


async def test_a_write_is_fenced_by_the_key_that_was_created(store: Store) -> None:
    elected = await store.txn([absent("/leader")], [Write("/leader", b"me")])
    assert (await store.txn([created_at("/leader", elected.revision)], [Write("/x", b"1")])).succeeded
    await store.delete("/leader")
    await store.put("/leader", b"another")
    assert not (await store.txn([created_at("/leader", elected.revision)], [Write("/x", b"2")])).succeeded
    item = await store.get("/x")
    assert item is not None
    assert item.value == b"1"


async def test_a_transaction_is_one_revision_and_reads_what_it_wrote(store: Store) -> None:
    before = await store.put("/b", b"old")
    result = await store.txn([], [Write("/a", b"1"), Read("/a"), Remove("/b"), Read("/b"), Remove("/never")])
    assert result.succeeded
    assert result.revision == before + 1
    written, removed = result.reads
    assert written is not None
    assert (written.value, written.mod_revision) == (b"1", before + 1)
    assert removed is None


async def test_a_transaction_that_changes_nothing_makes_no_revision(store: Store) -> None:
    before = await store.put("/a", b"1")
    assert (await store.txn([], [Read("/a"), Remove("/never")])).revision == before


async def test_a_key_may_be_written_once_in_a_transaction(store: Store) -> None:
    with pytest.raises(EtcdRequestRefused):
        await store.txn([], [Write("/a", b"1"), Write("/a", b"2")])


async def test_a_put_with_an_unknown_lease_is_refused(store: Store) -> None:
    with pytest.raises(LeaseNotFound):
        await store.put("/a", b"1", lease_id=12345)
    with pytest.raises(LeaseNotFound):
        await store.txn([], [Write("/a", b"1", lease_id=12345)])
    assert (await store.txn([absent("/a")], [], [Write("/a", b"1", lease_id=12345)])).succeeded


async def test_a_lease_that_is_revoked_takes_its_keys_along(store: Store) -> None:
    granted = await store.grant_lease(30)
    await store.put("/kept", b"1")
    await store.put("/gone", b"1", lease_id=granted.lease_id)
    await store.put("/saved", b"1", lease_id=granted.lease_id)
    await store.put("/saved", b"2")
    assert await store.lease_keys(granted.lease_id) == frozenset({"/gone"})
    assert await store.renew_lease(granted.lease_id) == granted.ttl_s
    await store.revoke_lease(granted.lease_id)
    assert [item.key for item in (await store.range("/")).items] == ["/kept", "/saved"]
    for ask in (store.renew_lease, store.lease_keys, store.revoke_lease):
        with pytest.raises(LeaseNotFound):
            await ask(granted.lease_id)


async def test_a_lease_that_nobody_renews_ends(store: Store) -> None:
    granted = await store.grant_lease(1)
    await store.put("/gone", b"1", lease_id=granted.lease_id)
    async with store.watch("/") as watch:
        assert await snapshot_of(watch) == {"/gone": b"1"}
        assert await events_of(watch, 1) == [("/gone", None)]


async def test_history_is_there_until_it_is_compacted(store: Store) -> None:
    first = await store.put("/a", b"1")
    second = await store.put("/a", b"2")
    assert [stamp.mod_revision for stamp in (await store.stamps_at("/", first)).values()] == [first]
    with pytest.raises(RevisionGone):
        await store.stamps_at("/", second + 100)
    await store.compact(second)
    with pytest.raises(RevisionGone):
        await store.stamps_at("/", first)
    assert [stamp.mod_revision for stamp in (await store.stamps_at("/", second)).values()] == [second]
    with pytest.raises(RevisionGone):
        async with store.changes("/", first - 1) as stream:
            await stream.read()


async def test_a_watch_gives_what_is_there_then_what_happens(store: Store) -> None:
    await store.put("/w/1", b"1")
    async with store.watch("/w/") as watch:
        snapshot = await update_of(watch)
        assert isinstance(snapshot, Snapshot)
        assert [(item.key, item.value) for item in snapshot.items] == [("/w/1", b"1")]
        await eventually(lambda: watch.connected)
        assert watch.synced_age_s == 0.0
        await store.put("/beside", b"")
        written = await store.put("/w/2", b"2")
        await store.delete("/w/1")
        await store.txn([], [Write("/w/3", b"3"), Remove("/w/2")])
        update = await update_of(watch)
        assert isinstance(update, Changes)
        assert isinstance(update.events[0], Put)
        assert (update.events[0].item.value, update.events[0].item.mod_revision) == (b"2", written)
        found = list(update.events)
        while len(found) < 4:
            update = await update_of(watch)
            assert isinstance(update, Changes)
            found.extend(update.events)
        assert found[1] == Delete("/w/1", written + 1)
        assert {event.key for event in found[2:]} == {"/w/2", "/w/3"}
        assert update.revision == written + 2


async def test_watches_do_not_disturb_each_other(store: Store) -> None:
    async with store.watch("/a/") as one, store.watch("/b/") as other:
        assert await snapshot_of(one) == await snapshot_of(other) == {}
        await store.put("/a/x", b"1")
        await store.put("/b/y", b"2")
        assert await events_of(one, 1) == [("/a/x", b"1")]
        assert await events_of(other, 1) == [("/b/y", b"2")]


async def test_waiting_for_an_update_may_be_given_up(store: Store) -> None:
    async with store.watch("/w/") as watch:
        await snapshot_of(watch)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await update_of(watch, patience_s=0.01)
        await store.put("/w/1", b"1")
        assert await events_of(watch, 1) == [("/w/1", b"1")]


async def test_a_held_lease_writes_its_keys_and_takes_them_along(store: Store) -> None:
    async with store.watch("/l/") as watch:
        assert await snapshot_of(watch) == {}
        async with store.lease(ttl_s=30) as lease:
            lease.put("/l/1", b"1")
            async with asyncio.timeout(10):
                await lease.settle()
            assert lease.healthy
            item = await store.get("/l/1")
            assert item is not None
            assert item.lease_id == lease.id
            lease.put("/l/1", b"2")
            lease.put("/l/2", b"x")
            lease.delete("/l/2")
            lease.put("/l/3", b"3")
            async with asyncio.timeout(10):
                await lease.settle()
            assert [(item.key, item.value) for item in (await store.range("/l/")).items] == [("/l/1", b"2"), ("/l/3", b"3")]
            lease.delete("/l/3")
            async with asyncio.timeout(10):
                await lease.settle()
            assert await store.get("/l/3") is None
        assert not lease.healthy
        assert lease.id == 0
        assert await store.get("/l/1") is None
        assert (await events_of(watch, 5))[-1] == ("/l/1", None)


async def test_deleting_spares_a_key_that_somebody_else_took_over(store: Store) -> None:
    async with store.lease(ttl_s=30) as lease:
        lease.put("/l/1", b"mine")
        async with asyncio.timeout(10):
            await lease.settle()
        await store.put("/l/1", b"theirs")
        lease.delete("/l/1")
        async with asyncio.timeout(10):
            await lease.settle()
        item = await store.get("/l/1")
        assert item is not None
        assert item.value == b"theirs"
