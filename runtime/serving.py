"""One way to serve: reflection, health, errors as statuses, mTLS for inner hops, an ordered drain.

Owns the grpc.aio server's lifetime. Never knows what is served. `async with serving(...)`: entering binds and starts, leaving
tells health, waits for what is in flight and stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from runtime.errors import Code, PenstockError
from runtime.identity import NodeIdentity, Peer, Role, peer_of_names
from runtime.peer_gate import PeerGate
from runtime.revocations import Revocations
from runtime.status import StatusInterceptor

Register = Callable[[grpc.aio.Server], None]
"""Adds one servicer to a server, as the generated add_…Servicer_to_server does."""


class PortTaken(PenstockError, code=Code.FAILED_PRECONDITION, reason="PORT_TAKEN"):
    """Something else listens there."""


class RoleRequired(PenstockError, code=Code.PERMISSION_DENIED, reason="ROLE_REQUIRED"):
    """The peer's certificate does not carry a role that may call this."""


@dataclass(frozen=True, slots=True)
class PublicTls:
    """What a port shows to clients of which it asks no certificate."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    renewed: Callable[[], PublicTls | None] | None = None
    """Asked at each handshake, on a thread of gRPC's, for what to show from then on; None: as before."""


@dataclass(frozen=True, slots=True)
class Listen:
    """One address to listen on; mTLS where an identity is given, TLS where `public_tls` is, else plaintext. Port 0: any."""

    host: str
    port: int
    identity: NodeIdentity | None = None
    public_tls: PublicTls | None = None
    asks_certificate: bool = True
    """Whether, with an identity, the client needs one of this mesh too; a node that joins has none yet."""
    shared: bool = False
    """Other processes listen there too, and the kernel spreads connections over them (SO_REUSEPORT)."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one server takes at most."""

    message_bytes: int = 64 * 1024 * 1024
    concurrent_rpcs: int = 4096
    metadata_bytes: int = 32 * 1024


@dataclass(slots=True)
class Running:
    """What answers: a server, or two where one shares its ports. `ports` are the bound ones, in the order of the listens."""

    servers: tuple[grpc.aio.Server, ...]
    ports: tuple[int, ...]
    health: health.aio.HealthServicer
    services: tuple[str, ...] = field(default=())

    @property
    def server(self) -> grpc.aio.Server:
        return self.servers[0]

    async def set_serving(self, serving_now: bool) -> None:
        """What grpc.health.v1 answers, for the whole server and each service."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if serving_now else states.NOT_SERVING
        for service in ("", *self.services):
            await self.health.set(service, state)


@asynccontextmanager
async def serving(
    listens: Sequence[Listen],
    registers: Sequence[Register],
    services: Sequence[str],
    *,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    limits: ServerLimits | None = None,
    drain_grace_s: float = 10.0,
    revocations: Revocations | None = None,
) -> AsyncIterator[Running]:
    """Serve until left. `services` are full names, for reflection and health. Nodes that are in `revocations`, now or
    later, are not served. Raises PortTaken."""
    limits = limits or ServerLimits()
    gate = None if revocations is None else PeerGate(revocations)
    health_servicer = health.aio.HealthServicer()

    def made(shared: bool) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[*interceptors, StatusInterceptor(gate)],
            options=_options(limits, shared=shared),
            maximum_concurrent_rpcs=limits.concurrent_rpcs,
        )
        for register in registers:
            register(server)
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    # To gRPC, sharing is a server's matter, not a port's.
    servers = {shared: made(shared) for shared in dict.fromkeys(listen.shared for listen in listens)} or {False: made(False)}
    # Shared ports last: whoever listens there is given connections, also where another port then turns out to be taken.
    order = sorted(range(len(listens)), key=lambda index: listens[index].shared)
    bound = {index: _bind(servers[listens[index].shared], listens[index]) for index in order}
    ports = tuple(bound[index] for index in range(len(listens)))
    running = Running(tuple(servers.values()), ports, health_servicer, tuple(services))
    for server in running.servers:
        await server.start()
    with gate.following() if gate is not None else nullcontext():
        try:
            await running.set_serving(True)
            yield running
        finally:
            await asyncio.shield(_drain(running, drain_grace_s))


def inner_peer(context: grpc.aio.ServicerContext[Any, Any], *roles: Role) -> Peer:
    """The certified peer of this RPC. Raises RoleRequired unless it bears one of the roles (any, where none is named)."""
    names = [name.decode() for name in context.auth_context().get("peer_uri", ())]
    if not names:
        raise RoleRequired("this call needs a client certificate of this mesh; connect to the inner port with mTLS")
    peer = peer_of_names(names)
    if roles and peer.role not in roles:
        allowed = ", ".join(role.value for role in roles)
        raise RoleRequired(f"a {peer.role.value} may not call this; it is for: {allowed}")
    return peer


async def _drain(running: Running, grace_s: float) -> None:
    await running.health.enter_graceful_shutdown()
    await asyncio.gather(*(server.stop(grace_s) for server in running.servers))


def _bind(server: grpc.aio.Server, listen: Listen) -> int:
    try:
        if listen.public_tls is not None:
            return server.add_secure_port(str(listen), _public_credentials(listen.public_tls))
        if listen.identity is None:
            return server.add_insecure_port(str(listen))
        return server.add_secure_port(str(listen), _credentials(listen.identity, asks=listen.asks_certificate))
    except RuntimeError as error:
        raise PortTaken(f"cannot listen on {listen}: something else does, or it is not allowed; choose another port") from error


def _credentials(identity: NodeIdentity, *, asks: bool) -> grpc.ServerCredentials:
    """Whoever connects sees the certificate that the identity has then."""
    shown = identity.certificate

    def configuration() -> grpc.ServerCertificateConfiguration:
        root = identity.authority_pem if asks else None
        return grpc.ssl_server_certificate_configuration([(identity.tls_key_pem, shown.pem)], root_certificates=root)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """For each handshake, on a thread of gRPC's, one at a time. None: as before."""
        nonlocal shown
        if identity.certificate is shown:
            return None
        shown = identity.certificate
        return configuration()

    # The stubs do not know that None may be returned, as gRPC documents.
    return grpc.dynamic_ssl_server_credentials(configuration(), renewed, require_client_authentication=asks)  # type: ignore[arg-type]


def _public_credentials(public: PublicTls) -> grpc.ServerCredentials:
    def configuration(shown: PublicTls) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(shown.key_pem, shown.certificate_pem)])

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        found = public.renewed() if public.renewed is not None else None
        return None if found is None else configuration(found)

    # The stubs do not know that None may be returned, as gRPC documents.
    return grpc.dynamic_ssl_server_credentials(configuration(public), renewed)  # type: ignore[arg-type]


def _options(limits: ServerLimits, *, shared: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(shared)),
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.metadata_bytes),
        # Of calls that come in one burst, gRPC drops some beyond 1,000 by chance, as CANCELLED, before anybody here saw them.
        ("grpc.server.max_pending_requests", 2 * limits.concurrent_rpcs),
        ("grpc.server.max_pending_requests_hard_limit", 4 * limits.concurrent_rpcs),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
