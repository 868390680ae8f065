"""What an operator decides about the edge: where it listens, which gateways stand behind it, what it takes at most.

Plain values. Never knows how Envoy spells any of it.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import Code, PenstockError
from runtime.identity import Role, TlsFiles, server_name

PASSED_THROUGH = (
    "/inference.GRPCInferenceService/",
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
)
"""gRPC that the gateway answers itself. Inner services are absent on purpose: the edge reaches the gateway's inner port."""


class AddressUnusable(PenstockError, code=Code.INVALID_ARGUMENT, reason="EDGE_ADDRESS_UNUSABLE"):
    """Envoy's discovery carries IP addresses and ports, nothing to resolve."""


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An IP address and a port. Raises AddressUnusable where it is neither."""

    host: str
    port: int

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.host)
        except ValueError as error:
            raise AddressUnusable(f"{self.host!r} is not an IP address; resolve it before it goes to Envoy") from error
        if not 0 <= self.port <= 65535:
            raise AddressUnusable(f"port {self.port} is not between 0 and 65535")


def endpoint_of(address: str) -> Endpoint:
    """Of "host:port", an IPv6 host in brackets. Raises AddressUnusable."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or len(port) > 5:
        raise AddressUnusable(f"{address[:128]!r} is no ip:port")
    return Endpoint(host.strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """Certificate chain and key that the edge shows to clients, PEM, readable by Envoy."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What one Envoy takes at most."""

    body_bytes: int = 64 * 1024 * 1024
    header_kib: int = 60
    concurrent_requests: int = 16_384
    connections_to_gateway: int = 1_024
    streams_per_connection: int = 1_024
    retries: int = 2
    connect_timeout_s: float = 1.0
    request_headers_timeout_s: float = 10.0
    stream_idle_timeout_s: float = 3_600.0
    """No byte in either direction for this long ends a stream; a long prefill or a quiet bidi stream stays below it."""
    connection_idle_timeout_s: float = 3_600.0
    drain_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class RegistryFront:
    """The registry's replicas, as one endpoint: for nodes over mTLS, for people's JSON over the edge."""

    endpoints: tuple[Endpoint, ...]
    listen: Endpoint | None = None
    """Where nodes reach it; none: only the edge's JSON does."""
    services: tuple[str, ...] = ()
    """Full names of the registry's services; see `descriptors.annotated_services`."""
    name: str = server_name(Role.REGISTRY)
    """DNS name that a registry's certificate has to carry."""


@dataclass(frozen=True, slots=True)
class Edge:
    """The whole of what Envoy is told, but for the gateways, which come and go."""

    listen: Endpoint
    identity: TlsFiles
    """Envoy's own files for mTLS towards the gateway; paths on the machine where Envoy runs."""
    descriptor_set: bytes
    """A FileDescriptorSet with imports: the contracts of `services`, and google/rpc's for error details."""
    services: tuple[str, ...]
    """Full names of the services that are also spoken as JSON; see `descriptors.annotated_services`."""
    passed_through: tuple[str, ...] = PASSED_THROUGH
    """Path prefixes of what is spoken as gRPC only."""
    registry: RegistryFront | None = None
    gateway_name: str = server_name(Role.GATEWAY)
    """DNS name that a gateway's certificate has to carry."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call; "*" is any. None: no page of another origin may."""
    server_files: ServerFiles | None = None
    """TLS towards clients; without it HTTP/1.1 and h2c in the clear. New files that are moved into place are used at once."""
    access_log: str = ""
    """The file of requests, a path where Envoy runs; /dev/stdout for its own output; empty: none."""
    share_port: bool = False
    """SO_REUSEPORT. Off: a taken port is refused and reported, instead of shared with whoever took it."""
    limits: EdgeLimits = field(default_factory=EdgeLimits)
