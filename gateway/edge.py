"""What Envoy is told of this gateway: one listener, and this process behind it.

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


def _own_endpoint(settings: GatewaySettings, port: int) -> Endpoint:
    host, _, advertised = settings.advertise.rpartition(":")
    if advertised:
        return Endpoint(host.strip("[]"), int(advertised))
    return Endpoint("127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host, port)


def _files(folder: Path) -> TlsFiles:
    return TlsFiles(folder / "ca.pem", folder / "tls.pem", folder / "tls.key")
