"""A mesh for the model commands, in one process: registry and scheduler for real, workers that hold what they are told.

The registry has its own database and objects, the scheduler its loops; between them is a store in memory, with the registry's
notices in it as in etcd.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from penstock.scheduler.v1 import scheduler_pb2_grpc
from penstock.worker.v1 import presence_pb2, worker_pb2

from cli.profile import Profile
from registry.access.door import NodeDoor
from registry.audit.bounded import BoundedTrail
from registry.models.servicer import ModelServicer
from registry.nodes.enrolment import Enrolment
from registry.nodes.servicer import NodeServicer
from registry.nodes.sql import SqlNodes
from registry.nodes.types import EnrolmentRules
from registry.notices.loop import Teller
from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import Region, WorkerId, assignment_key, presence_key
from runtime.memory_store import MemoryStore
from runtime.notices import NoticeBoard
from runtime.records import RecordVerifier, sign_record
from runtime.revocations import Revocations
from runtime.serving import Listen, serving
from scheduler.codec import assignment_from
from scheduler.loop import Scheduler
from scheduler.peers import RegistryPeer
from scheduler.placements import Placements
from scheduler.presence import PresenceReader
from scheduler.servicer import SERVICES, FleetServicer
from scheduler.switches import Switches
from tests.registry.files.rig import LIMITS, rig_on
from tests.registry.harness import enrol_all, ground_on, served

HERE = Region("here")


@dataclass
class Mesh:
    folder: Path
    profile: Profile
    board: NoticeBoard
    scheduler: Scheduler
    store: MemoryStore
    identities: dict[Role, NodeIdentity]
    broken: dict[str, str] = field(default_factory=dict)
    """By model version: why workers fail to load it."""

    @asynccontextmanager
    async def worker(self, name: str) -> AsyncIterator[None]:
        """One that does at once what it is told."""
        identity = Authority.open(self.folder / "authority").enrol(self.folder / name, Role.WORKER)
        working = asyncio.create_task(_Obedient(self, identity).run())
        try:
            yield
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


class _Obedient:
    def __init__(self, mesh: Mesh, identity: NodeIdentity) -> None:
        self._mesh, self._identity, self._sequence = mesh, identity, 0
        self._id = WorkerId(identity.node_id)

    async def run(self) -> None:
        await self._say([])
        async with self._mesh.store.watch(assignment_key(HERE, self._id)) as watch:
            async for _ in watch:
                item = await self._mesh.store.get(assignment_key(HERE, self._id))
                await self._say([] if item is None else [self._copy(each) for each in assignment_from(item.value)])

    def _copy(self, told) -> worker_pb2.ModelCopy:  # type: ignore[no-untyped-def]
        why = self._mesh.broken.get(told.version, "")
        state = worker_pb2.MODEL_STATE_FAILED if why else worker_pb2.MODEL_STATE_READY
        return worker_pb2.ModelCopy(model=told.model, version=told.version, digest=told.digest, state=state, reason=why)

    async def _say(self, copies: list[worker_pb2.ModelCopy]) -> None:
        self._sequence += 1
        presence = presence_pb2.Presence(
            worker_id=self._id,
            region=HERE,
            address="127.0.0.1:1",
            models=copies,
            max_in_flight=8,
            sequence=self._sequence,
            wall_time_ms=int(SystemClock().wall_s() * 1000),
        )
        record = sign_record(self._identity, presence.SerializeToString())
        await self._mesh.store.put(presence_key(HERE, self._id), record)


@asynccontextmanager
async def opened_mesh(folder: Path) -> AsyncIterator[Mesh]:
    identities = enrol_all(folder)
    operator, clock, rng = identities[Role.OPERATOR], SystemClock(), random.Random(1)
    async with AsyncExitStack() as stack:
        ground = await stack.enter_async_context(ground_on(str(folder / "registry.db")))
        store = await stack.enter_async_context(MemoryStore(clock=clock, rng=rng))
        models = ModelServicer(
            door=NodeDoor(),
            database=ground.database,
            seals=ground.seals,
            trail=ground.trail,
            bounded=BoundedTrail(ground.trail, clock),
            roots=lambda: frozenset({operator.ed25519_public_key}),
            clock=clock,
        )
        files = rig_on(ground, folder / "objects", LIMITS).files
        bounded, nodes_sql = BoundedTrail(ground.trail, clock), SqlNodes(ground.database, ground.seals, ground.trail)
        enrolment = Enrolment(nodes_sql, None, EnrolmentRules(), Revocations(), clock)
        nodes = NodeServicer(door=NodeDoor(), enrolment=enrolment, sql=nodes_sql, bounded=bounded, clock=clock)
        rooms = [models.register, files.servicer.register, nodes.register]
        registry = await stack.enter_async_context(served(rooms, identities))
        teller = Teller(ground.database, ground.seals, ground.trail, store, identities[Role.REGISTRY], clock)
        await stack.enter_async_context(teller.running())

        board = NoticeBoard()
        verifier = RecordVerifier(operator.authority_pem)
        scheduler = Scheduler(store, PresenceReader(verifier), clock, rng, board)
        placements = Placements(store, scheduler.control, HERE, board)
        channel = inner_channel(registry.address, identities[Role.SCHEDULER], Role.REGISTRY)
        peer = RegistryPeer(await stack.enter_async_context(channel))
        fleet = FleetServicer(scheduler, placements)
        serve = serving(
            [Listen("127.0.0.1", 0, identities[Role.SCHEDULER])],
            [partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, fleet)],
            SERVICES,
            drain_grace_s=0.5,
        )
        running = await stack.enter_async_context(serve)
        await stack.enter_async_context(board.following(store, verifier, clock))
        await stack.enter_async_context(scheduler.running())
        await stack.enter_async_context(Switches(scheduler, placements, peer, clock, rng).running())
        profile = Profile(
            grpc_address="",
            http_url="",
            api_key="",
            registry_address=registry.address,
            scheduler_address=f"127.0.0.1:{running.ports[0]}",
            operator_identity=str(folder / Role.OPERATOR.value),
            region=HERE,
        )
        yield Mesh(folder, profile, board, scheduler, store, identities)
