"""That the limits are others reaches whoever follows: from a commit, after an outage, out of an etcd that lost everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry.limits.limits import Limits
from registry.limits.sql import LimitSql
from registry.limits.types import Amounts, LimitSubject, LimitWish, Setter
from runtime.backoff import Backoff
from runtime.clock import SystemClock
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import LIMITS_NOTICE_KEY, ModelName, TenantId, model_notice_key
from runtime.memory_store import MemoryStore
from runtime.notice_records import LimitsNotice, limits_notice_of, limits_payload
from runtime.notices import NoticeBoard
from runtime.records import RecordVerifier, sign_record
from runtime.watch import WatchTiming
from tests.registry.harness import OPERATOR, Ground
from tests.registry.notices.world import World, telling
from tests.support.waiting import eventually

WATCH = WatchTiming(backoff=Backoff(0.01, 1.0, 0.01))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> NodeIdentity:
    folder: Path = tmp_path_factory.mktemp("registry")
    return Authority.open(folder / "ca").enrol(folder / "one", Role.REGISTRY)


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    async with MemoryStore(watch_timing=WATCH) as opened:
        yield opened


def office(ground: Ground) -> Limits:
    return Limits(ground.database, LimitSql(ground.seals), ground.trail, ground.clock)


async def change(ground: Ground, tenant: str = "acme", model: str = "") -> int:
    """Set a limit; the generation that the mesh is told of."""
    subject = LimitSubject(TenantId(tenant), model=ModelName(model), set_by=Setter.OPERATOR)
    return (await office(ground).set(OPERATOR, LimitWish(subject, Amounts(requests_per_s=1.0)))).generation


async def told(store: MemoryStore, identity: NodeIdentity) -> int:
    """The generation in etcd; 0 where there is none to be believed."""
    item = await store.get(LIMITS_NOTICE_KEY)
    if item is None:
        return 0
    record = RecordVerifier(identity.authority_pem).open(item.value, now_wall_s=SystemClock().wall_s())
    return limits_notice_of(item.key, record).generation


async def reaches(store: MemoryStore, identity: NodeIdentity, generation: int) -> None:
    async with asyncio.timeout(20):
        while await told(store, identity) != generation:
            await asyncio.sleep(0.005)


async def test_a_change_is_told_and_heard(ground: Ground, store: MemoryStore, registry: NodeIdentity) -> None:
    heard: list[int] = []
    board = NoticeBoard()
    board.on_limits.append(lambda: heard.append(board.limits_generation))
    async with board.following(store, RecordVerifier(registry.authority_pem)), telling(ground, store, registry):
        first = await change(ground)
        await eventually(lambda: board.limits_generation == first)
        limit = (await office(ground).all(OPERATOR, None))[0]
        await office(ground).remove(OPERATOR, limit.limit_id)
        await eventually(lambda: board.limits_generation > first)
    assert heard == sorted(set(heard)), "each once, and none that is older"
    assert await ground.count("outbox") == 0


async def test_what_was_committed_while_nobody_told_is_told_later(
    sqlite_ground: Ground, store: MemoryStore, registry: NodeIdentity
) -> None:
    await change(sqlite_ground)
    last = await change(sqlite_ground, "globex")
    await sqlite_ground.execute("DELETE FROM outbox")
    async with telling(sqlite_ground, store, registry):
        await reaches(store, registry, last)


async def test_an_etcd_that_lost_it_or_was_lied_to_is_told_again(
    sqlite_ground: Ground, store: MemoryStore, registry: NodeIdentity
) -> None:
    async with telling(sqlite_ground, store, registry):
        generation = await change(sqlite_ground)
        await reaches(store, registry, generation)
        await store.delete(LIMITS_NOTICE_KEY)
        await reaches(store, registry, generation)
        await store.put(LIMITS_NOTICE_KEY, b"nonsense")
        await reaches_believable(store, registry, generation)
        await store.put(LIMITS_NOTICE_KEY, sign_record(registry, limits_payload(LimitsNotice(generation - 1))))
        await reaches(store, registry, generation)


async def reaches_believable(store: MemoryStore, identity: NodeIdentity, generation: int) -> None:
    async with asyncio.timeout(20):
        while (item := await store.get(LIMITS_NOTICE_KEY)) is None or item.value == b"nonsense":
            await asyncio.sleep(0.005)
    await reaches(store, identity, generation)


async def test_without_limits_nothing_is_told_of_them(
    sqlite_ground: Ground, store: MemoryStore, registry: NodeIdentity
) -> None:
    async with telling(sqlite_ground, store, registry):
        await World(sqlite_ground).add_model("m")
        await eventually_there(store, model_notice_key(ModelName("m")))
        assert await store.get(LIMITS_NOTICE_KEY) is None


async def eventually_there(store: MemoryStore, key: str) -> None:
    async with asyncio.timeout(20):
        while await store.get(key) is None:
            await asyncio.sleep(0.005)
