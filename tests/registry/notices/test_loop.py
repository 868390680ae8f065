"""The loop that tells: what was committed reaches etcd whoever dies and whatever goes away, and nothing else stays there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.notices.loop import Teller
from registry.schema import REGISTRY
from runtime.backoff import Backoff
from runtime.clock import SystemClock
from runtime.database import Database, DatabaseUnavailable
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import REGISTRY_PREFIX, ModelName, TenantId, model_notice_key
from runtime.keyvalue import Compare, Step, TxnResult, Write
from runtime.memory_store import MemoryStore
from runtime.notices import ModelNotice, NoticeBoard, model_notice_of, model_payload
from runtime.records import RecordVerifier, sign_record
from runtime.watch import WatchTiming
from tests.registry.harness import Ground, ground_on
from tests.registry.notices.world import QUICK, World, telling
from tests.support.waiting import PATIENCE_S

WATCH = WatchTiming(backoff=Backoff(0.01, 1.0, 0.01))


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> tuple[NodeIdentity, NodeIdentity]:
    folder = tmp_path_factory.mktemp("registries")
    authority = Authority.open(folder / "ca")
    return authority.enrol(folder / "one", Role.REGISTRY), authority.enrol(folder / "two", Role.REGISTRY)


@pytest.fixture
def registry(registries: tuple[NodeIdentity, NodeIdentity]) -> NodeIdentity:
    return registries[0]


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    async with MemoryStore(watch_timing=WATCH) as opened:
        yield opened


@pytest.fixture
def world(sqlite_ground: Ground) -> World:
    return World(sqlite_ground)


class Heard:
    """A board that follows, and waits for what it is to know."""

    def __init__(self) -> None:
        self.board = NoticeBoard()
        self.keys: list[str] = []
        self._changed = asyncio.Event()
        self.board.on_key.append(self.keys.append)
        for listeners in (self.board.on_model, self.board.on_key, self.board.revocations.listeners):
            listeners.append(lambda _: self._changed.set())

    def notice(self, model: str) -> ModelNotice | None:
        return self.board.model(ModelName(model))

    def generation(self, model: str) -> int:
        notice = self.notice(model)
        return notice.generation if notice is not None else 0

    async def knows(self, model: str, generation: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.generation(model) < generation:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def hearing(store: MemoryStore, identity: NodeIdentity) -> AsyncIterator[Heard]:
    heard = Heard()
    async with heard.board.following(store, RecordVerifier(identity.authority_pem)):
        yield heard


async def generation_at(store: MemoryStore, identity: NodeIdentity, model: str) -> int:
    """In etcd; 0 where there is nothing to be believed."""
    item = await store.get(model_notice_key(ModelName(model)))
    if item is None:
        return 0
    try:
        record = RecordVerifier(identity.authority_pem).open(item.value, now_wall_s=SystemClock().wall_s())
        return model_notice_of(item.key, record).generation
    except Exception:
        return 0


async def reaches(store: MemoryStore, identity: NodeIdentity, model: str, generation: int) -> None:
    """Return when etcd has it; what happens there can only be asked again."""
    async with asyncio.timeout(PATIENCE_S):
        while await generation_at(store, identity, model) != generation:
            await asyncio.sleep(0.005)


async def emptied(world: World) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await world.outbox():
            await asyncio.sleep(0.005)


async def test_what_is_committed_is_told(ground: Ground, store: MemoryStore, registry: NodeIdentity) -> None:
    world = World(ground)
    await world.add_key("k")
    await world.add_node("n")
    async with hearing(store, registry) as heard, telling(ground, store, registry, replace(QUICK, poll_s=60)):
        await world.add_model("m", numbers=(1, 2))
        await heard.knows("m", 1)
        await world.withdraw("m", 1)
        await heard.knows("m", 2)
        notice = heard.notice("m")
        assert notice is not None
        assert notice.withdrawn_versions == {"1"}
        await world.revoke_key("k")
        await world.revoke_node("n")
        async with asyncio.timeout(PATIENCE_S):
            while heard.keys != ["k"] or "n" not in heard.board.revocations:
                await asyncio.sleep(0.005)
        await emptied(world)


async def test_on_start_everything_is_compared(world: World, store: MemoryStore, registry: NodeIdentity) -> None:
    for number in range(150):  # more than a page
        await world.add_model(f"m{number}", told=False)
    await world.add_node("n", revoked_at_ms=5)
    async with hearing(store, registry) as heard, telling(world.ground, store, registry):
        async with asyncio.timeout(PATIENCE_S):
            while len(heard.board.models) < 150 or "n" not in heard.board.revocations:
                await asyncio.sleep(0.01)


async def test_what_a_replica_did_not_live_to_tell_another_tells(
    ground: Ground, store: MemoryStore, registries: tuple[NodeIdentity, NodeIdentity]
) -> None:
    """The first one commits and tells nobody; the second has a database of its own open, so nobody wakes it."""
    second = registries[1]
    async with ground_on(ground.address) as other, hearing(store, second) as heard, telling(other, store, second):
        await World(ground).add_model("m")
        await heard.knows("m")
        await emptied(World(other))


async def test_two_replicas_agree(ground: Ground, store: MemoryStore, registries: tuple[NodeIdentity, NodeIdentity]) -> None:
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(ground_on(ground.address))
        worlds = World(ground), World(other)
        for number in range(5):
            await worlds[0].add_model(f"m{number}")
        for each, identity in ((ground, registries[0]), (other, registries[1])):
            await stack.enter_async_context(telling(each, store, identity))

        async def change(number: int) -> None:
            for turn in range(8):
                await worlds[(number + turn) % 2].point(f"m{number}", "stable", turn % 2)

        await asyncio.gather(*(change(number) for number in range(5)))
        await emptied(worlds[0])
        for number in range(5):
            assert await generation_at(store, registries[0], f"m{number}") == 9


class RacingStore(MemoryStore):
    """Somebody else is quicker, once: between what was read and what is written."""

    quicker: tuple[str, bytes] | None = None

    async def txn(self, compares: Sequence[Compare], success: Sequence[Step], failure: Sequence[Step] = ()) -> TxnResult:
        if self.quicker is not None and any(isinstance(step, Write) for step in success):
            (key, value), self.quicker = self.quicker, None
            await super().txn((), (Write(key, value),))
        return await super().txn(compares, success, failure)


async def test_what_somebody_wrote_meanwhile_is_not_written_over(
    world: World, registries: tuple[NodeIdentity, NodeIdentity]
) -> None:
    newer = ModelNotice(ModelName("m"), TenantId("acme"), frozenset(), generation=5)
    async with RacingStore(watch_timing=WATCH) as store:
        store.quicker = model_notice_key(newer.model), sign_record(registries[1], model_payload(newer))
        await world.add_model("m")
        async with telling(world.ground, store, registries[0]):
            await emptied(world)
            assert await generation_at(store, registries[0], "m") == 5


async def test_an_etcd_that_came_back_empty_is_told_everything(
    world: World, store: MemoryStore, registry: NodeIdentity
) -> None:
    await world.add_node("n", revoked_at_ms=5)
    async with telling(world.ground, store, registry):
        for model in ("a", "b"):
            await world.add_model(model)
            await reaches(store, registry, model, 1)
        store.go_away()
        store.come_back(empty=True)
        for model in ("a", "b"):
            await reaches(store, registry, model, 1)
        assert await store.get(f"{REGISTRY_PREFIX}nodes/n") is not None


async def test_nothing_is_lost_while_etcd_is_away(world: World, store: MemoryStore, registry: NodeIdentity) -> None:
    await world.add_model("m")
    async with telling(world.ground, store, registry):
        await reaches(store, registry, "m", 1)
        await emptied(world)
        store.go_away()
        for number in range(2, 6):
            await world.add_version("m", number)
        assert await world.outbox() == 4
        store.come_back()
        await reaches(store, registry, "m", 5)
        await emptied(world)


class MoodyDatabase(Database):
    away = False

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        if self.away:
            raise DatabaseUnavailable("the database is away")
        async with super().reading() as connection:
            yield connection


async def test_nothing_is_lost_while_the_database_is_away(world: World, store: MemoryStore, registry: NodeIdentity) -> None:
    ground = world.ground
    moody = MoodyDatabase(ground.database._engine, REGISTRY)
    moody.on_commit = ground.database.on_commit
    moody.away = True
    teller = Teller(moody, ground.seals, ground.trail, store, registry, SystemClock(), QUICK)
    with structlog.testing.capture_logs() as logs:
        async with teller.running():
            await world.add_model("m")
            async with asyncio.timeout(PATIENCE_S):
                while not logs:
                    await asyncio.sleep(0.005)
            moody.away = False
            await reaches(store, registry, "m", 1)
    assert logs[0]["event"] in ("telling_failed", "watch_synced")


@pytest.mark.parametrize("damage", ["deleted", "forged", "older", "another's"])
async def test_a_notice_that_somebody_spoiled_is_put_right(
    world: World, store: MemoryStore, registry: NodeIdentity, damage: str, tmp_path: Path
) -> None:
    await world.add_model("m")
    key = model_notice_key(ModelName("m"))
    async with telling(world.ground, store, registry):
        await reaches(store, registry, "m", 1)
        older = await store.get(key)
        assert older is not None
        await world.add_version("m", 2)
        await reaches(store, registry, "m", 2)
        good = await store.get(key)
        assert good is not None
        if damage == "deleted":
            await store.delete(key)
        elif damage == "forged":
            await store.put(key, good.value[:-1] + b"\0")
        elif damage == "older":
            await store.put(key, older.value)
        else:
            stranger = Authority.open(tmp_path / "ca").enrol(tmp_path / "r", Role.REGISTRY)
            notice = ModelNotice(ModelName("m"), TenantId("evil"), frozenset("*"), generation=99)
            await store.put(key, sign_record(stranger, model_payload(notice)))
        await reaches(store, registry, "m", 2)


async def test_a_notice_of_another_release_is_left_as_it_is(
    world: World, store: MemoryStore, registries: tuple[NodeIdentity, NodeIdentity]
) -> None:
    """Two releases with different words for the same thing would correct each other for ever."""
    await world.add_model("m")
    await world.add_model("end", told=False)
    key = model_notice_key(ModelName("m"))
    async with telling(world.ground, store, registries[0]):
        await reaches(store, registries[0], "end", 1)
        await reaches(store, registries[0], "m", 1)
        other = ModelNotice(ModelName("m"), TenantId("acme"), frozenset({"in other words"}), generation=1)
        theirs = sign_record(registries[1], model_payload(other))
        await store.put(key, theirs)
        for generation in range(2, 6):  # the loop takes its turns meanwhile
            await world.add_version("end", generation)
            await reaches(store, registries[0], "end", generation)
        found = await store.get(key)
        assert found is not None
        assert found.value == theirs


async def test_a_database_that_was_put_back_does_not_take_back_what_was_told(
    world: World, store: MemoryStore, registry: NodeIdentity
) -> None:
    await world.add_model("m")
    newer = ModelNotice(ModelName("m"), TenantId("acme"), frozenset(), withdrawn=frozenset(), generation=7)
    await store.put(model_notice_key(ModelName("m")), sign_record(registry, model_payload(newer)))
    with structlog.testing.capture_logs() as logs:
        async with telling(world.ground, store, registry):
            await emptied(world)
    assert await generation_at(store, registry, "m") == 7
    assert "database_older_than_told" in {line["event"] for line in logs}


async def test_an_edited_row_is_told_by_nobody_and_holds_up_nobody(
    world: World, store: MemoryStore, registry: NodeIdentity
) -> None:
    await world.add_model("m", told=False)
    await world.ground.execute("UPDATE models SET tenant = 'globex'")
    async with telling(world.ground, store, registry):
        await world.add_model("sound")
        await reaches(store, registry, "sound", 1)
        await world.ground.execute("INSERT INTO outbox (kind, subject, at_ms) VALUES ('model', 'm', 0)")
        for turn in range(2, 5):
            await world.add_version("sound", turn)
            await reaches(store, registry, "sound", turn)
        assert await world.outbox() >= 1, "it stays to be told"
        assert await generation_at(store, registry, "m") == 0
        assert (await world.ground.actions()).count(("tampering", "model m", "failed")) == 1
        await world.ground.execute("UPDATE models SET tenant = 'acme'")
        await reaches(store, registry, "m", 1)
        await emptied(world)


async def test_key_notices_go_away(world: World, store: MemoryStore, registry: NodeIdentity) -> None:
    await world.add_key("k")
    async with telling(world.ground, store, registry, replace(QUICK, key_notice_s=0.3)):
        await world.revoke_key("k")
        seen = False
        async with asyncio.timeout(PATIENCE_S):
            while not seen or await store.get(f"{REGISTRY_PREFIX}keys/k") is not None:
                seen = seen or await store.get(f"{REGISTRY_PREFIX}keys/k") is not None
                await asyncio.sleep(0.005)


async def test_a_node_notice_goes_away_with_the_certificate(world: World, store: MemoryStore, registry: NodeIdentity) -> None:
    soon_ms = int((SystemClock().wall_s() + 0.4) * 1000)
    await world.add_node("n", certificate_expires_at_ms=soon_ms, revoked_at_ms=5)
    key = f"{REGISTRY_PREFIX}nodes/n"
    async with telling(world.ground, store, registry, replace(QUICK, compare_s=0.1)):
        seen = False
        async with asyncio.timeout(PATIENCE_S):
            while not seen or await store.get(key) is not None:
                seen = seen or await store.get(key) is not None
                await asyncio.sleep(0.005)


async def test_what_a_revoked_registry_signed_is_said_by_another(
    world: World, store: MemoryStore, registries: tuple[NodeIdentity, NodeIdentity]
) -> None:
    first, second = registries
    await world.add_model("m")
    await world.add_node(first.node_id)
    async with telling(world.ground, store, first):
        await reaches(store, first, "m", 1)
    before = await store.get(model_notice_key(ModelName("m")))
    async with telling(world.ground, store, second):
        await emptied(world)
        await world.revoke_node(first.node_id)
        async with asyncio.timeout(PATIENCE_S):
            while (now := await store.get(model_notice_key(ModelName("m")))) == before:
                await asyncio.sleep(0.005)
    assert now is not None
    assert RecordVerifier(first.authority_pem).open(now.value, now_wall_s=0).signer.node_id == second.node_id
    with structlog.testing.capture_logs() as logs:  # and the revoked one is silent
        async with telling(world.ground, store, first):
            async with asyncio.timeout(PATIENCE_S):
                while "revoked_registry_is_silent" not in {line["event"] for line in logs}:
                    await asyncio.sleep(0.005)
            await world.add_version("m", 2)
            async with telling(world.ground, store, second):
                await reaches(store, second, "m", 2)
    found = await store.get(model_notice_key(ModelName("m")))
    assert found is not None
    assert RecordVerifier(first.authority_pem).open(found.value, now_wall_s=0).signer.node_id == second.node_id


async def test_leaving_ends_the_loop(world: World, store: MemoryStore, registry: NodeIdentity) -> None:
    tasks, listeners = len(asyncio.all_tasks()), len(world.ground.database.on_commit)
    async with telling(world.ground, store, registry):
        await world.add_model("m")
    assert (len(asyncio.all_tasks()), len(world.ground.database.on_commit)) == (tasks, listeners)
