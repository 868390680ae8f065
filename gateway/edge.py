"""What applications meet: the edge port's certificate, and Envoy's configuration as far as an operator decides it.

From the settings to values. Never sees a request, and never knows which gateways there are: `gateway.doorway` does.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from gateway.config import GatewaySettings
from gateway.xds.descriptors import annotated_services, load_descriptor_set
from gateway.xds.registry_front import PACKAGE
from gateway.xds.types import Edge, EdgeLimits, Endpoint, RegistryFront, ServerFiles, endpoint_of
from runtime.errors import FailedPrecondition
from runtime.identity import TlsFiles
from runtime.public_certificate import CertificateFiles
from runtime.serving import PublicTls

_WILDCARDS = ("", "0.0.0.0", "::")


def edge_of(settings: GatewaySettings) -> Edge | None:
    """What Envoy is told beside the gateways; None where it is told nothing.

    Raises AddressUnusable, DescriptorSetMissing, FailedPrecondition.
    """
    if settings.http_port is None:
        return None
    if settings.envoy_identity_dir is None:
        raise FailedPrecondition("--http-port needs --envoy-identity-dir: Envoy has to show a certificate to this gateway")
    descriptor_set = load_descriptor_set()
    return Edge(
        Endpoint(settings.http_host, settings.http_port),
        _files(settings.envoy_identity_dir),
        descriptor_set,
        annotated_services(descriptor_set),
        registry=_registry_front(settings, descriptor_set),
        cors_origins=settings.cors_origins,
        server_files=_server_files(settings),
        access_log=settings.http_access_log,
        limits=EdgeLimits(body_bytes=settings.max_message_bytes),
    )


def public_tls(settings: GatewaySettings) -> PublicTls | None:
    """What the edge port shows to applications; None: it speaks plaintext. Raises FailedPrecondition."""
    files = _pair(settings.edge_certificate, settings.edge_key, "--edge-certificate and --edge-key")
    return None if files is None else CertificateFiles(*files).opened()


def told_endpoint(settings: GatewaySettings, port: int) -> Endpoint | None:
    """Where others reach the inner port; None where nobody can know. Raises AddressUnusable."""
    if settings.advertise:
        return endpoint_of(settings.advertise)
    return None if settings.host in _WILDCARDS else Endpoint(settings.host, port)


def own_endpoint(settings: GatewaySettings, port: int) -> Endpoint:
    """Where an Envoy on this machine reaches the inner port, if nothing better is said. Raises AddressUnusable."""
    return told_endpoint(settings, port) or Endpoint("127.0.0.1", port)


def _pair(certificate: Path | None, key: Path | None, options: str) -> tuple[Path, Path] | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise FailedPrecondition(f"{options} go together: one of them was given")
    return certificate, key


def _server_files(settings: GatewaySettings) -> ServerFiles | None:
    files = _pair(settings.http_certificate, settings.http_key, "--http-certificate and --http-key")
    return None if files is None else ServerFiles(*files)


def _registry_front(settings: GatewaySettings, descriptor_set: bytes) -> RegistryFront | None:
    """None where it is not said, in addresses that Envoy takes, where the registry is."""
    if not settings.registry_endpoints and not _is_ip(settings.registry_address):
        return None
    addresses = (settings.registry_endpoints or settings.registry_address).split(",")
    endpoints = tuple(_registry_endpoint(address.strip()) for address in addresses)
    port = settings.registry_front_port
    listen = None if port is None else Endpoint(settings.http_host, port)
    return RegistryFront(endpoints, listen, annotated_services(descriptor_set, (PACKAGE,)))


def _registry_endpoint(address: str) -> Endpoint:
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


def _files(folder: Path) -> TlsFiles:
    return TlsFiles(folder / "ca.pem", folder / "tls.pem", folder / "tls.key")
