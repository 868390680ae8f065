"""What applications meet: the edge port's certificate, and what Envoy is told of this gateway.

Composes `gateway.xds` from the settings. Never sees a request.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from gateway.config import GatewaySettings
from gateway.xds.descriptors import annotated_services, load_descriptor_set
from gateway.xds.holder import SnapshotHolder
from gateway.xds.registry_front import PACKAGE
from gateway.xds.resources import edge_snapshot
from gateway.xds.types import Edge, EdgeLimits, Endpoint, RegistryFront
from runtime.errors import FailedPrecondition
from runtime.identity import TlsFiles
from runtime.serving import PublicTls


def publish_edge(holder: SnapshotHolder, settings: GatewaySettings, port: int) -> None:
    """Put in force what the settings say, with this process's inner port as the only gateway. Nothing, where no port is set.

    Raises AddressUnusable, DescriptorSetMissing, FailedPrecondition.
    """
    if settings.http_port is None:
        return
    if settings.envoy_identity_dir is None:
        raise FailedPrecondition("--http-port needs --envoy-identity-dir: Envoy has to show a certificate to this gateway")
    descriptor_set = load_descriptor_set()
    edge = Edge(
        Endpoint(settings.http_host, settings.http_port),
        _files(settings.envoy_identity_dir),
        descriptor_set,
        annotated_services(descriptor_set),
        registry=_registry_front(settings, descriptor_set),
        limits=EdgeLimits(body_bytes=settings.max_message_bytes),
    )
    holder.publish(edge_snapshot(edge, [_own_endpoint(settings, port)]))


def public_tls(settings: GatewaySettings) -> PublicTls | None:
    """What the edge port shows to applications; None: it speaks plaintext. Raises FailedPrecondition."""
    certificate, key = settings.edge_certificate, settings.edge_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise FailedPrecondition("--edge-certificate and --edge-key go together: one of them was given")
    return PublicTls(certificate.read_bytes(), key.read_bytes())


def _registry_front(settings: GatewaySettings, descriptor_set: bytes) -> RegistryFront | None:
    """None where it is not said, in addresses that Envoy takes, where the registry is."""
    if not settings.registry_endpoints and not _is_ip(settings.registry_address):
        return None
    addresses = (settings.registry_endpoints or settings.registry_address).split(",")
    endpoints = tuple(_endpoint(address.strip()) for address in addresses)
    port = settings.registry_front_port
    listen = None if port is None else Endpoint(settings.http_host, port)
    return RegistryFront(endpoints, listen, annotated_services(descriptor_set, (PACKAGE,)))


def _endpoint(address: str) -> Endpoint:
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise FailedPrecondition(f"--registry-endpoints: {address!r} is no ip:port")
    return Endpoint(host.strip("[]"), int(port))


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


def _own_endpoint(settings: GatewaySettings, port: int) -> Endpoint:
    host, _, advertised = settings.advertise.rpartition(":")
    if advertised:
        return Endpoint(host.strip("[]"), int(advertised))
    return Endpoint("127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host, port)


def _files(folder: Path) -> TlsFiles:
    return TlsFiles(folder / "ca.pem", folder / "tls.pem", folder / "tls.key")
