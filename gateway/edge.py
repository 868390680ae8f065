"""What applications meet: the edge port's certificate, and what Envoy is told of this gateway.

Composes `gateway.xds` from the settings. Never sees a request.
"""

from __future__ import annotations

from pathlib import Path

from gateway.config import GatewaySettings
from gateway.xds.descriptors import annotated_services, load_descriptor_set
from gateway.xds.holder import SnapshotHolder
from gateway.xds.resources import edge_snapshot
from gateway.xds.types import Edge, EdgeLimits, Endpoint
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


def _own_endpoint(settings: GatewaySettings, port: int) -> Endpoint:
    host, _, advertised = settings.advertise.rpartition(":")
    if advertised:
        return Endpoint(host.strip("[]"), int(advertised))
    return Endpoint("127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host, port)


def _files(folder: Path) -> TlsFiles:
    return TlsFiles(folder / "ca.pem", folder / "tls.pem", folder / "tls.key")
