"""What the registry tells: as bytes, and as a process that follows it knows it. Nothing forged is believed, none forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from runtime import notices
from runtime.backoff import Backoff
from runtime.clock import SystemClock
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import (
    REGISTRY_PREFIX,
    Digest,
    KeyId,
    ModelName,
    ModelVersion,
    NodeId,
    TenantId,
    key_notice_key,
    model_notice_key,
    node_notice_key,
)
from runtime.memory_store import MemoryStore
from runtime.notices import (
    AliasTarget,
    KeyNotice,
    ModelNotice,
    NodeNotice,
    NoticeBoard,
    NoticeRefused,
    PendingTarget,
    key_notice_of,
    key_payload,
    model_notice_of,
    model_payload,
    node_notice_of,
    node_payload,
)
from runtime.records import RecordVerifier, VerifiedRecord, sign_record
from runtime.watch import WatchTiming
from tests.support.waiting import eventually

QUICK = WatchTiming(backoff=Backoff(0.01, 1.0, 0.01))
NAMES = st.text("abcdefghij0123456789-_.", min_size=1, max_size=12)
VERSIONS = st.integers(1, 10**12).map(str)
DIGESTS = st.integers(0, 2**64).map(lambda number: Digest(f"{number:064x}"))
PENDING = st.builds(
    PendingTarget,
    VERSIONS.map(ModelVersion),
    DIGESTS,
    st.integers(0, 100),
    st.integers(0, 2**62),
    st.sampled_from(["", "canary"]),
)
ALIASES = st.lists(
    st.builds(
        AliasTarget,
        NAMES,
        st.just("") | VERSIONS.map(ModelVersion),
        DIGESTS,
        st.integers(0, 100),
        st.integers(0, 2**62),
        st.none() | PENDING,
    ),
    max_size=4,
    unique_by=lambda target: target.alias,
).map(lambda found: tuple(sorted(found, key=lambda target: target.alias)))
NOTICES = st.builds(
    ModelNotice,
    NAMES.map(ModelName),
    NAMES.map(TenantId),
    st.frozensets(NAMES | st.just("*"), max_size=4),
    ALIASES,
    st.frozensets(DIGESTS, max_size=4),
    st.frozensets(VERSIONS.map(ModelVersion), max_size=4),
    st.frozensets(NAMES, max_size=4),
    st.integers(0, 2**62),
)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NodeIdentity]:
    folder = tmp_path_factory.mktemp("notices")
    authority, others = Authority.open(folder / "ca"), Authority.open(folder / "other")
    return {
        "registry": authority.enrol(folder / "r", Role.REGISTRY),
        "second": authority.enrol(folder / "s", Role.REGISTRY),
        "worker": authority.enrol(folder / "w", Role.WORKER),
        "stranger": others.enrol(folder / "x", Role.REGISTRY),
    }


def notice(model: str = "m", generation: int = 1, tenant: str = "t", shared_with: tuple[str, ...] = ()) -> ModelNotice:
    return ModelNotice(ModelName(model), TenantId(tenant), frozenset(shared_with), generation=generation)


def record_of(identity: NodeIdentity, payload: bytes) -> VerifiedRecord:
    return RecordVerifier(identity.authority_pem).open(sign_record(identity, payload), now_wall_s=SystemClock().wall_s())


@given(NOTICES)
def test_a_model_notice_is_read_as_it_was_written(identities: dict[str, NodeIdentity], written: ModelNotice) -> None:
    record = record_of(identities["registry"], model_payload(written))
    assert model_notice_of(model_notice_key(written.model), record) == written


@given(NOTICES)
def test_the_same_notice_gives_the_same_bytes(written: ModelNotice) -> None:
    shuffled = ModelNotice(
        written.model,
        written.tenant,
        frozenset(sorted(written.shared_with, reverse=True)),
        tuple(reversed(written.aliases)),
        frozenset(sorted(written.withdrawn, reverse=True)),
        frozenset(sorted(written.withdrawn_versions, reverse=True)),
        written.revoked_signers,
        written.generation,
    )
    assert model_payload(shuffled) == model_payload(written)


def test_the_small_ones_are_read_as_they_were_written(identities: dict[str, NodeIdentity]) -> None:
    key, node = KeyNotice(KeyId("k"), 5), NodeNotice(NodeId("n"), 7)
    assert key_notice_of(key_notice_key(key.key_id), record_of(identities["registry"], key_payload(key))) == key
    assert node_notice_of(node_notice_key(node.node_id), record_of(identities["registry"], node_payload(node))) == node


@given(st.binary(max_size=200))
def test_garbage_that_a_registry_signed_is_refused_or_read(identities: dict[str, NodeIdentity], payload: bytes) -> None:
    record = VerifiedRecord(payload, record_of(identities["registry"], b"").signer)
    readers: list[tuple[Callable[[str, VerifiedRecord], object], str]] = [
        (model_notice_of, model_notice_key(ModelName("m"))),
        (key_notice_of, key_notice_key(KeyId("k"))),
        (node_notice_of, node_notice_key(NodeId("n"))),
    ]
    for read, key in readers:
        try:
            read(key, record)
        except NoticeRefused:
            continue


@asynccontextmanager
async def followed(identities: dict[str, NodeIdentity]) -> AsyncIterator[tuple[NoticeBoard, MemoryStore]]:
    async with MemoryStore(watch_timing=QUICK) as store:
        board = NoticeBoard()
        async with board.following(store, RecordVerifier(identities["registry"].authority_pem)):
            await eventually(lambda: board.synced)
            yield board, store


async def put_model(store: MemoryStore, identity: NodeIdentity, told: ModelNotice, *, under: str = "") -> None:
    await store.put(model_notice_key(ModelName(under) or told.model), sign_record(identity, model_payload(told)))


async def settled(board: NoticeBoard, store: MemoryStore, identity: NodeIdentity) -> None:
    """Everything that was put before was heard."""
    heard: list[KeyId] = []
    board.on_key.append(heard.append)
    await store.put(key_notice_key(KeyId("end")), sign_record(identity, key_payload(KeyNotice(KeyId("end"), 1))))
    await eventually(lambda: "end" in heard)
    board.on_key.remove(heard.append)


async def test_what_is_told_is_heard(identities: dict[str, NodeIdentity]) -> None:
    registry = identities["registry"]
    async with followed(identities) as (board, store):
        models: list[str] = []
        keys: list[str] = []
        nodes: list[str] = []
        board.on_model.append(models.append)
        board.on_key.append(keys.append)
        board.revocations.listeners.append(nodes.append)
        await put_model(store, registry, notice("m", 3, shared_with=("*",)))
        await store.put(node_notice_key(NodeId("n")), sign_record(registry, node_payload(NodeNotice(NodeId("n"), 1))))
        await settled(board, store, registry)
        assert (models, keys, nodes) == (["m"], ["end"], ["n"])
        assert board.model(ModelName("m")) == notice("m", 3, shared_with=("*",))
        assert "n" in board.revocations


@contextmanager
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What `runtime.notices` logs. With a logger of its own: one that other tests used first may be bound to their settings."""
    with pytest.MonkeyPatch.context() as patch, structlog.testing.capture_logs() as logs:
        patch.setattr(notices, "_log", structlog.get_logger("penstock.notices"))
        yield logs


async def test_what_is_not_a_registrys_word_changes_nothing(identities: dict[str, NodeIdentity]) -> None:
    registry, told = identities["registry"], notice("m", 1)
    forged = notice("m", 9, shared_with=("*",))
    good = sign_record(registry, model_payload(forged))
    async with followed(identities) as (board, store):
        await put_model(store, registry, told)
        with logged() as logs:
            for signer in ("worker", "stranger"):
                await put_model(store, identities[signer], forged)
                await store.put(
                    node_notice_key(NodeId("n")), sign_record(identities[signer], node_payload(NodeNotice(NodeId("n"), 1)))
                )
            for at in range(0, len(good), 7):
                await store.put(model_notice_key(ModelName("m")), good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            await put_model(store, registry, notice("another", 9, tenant="evil"), under="m")
            await put_model(store, registry, notice("m", 9, tenant=""))
            key_as_model = sign_record(registry, key_payload(KeyNotice(KeyId("m"), 9)))
            await store.put(model_notice_key(ModelName("m")), key_as_model)
            await store.put(f"{REGISTRY_PREFIX}unheard/of", good)
            await settled(board, store, registry)
        assert board.models == {"m": told}
        assert "n" not in board.revocations
        assert {line["event"] for line in logs} == {"notice_refused"}


async def test_an_older_notice_is_not_believed_again(identities: dict[str, NodeIdentity]) -> None:
    registry = identities["registry"]
    async with followed(identities) as (board, store):
        for generation in (5, 4, 5):
            await put_model(store, registry, notice("m", generation))
        await settled(board, store, registry)
        known = board.model(ModelName("m"))
        assert known is not None
        assert known.generation == 5


async def test_what_is_gone_from_etcd_is_not_forgotten(identities: dict[str, NodeIdentity]) -> None:
    registry = identities["registry"]
    resyncs: list[None] = []
    async with followed(identities) as (board, store):
        board.on_resync.append(lambda: resyncs.append(None))
        await put_model(store, registry, notice("m", 2))
        await store.put(node_notice_key(NodeId("n")), sign_record(registry, node_payload(NodeNotice(NodeId("n"), 1))))
        await settled(board, store, registry)
        await store.delete_prefix(REGISTRY_PREFIX)
        await settled(board, store, registry)
        store.go_away()
        store.come_back(empty=True)
        await eventually(lambda: len(resyncs) == 1)
        assert board.models == {"m": notice("m", 2)}
        assert "n" in board.revocations
        await put_model(store, registry, notice("m", 3))
        await eventually(lambda: board.models["m"].generation == 3)  # type: ignore[index]


async def test_a_revoked_registry_grants_nothing_and_may_have_taken(identities: dict[str, NodeIdentity]) -> None:
    registry, second = identities["registry"], identities["second"]
    async with MemoryStore(watch_timing=QUICK) as store:
        # As a process that starts now finds it: in the order of the keys the model comes before the node.
        await put_model(store, second, notice("theirs", 1, shared_with=("*",)))
        await put_model(store, registry, notice("ours", 1))
        for who, by in ((second.node_id, registry), (NodeId("n"), second)):
            await store.put(node_notice_key(who), sign_record(by, node_payload(NodeNotice(who, 1))))
        board = NoticeBoard()
        async with board.following(store, RecordVerifier(registry.authority_pem)):
            await eventually(lambda: board.synced)
            assert set(board.models) == {"ours"}
            assert "n" in board.revocations


async def test_a_listener_that_fails_keeps_nobody_from_hearing(identities: dict[str, NodeIdentity]) -> None:
    registry = identities["registry"]
    async with followed(identities) as (board, store):
        board.on_model.append(lambda model: 1 / 0)  # type: ignore[arg-type]
        with logged() as logs:
            await put_model(store, registry, notice("m", 1))
            await settled(board, store, registry)
        assert [line["event"] for line in logs] == ["notice_not_taken"]


async def test_a_large_mesh_does_not_hold_up_the_loop(identities: dict[str, NodeIdentity]) -> None:
    registry = identities["registry"]
    async with MemoryStore(watch_timing=QUICK) as store:
        for number in range(300):
            await put_model(store, registry, notice(f"m{number}", 1))
        board, turns = NoticeBoard(), 0
        async with board.following(store, RecordVerifier(registry.authority_pem)):
            while not board.synced:
                turns += bool(board.models)
                await asyncio.sleep(0)
        assert len(board.models) == 300
        assert turns >= 300 // 32


async def test_leaving_ends_the_following(identities: dict[str, NodeIdentity]) -> None:
    tasks = len(asyncio.all_tasks())
    async with followed(identities):
        pass
    assert len(asyncio.all_tasks()) == tasks
