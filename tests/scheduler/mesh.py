"""A mesh's worth of identities and what they sign."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from penstock.worker.v1 import presence_pb2, worker_pb2

from placement.copies.assign import Placement
from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import Digest, ModelName, ModelVersion, Region, TenantId, WorkerId, assignment_key, presence_key
from runtime.keyvalue import KeyValue, KeyValueStore
from runtime.memory_store import MemoryStore
from runtime.notices import NoticeBoard
from runtime.records import RecordVerifier, sign_record
from runtime.revocations import Revocations
from runtime.watch import WatchTiming
from scheduler.codec import assignment_from
from scheduler.loop import Scheduler
from scheduler.presence import PresenceReader

HERE = Region("here")
DIGEST = Digest("d" * 64)
READY, LOADING, FAILED = worker_pb2.MODEL_STATE_READY, worker_pb2.MODEL_STATE_LOADING, worker_pb2.MODEL_STATE_FAILED


class Mesh:
    """One authority, and nodes by name."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder, self.clock = folder, clock
        self.authority = Authority.open(folder / "ca")
        self._sequences: dict[str, int] = {}

    def node(self, name: str, role: Role = Role.WORKER, *tenants: TenantId) -> NodeIdentity:
        return self.authority.enrol(self._folder / name, role, tenants=tenants)

    def worker_id(self, name: str) -> WorkerId:
        return WorkerId(self.node(name).node_id)

    def key(self, name: str, region: Region = HERE) -> str:
        return presence_key(region, self.worker_id(name))

    def presence(
        self, name: str, *copies: worker_pb2.ModelCopy, region: Region = HERE, sequence: int | None = None, aged_s: float = 0.0
    ) -> presence_pb2.Presence:
        self._sequences[name] = self._sequences.get(name, 0) + 1 if sequence is None else sequence
        return presence_pb2.Presence(
            worker_id=self.worker_id(name),
            region=region,
            address="127.0.0.1:1",
            models=copies,
            max_in_flight=8,
            sequence=self._sequences[name],
            wall_time_ms=int((self.clock.wall_s() - aged_s) * 1000),
        )

    def signed(self, name: str, message: presence_pb2.Presence, *, role: Role = Role.WORKER) -> bytes:
        return sign_record(self.node(name, role), message.SerializeToString())

    def item(self, name: str, *copies: worker_pb2.ModelCopy, aged_s: float = 0.0) -> KeyValue:
        return KeyValue(self.key(name), self.signed(name, self.presence(name, *copies, aged_s=aged_s)), 1, 1, 1)

    async def announce(self, store: KeyValueStore, name: str, *copies: worker_pb2.ModelCopy) -> None:
        await store.put(self.key(name), self.signed(name, self.presence(name, *copies)))

    def reader(self, revocations: Revocations | None = None) -> PresenceReader:
        return PresenceReader(RecordVerifier(self.authority.certificate_pem, revocations=revocations))


def model(state: worker_pb2.ModelState.ValueType = READY, name: str = "digits") -> worker_pb2.ModelCopy:
    return worker_pb2.ModelCopy(model=name, version="1", digest=DIGEST, state=state, task="tensor")


def wish(copies: int, name: str = "digits", *, region: str = HERE, version: str = "1", digest: str = DIGEST) -> Placement:
    return Placement(ModelName(name), ModelVersion(version), Digest(digest), Region(region), copies, 0)


async def assigned(store: KeyValueStore, mesh: Mesh, name: str) -> list[tuple[str, int]] | None:
    """Models and generations that this worker is told to hold; None: it is told nothing."""
    item = await store.get(assignment_key(HERE, mesh.worker_id(name)))
    return None if item is None else [(each.model, each.generation) for each in assignment_from(item.value)]


@asynccontextmanager
async def memory_scheduler(mesh: Mesh) -> AsyncIterator[tuple[MemoryStore, Scheduler]]:
    """A scheduler whose loops run over a store in memory, both by the mesh's clock."""
    timing = WatchTiming(backoff=Backoff(first_s=0.05, max_s=0.2, jitter=0.0))
    async with MemoryStore(clock=mesh.clock, rng=Random(1), watch_timing=timing) as store:
        board = NoticeBoard()
        scheduler = Scheduler(store, mesh.reader(board.revocations), mesh.clock, Random(2), board)
        async with scheduler.running():
            yield store, scheduler
