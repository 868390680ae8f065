"""From a commit in the registry to a refusal at a gateway's door, over a real etcd: within a second, whatever dies."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from inference import grpc_service_pb2 as pb

from gateway.admission import KeyFacts
from registry.notices.loop import TellerTiming
from runtime.clock import SystemClock
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import KeyId, ModelName, TenantId, model_notice_key, node_notice_key
from runtime.notices import ModelNotice, NodeNotice, NoticeBoard, model_payload, node_payload
from runtime.records import RecordVerifier, sign_record
from tests.gateway.edge import GatewayUnderTest, gateway_under_test
from tests.gateway.fakes import copy_of, worker_of
from tests.registry.harness import Ground, ground_on
from tests.registry.notices.world import World, digest_of, telling
from tests.support.etcd import EtcdServer, running_etcd
from tests.support.waiting import eventually

Code = grpc.StatusCode
WITHIN_S = 1.0
OWN, FOREIGN = "sk-own", "sk-foreign"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NodeIdentity]:
    folder = tmp_path_factory.mktemp("nodes")
    authority = Authority.open(folder / "ca")
    roles = {"one": Role.REGISTRY, "two": Role.REGISTRY, "worker": Role.WORKER, "gateway": Role.GATEWAY}
    return {name: authority.enrol(folder / name, role) for name, role in roles.items()}


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with running_etcd() as server:
        yield server


class Front:
    """A gateway over a real etcd, with two workers that say they hold versions 1 and 2 of model m."""

    def __init__(self, gateway: GatewayUnderTest, board: NoticeBoard) -> None:
        self.gateway, self.board = gateway, board

    async def infer(self, version: str = "", secret: str = OWN) -> grpc.StatusCode:
        payload = pb.ModelInferRequest(model_name="m", model_version=version).SerializeToString()
        call: Any = self.gateway.raw()(payload, metadata=(("authorization", f"Bearer {secret}"),), timeout=10)
        try:
            await call
        except grpc.aio.AioRpcError as failure:
            return failure.code()
        return Code.OK

    async def answers(self, code: grpc.StatusCode, version: str = "", secret: str = OWN, *, within_s: float = WITHIN_S) -> None:
        async with asyncio.timeout(within_s):
            while await self.infer(version, secret) is not code:
                await asyncio.sleep(0.005)

    async def version(self) -> str:
        """Which one a request gets that names none."""
        before = self._asked()
        assert await self.infer() is Code.OK
        (found,) = self._asked() - before
        return found

    def _asked(self) -> Counter[str]:
        return Counter(version for link in self.gateway.links.values() for version in link.versions)


def facts(key_id: str, tenant: str) -> KeyFacts:
    return KeyFacts(KeyId(key_id), TenantId(tenant))


@asynccontextmanager
async def front(etcd: EtcdServer, nodes: dict[str, NodeIdentity]) -> AsyncIterator[Front]:
    board = NoticeBoard()
    copies = [replace(copy_of("m", str(number)), digest=digest_of("m", number)) for number in (1, 2)]
    workers = [worker_of(nodes["worker"].node_id, *copies), worker_of("other", *copies)]
    async with EtcdStore(EtcdSettings.at(etcd.endpoint)) as store:
        async with (
            board.following(store, RecordVerifier(nodes["gateway"].authority_pem)),
            gateway_under_test(*workers, board=board, cold_wait_s=10) as gateway,
        ):
            for secret, key in ((OWN, facts("k1", "acme")), (FOREIGN, facts("k2", "globex"))):
                gateway.directory.keys[hashlib.sha256(secret.encode()).digest()] = key
            yield Front(gateway, board)


@asynccontextmanager
async def registry(
    ground: Ground, etcd: EtcdServer, identity: NodeIdentity, timing: TellerTiming | None = None
) -> AsyncIterator[None]:
    """With the timing that it has in earnest."""
    async with EtcdStore(EtcdSettings.at(etcd.endpoint)) as store, telling(ground, store, identity, timing or TellerTiming()):
        yield


@pytest.fixture
async def world(ground: Ground, etcd: EtcdServer) -> AsyncIterator[World]:
    yield World(ground)
    async with EtcdStore(EtcdSettings.at(etcd.endpoint)) as store:
        await store.delete_prefix("/penstock/")


@pytest.fixture
async def mesh(world: World, etcd: EtcdServer, nodes: dict[str, NodeIdentity]) -> AsyncIterator[Front]:
    """Everything runs, and model m is told of."""
    await world.add_model("m", numbers=(1, 2))
    await world.add_key("k1")
    await world.add_node(nodes["worker"].node_id)
    async with registry(world.ground, etcd, nodes["one"]), front(etcd, nodes) as opened:
        await opened.answers(Code.OK, within_s=10)
        yield opened


async def test_a_revoked_key(mesh: Front, world: World) -> None:
    assert await mesh.infer() is Code.OK
    del mesh.gateway.directory.keys[hashlib.sha256(OWN.encode()).digest()]
    assert await mesh.infer() is Code.OK, "it is still known here"
    await world.revoke_key("k1")
    await mesh.answers(Code.UNAUTHENTICATED)


async def test_a_withdrawn_version(mesh: Front, world: World) -> None:
    assert await mesh.infer("2") is Code.OK
    await world.withdraw("m", 2)
    await mesh.answers(Code.NOT_FOUND, "2")
    assert await mesh.version() == "1", "the newest that is not withdrawn"


async def test_an_alias_that_was_moved(mesh: Front, world: World) -> None:
    await world.point("m", "stable", 1)
    await mesh.answers(Code.OK, "stable")
    assert await mesh.version() == "1"
    await world.point("m", "stable", 1, pending_number=2)
    await eventually(lambda: mesh.board.models[ModelName("m")].generation == 3, patience_s=WITHIN_S)
    assert await mesh.version() == "1", "it is still being warmed"
    await world.point("m", "stable", 2)
    async with asyncio.timeout(WITHIN_S):
        while await mesh.version() != "2":
            await asyncio.sleep(0.005)


async def test_sharing_that_was_taken_back(mesh: Front, world: World) -> None:
    assert await mesh.infer(secret=FOREIGN) is Code.NOT_FOUND
    await world.share("m", "globex")
    await mesh.answers(Code.OK, secret=FOREIGN)
    await world.share("m")
    await mesh.answers(Code.NOT_FOUND, secret=FOREIGN)


async def test_a_revoked_node(mesh: Front, world: World, nodes: dict[str, NodeIdentity]) -> None:
    revoked = nodes["worker"].node_id
    await world.revoke_node(revoked)
    await eventually(lambda: revoked in mesh.board.revocations, patience_s=WITHIN_S)
    link = mesh.gateway.links[revoked]
    asked = link.calls
    for _ in range(4):
        assert await mesh.infer() is Code.OK
    assert link.calls == asked


async def test_a_replica_that_died_after_its_commit(
    ground: Ground, world: World, etcd: EtcdServer, nodes: dict[str, NodeIdentity]
) -> None:
    async with AsyncExitStack() as stack:
        await world.add_model("m", numbers=(1, 2))
        other = await stack.enter_async_context(ground_on(ground.address))
        await stack.enter_async_context(registry(other, etcd, nodes["two"]))
        gateway = await stack.enter_async_context(front(etcd, nodes))
        await gateway.answers(Code.OK, within_s=10)
        await world.withdraw("m", 2)  # by a process that tells nobody; the other one is not woken by it
        await gateway.answers(Code.NOT_FOUND, "2")


async def test_two_replicas_at_once(
    ground: Ground, mesh: Front, world: World, etcd: EtcdServer, nodes: dict[str, NodeIdentity]
) -> None:
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(ground_on(ground.address))
        await stack.enter_async_context(registry(other, etcd, nodes["two"]))
        for turn in range(10):
            await (world, World(other))[turn % 2].point("m", "stable", turn % 2 + 1)
        await world.withdraw("m", 2)
        await mesh.answers(Code.NOT_FOUND, "2")
        await eventually(lambda: mesh.board.models[ModelName("m")].generation == 12, patience_s=WITHIN_S)
        assert await mesh.infer() is Code.NOT_FOUND, "stable points at what was withdrawn"


async def test_an_etcd_that_was_wiped(mesh: Front, world: World, etcd: EtcdServer, nodes: dict[str, NodeIdentity]) -> None:
    await world.withdraw("m", 2)
    await mesh.answers(Code.NOT_FOUND, "2")
    await etcd.akill()
    etcd.empty()
    assert await mesh.infer("1") is Code.OK, "the last view serves"
    assert await mesh.infer("2") is Code.NOT_FOUND
    await etcd.astart()
    async with front(etcd, nodes) as newcomer:  # which has never heard anything
        await newcomer.answers(Code.OK, "1", within_s=10)
        assert await newcomer.infer("2") is Code.NOT_FOUND
    await eventually(lambda: mesh.board.synced)
    await world.withdraw("m", 1)
    await mesh.answers(Code.NOT_FOUND, "1", within_s=5)  # its own watch may still be finding the way back


async def test_forged_notices(
    mesh: Front, world: World, etcd: EtcdServer, nodes: dict[str, NodeIdentity], tmp_path: Path
) -> None:
    stranger = Authority.open(tmp_path / "ca").enrol(tmp_path / "r", Role.REGISTRY)
    forged = ModelNotice(ModelName("m"), TenantId("globex"), frozenset({"*"}), generation=99)
    victim = NodeNotice(nodes["worker"].node_id, 1)
    async with EtcdStore(EtcdSettings.at(etcd.endpoint)) as store:
        for signer in (nodes["worker"], stranger):
            await store.put(node_notice_key(victim.node_id), sign_record(signer, node_payload(victim)))
            await store.put(model_notice_key(forged.model), sign_record(signer, model_payload(forged)))
        good = await store.get(model_notice_key(forged.model))
        assert good is not None
        await store.put(model_notice_key(forged.model), good.value[:-1] + bytes([good.value[-1] ^ 1]))
        await world.share("m", "nobody")  # and is heard after all these
        await eventually(lambda: mesh.board.models[forged.model].shared_with == {"nobody"}, patience_s=WITHIN_S)
        assert victim.node_id not in mesh.board.revocations
        assert await mesh.infer(secret=FOREIGN) is Code.NOT_FOUND
        item = await store.get(model_notice_key(forged.model))
        assert item is not None
        record = RecordVerifier(nodes["one"].authority_pem).open(item.value, now_wall_s=SystemClock().wall_s())
        assert record.signer.node_id == nodes["one"].node_id, "put right by the registry"
