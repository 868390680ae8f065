"""A scheduler as its process composes it, over a store in memory, jobs in SQLite and one real worker; and who may come to it.

Only the election is left out: this one leads everything.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from penstock.scheduler.v1 import jobs_pb2, scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import worker_pb2

from placement.rules import Route
from runtime.certificates import server_name
from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.errors import PenstockError
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import NodeId, WorkerId
from runtime.memory_store import MemoryStore
from runtime.notices import NoticeBoard
from runtime.revocations import Revocations
from runtime.serving import Listen, ServerLimits, serving
from runtime.status import error_of
from scheduler.__main__ import MESSAGE_BYTES
from scheduler.jobs.policy import Retries
from scheduler.jobs.room import Jobs, opened_jobs
from scheduler.jobs.types import JobLimits
from scheduler.loop import Scheduler
from scheduler.picker.door import opened_picker
from scheduler.placements import Placements
from scheduler.servicer import SERVICES, FleetServicer
from scheduler.services import Services
from scheduler.workers import WorkerPeers
from tests.scheduler.mesh import HERE, Mesh, model
from tests.support.waiting import eventually
from tests.worker.slow_copy import SlowCopy
from worker.execute.execution import SERVICE as EXECUTE
from worker.execute.execution import Execution
from worker.execute.hold_service import HoldService
from worker.inference import TableInference
from worker.models import ModelTable

MODEL = "digits"
QUICK = Retries(first_ms=20, longest_ms=50)
Request = Message | bytes
Named = Mapping[str, MethodDescriptor]


def methods_of(*modules: Any) -> Named:
    """Every RPC that these contracts name, by service and method."""
    return {
        f"{service.name}/{method.name}": method
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


METHODS = methods_of(scheduler_pb2, jobs_pb2)
WORKER_METHODS = methods_of(worker_pb2)


def request_class(method: MethodDescriptor) -> type[Message]:
    return GetMessageClass(method.input_type)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one call: its messages, or an error of ours, or the bare status where it is none of ours."""

    messages: tuple[Any, ...] = ()
    error: PenstockError | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What came before the messages."""

    @property
    def message(self) -> Any:
        assert self.error is None, f"{self.code}: {self.error.message}"
        return self.messages[0]


_LOST, _LOST_AT_MOST = "Internal error from Core", 5
"""What grpc.aio says where a server ended a stream that it was still writing to: the server's own status is lost."""


async def called(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    *requests: Request,
    metadata: tuple[tuple[str, str], ...] = (),
    timeout_s: float = 20.0,
    at_most: int = 1,
) -> Answer:
    """One RPC, whatever its kind; a request may be raw bytes. Of a stream of answers, so many are read."""
    for _ in range(_LOST_AT_MOST):
        answer = await _called(channel, method, *requests, metadata=metadata, timeout_s=timeout_s, at_most=at_most)
        if answer.error is None or answer.error.message != _LOST:
            break
    return answer


async def _called(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    *requests: Request,
    metadata: tuple[tuple[str, str], ...],
    timeout_s: float,
    at_most: int,
) -> Answer:
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    stub = getattr(channel, kind)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=_raw,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    call = stub(
        _each(requests) if method.client_streaming else (*requests, request_class(method)())[0],
        metadata=metadata,
        timeout=timeout_s,
    )
    try:
        found: list[Any] = [] if method.server_streaming else [await call]
        while method.server_streaming and len(found) < at_most and (message := await call.read()) is not grpc.aio.EOF:
            found.append(message)
        return Answer(tuple(found), metadata=dict(await call.initial_metadata() or ()))
    except grpc.aio.AioRpcError as failure:
        return Answer((), error_of(failure), failure.code())
    finally:
        call.cancel()


def _raw(request: Request) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


async def _each(requests: tuple[Request, ...]) -> AsyncIterator[Request]:
    for request in requests:
        yield request


@dataclass(slots=True)
class RealWorker:
    """Serves WorkerService for the model, with places of its own."""

    identity: NodeIdentity
    copy: SlowCopy
    inference: TableInference
    execution: Execution
    port: int

    @property
    def worker_id(self) -> WorkerId:
        return WorkerId(self.identity.node_id)


@dataclass(slots=True)
class Whole:
    """A running scheduler, and channels to it."""

    mesh: Mesh
    store: MemoryStore
    scheduler: Scheduler
    services: Services
    jobs: Jobs
    board: NoticeBoard
    worker: RealWorker
    port: int
    picker_port: int
    stack: AsyncExitStack
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    def node(self, role: Role, name: str = "") -> NodeIdentity:
        return self.mesh.node(name or f"the {role.value}", role)

    async def channel(self, identity: NodeIdentity, worker: RealWorker | None = None) -> grpc.aio.Channel:
        """To the scheduler, or to this worker."""
        port, role = (self.port, Role.SCHEDULER) if worker is None else (worker.port, Role.WORKER)
        name = f"{identity.folder} {port}"
        if name not in self.channels:
            opened = inner_channel(f"127.0.0.1:{port}", identity, role)
            self.channels[name] = await self.stack.enter_async_context(opened)
        return self.channels[name]

    async def call(self, who: NodeIdentity | Role, method: str, *requests: Request, **options: Any) -> Answer:
        identity = self.node(who) if isinstance(who, Role) else who
        if (known := METHODS.get(method)) is not None:
            return await called(await self.channel(identity), known, *requests, **options)
        return await called(await self.channel(identity, self.worker), WORKER_METHODS[method], *requests, **options)

    async def made(self, method: str, role: Role = Role.GATEWAY, **fields: Any) -> Any:
        return (await self.call(role, method, request_class(METHODS[method])(**fields))).message

    def strangers(self, folder: Path) -> list[grpc.aio.Channel]:
        """Nobody's certificate, another mesh's, and none of TLS at all."""
        address = f"127.0.0.1:{self.port}"
        options = [("grpc.ssl_target_name_override", server_name(Role.SCHEDULER))]
        other = Authority.open(folder / "another mesh").enrol(folder / "another gateway", Role.GATEWAY)
        root = self.mesh.authority.certificate_pem
        foreign = grpc.ssl_channel_credentials(root, other.tls_key_pem, other.certificate_pem)
        return [
            grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(root), options=options),
            grpc.aio.secure_channel(address, foreign, options=options),
            grpc.aio.insecure_channel(address),
        ]

    def revoke(self, identity: NodeIdentity) -> None:
        """As the registry would tell everybody."""
        self.board.revocations.add(NodeId(identity.node_id))

    async def keys(self) -> list[str]:
        """All that is in the store."""
        return [item.key for item in (await self.store.range("")).items]


@asynccontextmanager
async def real_worker(
    mesh: Mesh, name: str = "a", *, places: int = 8, revocations: Revocations | None = None
) -> AsyncIterator[RealWorker]:
    identity, table, copy = mesh.node(name), ModelTable(), SlowCopy(MODEL, "1")
    copy.takes_s = 0.0
    table.add(copy)
    inference = TableInference(table, max_in_flight=places)
    execution = Execution(inference, WorkerId(identity.node_id), asyncio.Event(), holds=HoldService(inference, table))
    listen = Listen("127.0.0.1", 0, identity)
    opening = serving([listen], [execution.register], [EXECUTE], drain_grace_s=0.1, revocations=revocations)
    async with opening as running:
        yield RealWorker(identity, copy, inference, execution, running.ports[0])


async def announced(whole: Whole, name: str, port: int, *, models: tuple[Any, ...] = (), **more: Any) -> None:
    """This worker shows itself, with the model unless others are named, at that port."""
    presence = whole.mesh.presence(name, *(models or (model(),)))
    presence.address = f"127.0.0.1:{port}"
    presence.sealed_address = f"127.0.0.1:{port}"
    presence.x25519_public_key = whole.mesh.node(name).x25519_public_key
    for key, value in more.items():
        setattr(presence, key, value)
    await whole.store.put(whole.mesh.key(name), whole.mesh.signed(name, presence))
    who = whole.mesh.worker_id(name)
    await eventually(lambda: who in whole.scheduler.fleet.members)


@asynccontextmanager
async def whole_scheduler(
    folder: Path, *, jobs_database: str = "", jobs_limits: JobLimits | None = None, places: int = 8
) -> AsyncIterator[Whole]:
    """`places`: of the one worker, which is in the fleet. `jobs_database`: an SQLite file where none is given."""
    clock, rng, board = SystemClock(), random.Random(1), NoticeBoard()
    mesh = Mesh(folder, clock)
    identity = mesh.node("scheduler", Role.SCHEDULER)
    async with (
        MemoryStore() as store,
        WorkerPeers(identity) as workers,
        real_worker(mesh, places=places) as worker,
        opened_jobs(jobs_database or str(folder / "jobs.db"), clock, rng, jobs_limits, QUICK) as jobs,
    ):
        scheduler = Scheduler(store, mesh.reader(board.revocations), clock, rng, board)
        services = Services(scheduler, store, workers, HERE, clock, rng, Route())
        fleet = FleetServicer(scheduler, Placements(store, scheduler.control, HERE, board), services.rooms)
        server = serving(
            [Listen("127.0.0.1", 0, identity)],
            [partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, fleet), *jobs.registers],
            [*SERVICES, *jobs.services],
            limits=ServerLimits(message_bytes=MESSAGE_BYTES),
            drain_grace_s=0.2,
            revocations=board.revocations,
        )
        async with (
            server as running,
            scheduler.running(),
            services.running(),
            jobs.running(),
            opened_picker(services.picker, "127.0.0.1", 0, clock, rng) as picker_port,
            AsyncExitStack() as stack,
        ):
            assert picker_port is not None
            port = running.ports[0]
            whole = Whole(mesh, store, scheduler, services, jobs, board, worker, port, picker_port, stack)
            await eventually(scheduler.synced)
            await eventually(lambda: services.policies.known is not None)
            await announced(whole, "a", worker.port)
            yield whole
