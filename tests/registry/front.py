"""A whole registry as its process composes it, on both of its ports, and everybody who may come to them.

Nothing runs beside the calls, and time stands still unless a test moves it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import nacl.signing
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from penstock.registry.v1 import accounts_pb2, audit_pb2, files_pb2, limits_pb2, models_pb2, nodes_pb2, notices_pb2

from registry.access.forwarded import HEADER as FORWARDED
from registry.accounts.bootstrap import bootstrap
from registry.files.local import LocalObjects
from registry.files.types import FileLimits
from registry.ground import Ground
from registry.nodes.types import EnrolmentRules
from registry.schema import REGISTRY
from registry.services import SERVICES, Registry
from runtime.certificates import server_name
from runtime.channel import inner_channel
from runtime.database import Database, open_database
from runtime.errors import PenstockError
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import Authority, NodeIdentity, Role
from runtime.serving import Listen, ServerLimits, serving
from runtime.status import error_of
from tests.registry.harness import MASTER_KEYS, ManualClock

ROOT = nacl.signing.SigningKey(b"j" * 32)
PASSWORD = "correct horse battery"
MESSAGE_BYTES = 16 * 1024 * 1024
_FILES = (accounts_pb2, audit_pb2, files_pb2, limits_pb2, models_pb2, nodes_pb2, notices_pb2)
Metadata = tuple[tuple[str, str], ...]
Request = Message | bytes

METHODS: Mapping[str, MethodDescriptor] = {
    f"{service.name}/{method.name}": method
    for module in _FILES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every RPC that the contracts of the registry name."""


def request_class(method: str) -> type[Message]:
    return GetMessageClass(METHODS[method].input_type)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one call: its messages, or an error of ours, or the bare status where it is none of ours."""

    messages: tuple[Any, ...] = ()
    error: PenstockError | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK

    @property
    def message(self) -> Any:
        assert self.error is None, f"{self.code}: {self.error.message}"
        (only,) = self.messages
        return only


@dataclass(frozen=True, slots=True)
class Way:
    """How somebody reaches the registry: with the certificate of a node, or with none; and what comes with each call."""

    identity: NodeIdentity | None = None
    metadata: Metadata = ()
    seen: NodeIdentity | None = None
    """Whose certificate Envoy saw."""

    def bearing(self, token: str) -> Way:
        return replace(self, metadata=(*self.metadata, ("authorization", f"Bearer {token}")))


@dataclass(slots=True)
class Front:
    """A running registry, and channels to it."""

    registry: Registry
    database: Database
    clock: ManualClock
    identities: dict[Role, NodeIdentity]
    authority: Authority
    ports: tuple[int, ...]
    stack: AsyncExitStack
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    def node(self, role: Role = Role.OPERATOR) -> Way:
        return Way(self.identities[role])

    def through_envoy(self, identity: NodeIdentity | None) -> Way:
        """As Envoy passes on a call: whose certificate it saw, if there was one."""
        seen = () if identity is None else ((FORWARDED, f"Hash=ab;URI=penstock://{identity.role.value}/{identity.node_id}"),)
        return Way(self.identities[Role.ENVOY], seen, identity)

    async def call(self, way: Way, method: str, *requests: Request, timeout_s: float = 30.0) -> Answer:
        """One RPC, whatever its kind; a request may be raw bytes."""
        call = await self.started(way, method, *requests, timeout_s=timeout_s)
        try:
            if METHODS[method].server_streaming:
                return Answer(tuple([message async for message in call]))
            return Answer((await call,))
        except grpc.aio.AioRpcError as failure:
            return Answer((), error_of(failure), failure.code())

    async def started(self, way: Way, method: str, *requests: Request, timeout_s: float = 30.0) -> Any:
        known, channel = METHODS[method], await self.channel(way)
        kind = f"{'stream' if known.client_streaming else 'unary'}_{'stream' if known.server_streaming else 'unary'}"
        answered = GetMessageClass(known.output_type)
        name = f"/{known.containing_service.full_name}/{known.name}"
        stub = getattr(channel, kind)(name, request_serializer=_raw, response_deserializer=answered.FromString)
        given = _each(requests) if known.client_streaming else (*requests, request_class(method)())[0]
        return stub(given, metadata=way.metadata, timeout=timeout_s)

    async def channel(self, way: Way) -> grpc.aio.Channel:
        name = "" if way.identity is None else way.identity.node_id
        if name not in self.channels:
            self.channels[name] = await self.stack.enter_async_context(self._opened(way.identity))
        return self.channels[name]

    async def made(self, method: str, **fields: Any) -> Any:
        """By an operator."""
        return (await self.call(self.node(), method, request_class(method)(**fields))).message

    async def user(self, name: str, role: str, tenant: str) -> str:
        wanted = {"tenant": tenant, "name": name, "role": role, "password": PASSWORD}
        return str((await self.made("AccountService/CreateUser", **wanted)).user.user_id)

    async def session(self, name: str) -> str:
        request = accounts_pb2.LogInRequest(name=name, password=PASSWORD)
        return str((await self.call(Way(), "AccountService/LogIn", request)).message.session)

    def _opened(self, identity: NodeIdentity | None) -> grpc.aio.Channel:
        if identity is not None:
            return inner_channel(f"127.0.0.1:{self.ports[0]}", identity, Role.REGISTRY)
        credentials = grpc.ssl_channel_credentials(self.authority.certificate_pem)
        options = [("grpc.ssl_target_name_override", server_name(Role.REGISTRY)), ("grpc.max_receive_message_length", -1)]
        return grpc.aio.secure_channel(f"127.0.0.1:{self.ports[1]}", credentials, options=options)


@asynccontextmanager
async def front_on(
    address: str, folder: Path, identities: dict[Role, NodeIdentity], limits: FileLimits | None = None
) -> AsyncIterator[Front]:
    """The tenants `default`, `acme` and `globex` are there."""
    authority = Authority.load(identities[Role.REGISTRY].folder.parent / "authority")
    clock, identity = ManualClock(), identities[Role.REGISTRY]
    clock.now_s = time.time()  # certificates are for the machine's own time
    async with open_database(address, REGISTRY) as database, EtcdStore(EtcdSettings.at("127.0.0.1:1")) as store:
        ground = Ground(
            database,
            LocalObjects(folder / "objects"),
            MASTER_KEYS,
            store,
            identity,
            lambda: frozenset({bytes(ROOT.verify_key)}),
            authority,
            clock,
            limits=limits or FileLimits(),
            rules=EnrolmentRules(addresses=("registry.example.org:7443",)),
        )
        registry = Registry(ground)
        await bootstrap(registry.first_accounts, None)
        listens = [Listen("127.0.0.1", 0, identity), Listen("127.0.0.1", 0, identity, asks_certificate=False)]
        server = serving(
            listens,
            registry.registers,
            SERVICES,
            limits=ServerLimits(message_bytes=MESSAGE_BYTES),
            drain_grace_s=1.0,
            revocations=registry.revocations,
        )
        async with AsyncExitStack() as stack, server as running:
            front = Front(registry, database, clock, identities, authority, running.ports, stack)
            for tenant in ("acme", "globex"):
                await front.made("AccountService/CreateTenant", tenant=tenant)
            try:
                yield front
            finally:
                await stack.aclose()


def _raw(request: Request) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


async def _each(requests: Iterable[Request]) -> AsyncIterator[Request]:
    for request in requests:
        yield request
