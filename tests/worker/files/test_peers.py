"""Files from other workers: real servers and certificates, records as workers sign them, a connection that a test breaks."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nacl.signing
import pytest
from penstock.registry.v1 import models_pb2
from penstock.worker.v1 import worker_pb2, worker_pb2_grpc

from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.errors import Code, PenstockError, Unavailable
from runtime.identity import Authority, NodeIdentity, Peer, Role
from runtime.ids import Digest, ModelName, ModelVersion, NodeId, Region, TenantId, WorkerId, model_key, presence_key
from runtime.manifests import sign_endorsement
from runtime.memory_store import MemoryStore
from runtime.records import sign_record
from runtime.revocations import Revocations
from runtime.serving import Listen, serving
from tests.support.forwarder import Forwarder, forwarder_to
from tests.worker.manifests import PUBLISHER, TRUSTED, MemoryRegistry, manifest_of, sha256_of
from worker.execute.execution import SERVICE, Execution
from worker.execute.model_service import Files, ModelService
from worker.files.artifacts import Artifacts, Prepared
from worker.files.cache import FileCache, open_cache
from worker.files.peers import NearbyWorkers, PeerRules, WorkerOrigin
from worker.files.sharing import PART_BYTES, ReaderRefused, SharedFiles, may_give
from worker.files.transfers import failure_of
from worker.hardware import Hardware
from worker.presence_codec import Stamp, WorkerFacts, model_presence_bytes, presence_bytes
from worker.types import CallContext, Load

HERE = Region("here")
KEY = (ModelName("digits"), ModelVersion("1"))
WEIGHTS, VOCABULARY = os.urandom(20 * PART_BYTES), b"abc"
FILES = {"model.onnx": WEIGHTS, "text/vocabulary.json": VOCABULARY}
READY = worker_pb2.MODEL_STATE_READY
CACHE_BYTES = 1 << 30
READER = Peer(Role.WORKER, NodeId("reader"))


class NoInference:
    """Nothing is inferred here."""

    async def infer(self, model: str, version: str, payload: bytes, call: CallContext) -> bytes:
        raise Unavailable("no")

    def stream_infer(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        raise Unavailable("no")

    def generate(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        raise Unavailable("no")

    load = Load(0, 0)


@dataclass
class Liar:
    """Sends as many bytes as it is asked for, and none that are right."""

    asked: int = 0
    size_bytes: int = len(WEIGHTS)

    async def read(self, reader: Peer, sha256: Digest, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        self.asked += 1
        for start in range(offset_bytes, self.size_bytes, PART_BYTES):
            yield bytes(min(PART_BYTES, self.size_bytes - start))


@dataclass
class Nearby:
    """A region with an etcd, and workers that hold the model."""

    folder: Path
    store: MemoryStore
    stack: AsyncExitStack
    authority: Authority
    me: NodeIdentity
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)
    digest: Digest = field(init=False)

    def publish(self) -> None:
        self.digest = self.registry.publish_files(FILES)

    def cache(self, name: str) -> FileCache:
        return self.stack.enter_context(open_cache(self.folder / name, CACHE_BYTES))

    def identity(self, name: str) -> NodeIdentity:
        return self.authority.enrol(self.folder / f"id-{name}", Role.WORKER)

    def peers(self, rules: PeerRules | None = None) -> NearbyWorkers:
        return NearbyWorkers(self.store, HERE, self.me, SystemClock(), random.Random(4), rules)

    def artifacts(self, rules: PeerRules | None = None) -> Artifacts:
        return Artifacts(self.cache("mine"), self.registry, lambda: TRUSTED, self.peers(rules))

    async def holder(self, name: str) -> tuple[NodeIdentity, int]:
        """A worker that loaded the model from the registry; its port."""
        cache = self.cache(name)
        theirs = Artifacts(cache, self.registry, lambda: TRUSTED)
        await theirs.prepare(await theirs.describe(self.digest, KEY), lambda _: None)
        self.registry.fetched.clear()
        return await self.serving(name, SharedFiles(cache))

    async def serving(self, name: str, files: Files) -> tuple[NodeIdentity, int]:
        identity = self.identity(name)
        execution = Execution(NoInference(), WorkerId(identity.node_id), asyncio.Event(), models=ModelService(None, files))
        opening = serving([Listen("127.0.0.1", 0, identity)], [execution.register], [SERVICE], drain_grace_s=0.1)
        running = await self.stack.enter_async_context(opening)
        return identity, running.ports[0]

    async def tell(
        self,
        identity: NodeIdentity,
        port: int,
        *,
        signer: NodeIdentity | None = None,
        state: worker_pb2.ModelState.ValueType = READY,
        digest: str = "",
        under: str = "",
    ) -> None:
        """What the worker writes into etcd of itself and its copy."""
        worker_id = WorkerId(identity.node_id)
        facts = WorkerFacts(worker_id, HERE, f"127.0.0.1:{port}", (), Hardware("cpu", 1, 1, 1), b"", 1, "0")
        stamp = Stamp(1, int(time.time() * 1000))
        copy = worker_pb2.ModelCopy(model=KEY[0], version=KEY[1], digest=digest or self.digest, state=state)
        signer = signer or identity
        under = under or worker_id
        presence = presence_bytes(facts, [copy], stamp, disk_free_bytes=1)
        await self.store.put(presence_key(HERE, WorkerId(under)), sign_record(signer, presence))
        record = model_presence_bytes(facts, copy, stamp)
        await self.store.put(model_key(*KEY, HERE, WorkerId(under)), sign_record(signer, record))


@pytest.fixture
async def nearby(tmp_path: Path) -> AsyncIterator[Nearby]:
    authority = Authority.open(tmp_path / "ca")
    async with MemoryStore(clock=SystemClock(), rng=random.Random(1)) as store, AsyncExitStack() as stack:
        made = Nearby(tmp_path, store, stack, authority, authority.enrol(tmp_path / "id-me", Role.WORKER))
        made.publish()
        yield made


async def prepare(artifacts: Artifacts, digest: Digest) -> Prepared:
    return await artifacts.prepare(await artifacts.describe(digest, KEY), lambda _: None)


def content_of(prepared: Prepared) -> dict[str, bytes]:
    folder = prepared.folder
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


async def test_files_come_from_a_worker_that_holds_the_model_and_the_registry_is_not_asked(nearby: Nearby) -> None:
    await nearby.tell(*await nearby.holder("other"))
    artifacts = nearby.artifacts()
    assert content_of(await prepare(artifacts, nearby.digest)) == FILES
    assert nearby.registry.fetched == []
    assert (artifacts.received.peer_bytes, artifacts.received.registry_bytes) == (len(WEIGHTS) + len(VOCABULARY), 0)


@asynccontextmanager
async def hop_to(port: int) -> AsyncIterator[Forwarder]:
    async with forwarder_to(port) as forwarder:
        yield forwarder


@pytest.mark.parametrize("another", [True, False], ids=["another worker", "the registry"])
async def test_a_worker_killed_in_the_middle_of_a_file_is_gone_on_from_where_it_stopped(nearby: Nearby, another: bool) -> None:
    identity, port = await nearby.holder("first")
    async with hop_to(port) as hop:
        await nearby.tell(identity, hop.port)
        artifacts = nearby.artifacts()
        came_bytes = 0

        def progress(count: int) -> None:
            nonlocal came_bytes
            if came_bytes == 0:
                cutting.set()
            came_bytes += count

        cutting = asyncio.Event()

        async def cut() -> None:
            await cutting.wait()
            await hop.cut()

        task = asyncio.ensure_future(cut())
        if another:
            second, second_port = await nearby.holder("second")
            await nearby.tell(second, second_port)
            # whichever of the two is asked first: only the first one's connection breaks
        description = await artifacts.describe(nearby.digest, KEY)
        assert content_of(await artifacts.prepare(description, progress)) == FILES
        assert came_bytes == len(WEIGHTS) + len(VOCABULARY), "nothing was sent twice"
        await task
    offsets = [offset for sha256, offset in nearby.registry.fetched if sha256 == sha256_of(WEIGHTS)]
    if another:
        assert nearby.registry.fetched == []
    else:
        assert len(offsets) == 1
        assert 0 < offsets[0] < len(WEIGHTS)
        assert artifacts.received.peer_bytes == offsets[0]


async def test_a_worker_that_sends_something_else_is_not_asked_again_for_that_load(nearby: Nearby) -> None:
    liar = Liar()
    await nearby.tell(*await nearby.serving("liar", liar))
    artifacts = nearby.artifacts()
    assert content_of(await prepare(artifacts, nearby.digest)) == FILES
    assert liar.asked == 1, "for the other file nobody asked it"
    assert [offset for _, offset in nearby.registry.fetched] == [0, 0]
    assert artifacts.received.peer_bytes == 0


async def test_nor_is_it_asked_again_when_the_load_is_tried_again(nearby: Nearby) -> None:
    liar = Liar()
    await nearby.tell(*await nearby.serving("liar", liar))
    artifacts = nearby.artifacts()
    description = await artifacts.describe(nearby.digest, KEY)
    nearby.registry.away = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            await artifacts.prepare(description, lambda _: None)
    assert liar.asked == 1


async def test_one_that_sends_more_than_the_file_has_is_stopped(nearby: Nearby) -> None:
    await nearby.tell(*await nearby.serving("liar", Liar(size_bytes=1 << 40)))
    assert content_of(await prepare(nearby.artifacts(), nearby.digest)) == FILES


async def test_at_most_a_few_are_asked_and_those_that_are_gone_delay_nothing_for_long(nearby: Nearby) -> None:
    for number in range(6):
        await nearby.tell(nearby.identity(f"gone-{number}"), 1)
    artifacts = nearby.artifacts(PeerRules(at_most=2, silence_s=5.0))
    assert content_of(await prepare(artifacts, nearby.digest)) == FILES
    async with nearby.peers(PeerRules(at_most=2)).holding(KEY, nearby.digest) as origins:
        assert len(origins) == 2


async def test_which_records_are_not_believed(nearby: Nearby, tmp_path: Path) -> None:
    other, mine = nearby.identity("other"), nearby.me
    stranger = Authority.open(tmp_path / "elsewhere").enrol(tmp_path / "id-stranger", Role.WORKER)
    gateway = nearby.authority.enrol(tmp_path / "id-gateway", Role.GATEWAY)
    await nearby.tell(nearby.identity("loading"), 1, state=worker_pb2.MODEL_STATE_LOADING)
    await nearby.tell(nearby.identity("older"), 1, digest="e" * 64)
    await nearby.tell(stranger, 1)
    await nearby.tell(gateway, 1)
    await nearby.tell(other, 1, signer=mine)
    await nearby.tell(mine, 1)
    await nearby.tell(nearby.identity("misplaced"), 1, under="f" * 20)
    await nearby.store.put(model_key(*KEY, HERE, WorkerId("0" * 20)), b"no record")
    async with nearby.peers(PeerRules(at_most=100)).holding(KEY, nearby.digest) as origins:
        assert origins == []
    await nearby.tell(other, 1)
    async with nearby.peers().holding(KEY, nearby.digest) as origins:
        assert [origin.name for origin in origins] == [f"worker {other.node_id}"]


async def test_with_etcd_away_the_registry_is_asked(nearby: Nearby) -> None:
    await nearby.tell(*await nearby.holder("other"))
    nearby.store.go_away()
    assert content_of(await prepare(nearby.artifacts(), nearby.digest)) == FILES
    assert len(nearby.registry.fetched) == 2


async def test_with_the_registry_away_manifest_and_files_come_from_a_worker(nearby: Nearby) -> None:
    await nearby.tell(*await nearby.holder("other"))
    await nearby.tell(*await nearby.serving("liar", Liar(size_bytes=100)))
    nearby.registry.away = True
    artifacts = nearby.artifacts()
    assert content_of(await prepare(artifacts, nearby.digest)) == FILES
    with pytest.raises(Unavailable, match="registry is away"):
        await artifacts.describe(Digest("9" * 64), KEY)


async def answer_to(nearby: Nearby, port: int, role: Role, sha256: str, offset_bytes: int = 0) -> bytes:
    identity = nearby.authority.enrol(nearby.folder / f"id-{role.value}-reader", role)
    async with inner_channel(f"127.0.0.1:{port}", identity, Role.WORKER) as channel:
        call = worker_pb2_grpc.WorkerServiceStub(channel).ReadArtifact(
            worker_pb2.ReadArtifactRequest(sha256=sha256, offset_bytes=offset_bytes)
        )
        return b"".join([part.data async for part in call])


async def test_who_may_read_what(nearby: Nearby) -> None:
    _, port = await nearby.holder("other")
    assert await answer_to(nearby, port, Role.WORKER, sha256_of(WEIGHTS), 7) == WEIGHTS[7:]
    assert await answer_to(nearby, port, Role.WORKER, sha256_of(WEIGHTS), len(WEIGHTS)) == b""
    refusals: list[tuple[Role, str, int, Code]] = [
        (Role.GATEWAY, sha256_of(WEIGHTS), 0, Code.PERMISSION_DENIED),
        (Role.OPERATOR, sha256_of(WEIGHTS), 0, Code.PERMISSION_DENIED),
        (Role.WORKER, sha256_of(b"another"), 0, Code.NOT_FOUND),
        (Role.WORKER, "../../etc/passwd", 0, Code.INVALID_ARGUMENT),
        (Role.WORKER, sha256_of(WEIGHTS), len(WEIGHTS) + 1, Code.INVALID_ARGUMENT),
    ]
    for role, sha256, offset_bytes, code in refusals:
        with pytest.raises(Exception) as refused:  # grpc's error, read below
            await answer_to(nearby, port, role, sha256, offset_bytes)
        assert failure_of(refused.value, "it").code is code  # type: ignore[arg-type]


async def drained(parts: AsyncGenerator[bytes, None]) -> int:
    async with aclosing(parts):
        return sum([len(part) async for part in parts])


async def test_so_many_read_at_once_and_what_they_read_is_not_dropped_meanwhile(nearby: Nearby) -> None:
    cache = nearby.cache("small")
    theirs = Artifacts(cache, nearby.registry, lambda: TRUSTED)
    prepared = await prepare(theirs, nearby.digest)
    await theirs.release(prepared)
    files = SharedFiles(cache, at_once=2)
    readings = [files.read(READER, Digest(sha256_of(WEIGHTS)), 0) for _ in range(2)]
    for reading in readings:
        await anext(reading)
    with pytest.raises(PenstockError, match="as many as may be") as full:
        await anext(files.read(READER, Digest(sha256_of(WEIGHTS)), 0))
    assert full.value.code is Code.RESOURCE_EXHAUSTED
    cache._limit_bytes = 1
    cache._make_room(0)
    assert (nearby.folder / "small" / "files" / sha256_of(WEIGHTS)).exists()
    for reading in readings:
        await reading.aclose()
    cache._make_room(0)
    assert not (nearby.folder / "small" / "files" / sha256_of(WEIGHTS)).exists()
    with pytest.raises(PenstockError, match="no verified file"):
        await drained(files.read(READER, Digest(sha256_of(WEIGHTS)), 0))


async def test_a_file_that_this_process_did_not_verify_or_that_was_changed_since_is_not_sent(nearby: Nearby) -> None:
    cache = nearby.cache("other")
    await prepare(Artifacts(cache, nearby.registry, lambda: TRUSTED), nearby.digest)
    files, path = SharedFiles(cache), nearby.folder / "other" / "files" / sha256_of(WEIGHTS)
    assert await drained(files.read(READER, Digest(sha256_of(WEIGHTS)), 0)) == len(WEIGHTS)
    path.unlink()
    path.write_bytes(bytes(len(WEIGHTS)))
    with pytest.raises(PenstockError, match="no verified file"):
        await drained(files.read(READER, Digest(sha256_of(WEIGHTS)), 0))
    left = nearby.folder / "other" / "files" / sha256_of(b"left")
    left.write_bytes(b"left")
    with pytest.raises(PenstockError, match="no verified file"):
        await drained(files.read(READER, Digest(sha256_of(b"left")), 0))


def names(*tenants: str) -> frozenset[TenantId]:
    return frozenset(map(TenantId, tenants))


@pytest.mark.parametrize(
    ("holder", "reader", "given"),
    [
        (names(), names(), True),
        (names(), names("a"), False),
        (names("a"), names(), True),
        (names("a"), names("a"), True),
        (names("a"), names("a", "b"), True),
        (names("a", "b"), names("a"), False),
        (names("a"), names("b"), False),
    ],
)
async def test_files_go_to_workers_that_may_load_whatever_this_one_may(
    nearby: Nearby, holder: frozenset[TenantId], reader: frozenset[TenantId], given: bool
) -> None:
    cache = nearby.cache("other")
    await prepare(Artifacts(cache, nearby.registry, lambda: TRUSTED), nearby.digest)
    files, peer = SharedFiles(cache, tenants=lambda: holder), Peer(Role.WORKER, NodeId("reader"), reader)
    assert may_give(holder, reader) is given
    for asked in (sha256_of(WEIGHTS), nearby.digest):
        if given:
            assert await anext(files.read(peer, asked, 0))
        else:
            with pytest.raises(ReaderRefused, match="ask the registry"):
                await anext(files.read(peer, asked, 0))


async def test_a_worker_for_one_tenant_asks_only_those_that_give_and_is_given_nothing_by_others(nearby: Nearby) -> None:
    everybodys, port = await nearby.holder("everybodys")
    nearby.me = nearby.authority.enrol(nearby.folder / "id-acmes", Role.WORKER, tenants=names("acme"))
    acmes = nearby.authority.enrol(nearby.folder / "id-acmes-other", Role.WORKER, tenants=names("acme"))
    await nearby.tell(everybodys, port)
    await nearby.tell(acmes, 1)
    async with nearby.peers().holding(KEY, nearby.digest) as origins:
        assert [origin.name for origin in origins] == [f"worker {acmes.node_id}"]
    async with inner_channel(f"127.0.0.1:{port}", nearby.me, Role.WORKER) as channel:
        refused = WorkerOrigin(WorkerId(everybodys.node_id), channel, 5.0)
        with pytest.raises(ReaderRefused):
            await drained(refused.fetch(sha256_of(WEIGHTS), 0))


async def test_a_worker_that_was_revoked_is_not_asked(nearby: Nearby) -> None:
    identity, port = await nearby.holder("other")
    await nearby.tell(identity, port)
    revocations = Revocations()
    peers = NearbyWorkers(nearby.store, HERE, nearby.me, SystemClock(), random.Random(4), revocations=revocations)
    async with peers.holding(KEY, nearby.digest) as origins:
        assert len(origins) == 1
    revocations.add(identity.node_id)
    async with peers.holding(KEY, nearby.digest) as origins:
        assert origins == []


async def test_a_manifest_comes_from_a_worker_with_the_endorsement_that_makes_it_believed(nearby: Nearby) -> None:
    signer = nacl.signing.SigningKey(b"s" * 32)
    endorsement = models_pb2.Endorsement(tenant="default", ed25519_public_key=bytes(signer.verify_key), models=["digits"])
    nearby.digest = nearby.registry.publish(manifest_of(FILES), FILES, signer, sign_endorsement(PUBLISHER, endorsement))
    await nearby.tell(*await nearby.holder("other"))
    nearby.registry.away = True
    assert content_of(await prepare(nearby.artifacts(), nearby.digest)) == FILES
