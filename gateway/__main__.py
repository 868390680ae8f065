"""Composes the gateway: mesh, services, Envoy's control plane. Lifetimes nest; leaving them is the order of shutting down."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from functools import partial

import prometheus_client
import structlog
from xds import discovery_pb2_grpc

from gateway.config import GatewaySettings
from gateway.edge import publish_edge
from gateway.kserve.servicer import SERVICE as KSERVE
from gateway.kserve.servicer import KServeServicer
from gateway.mesh import Mesh, joined
from gateway.metrics import GatewayMetrics
from gateway.openai.servicer import SERVICE as OPENAI
from gateway.openai.servicer import OpenAIServicer
from gateway.xds.holder import SnapshotHolder
from gateway.xds.servicer import SERVICE as DISCOVERY
from gateway.xds.servicer import DiscoveryServicer
from runtime.config import read_settings
from runtime.identity import load_identity
from runtime.process import announce, run_service, started
from runtime.serving import Listen, PublicTls, Register, ServerLimits, serving
from runtime.telemetry import configure_logging, configure_tracing, start_metrics_endpoint


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises a PenstockError where it cannot start; registry and scheduler may come later."""
    configure_logging("gateway", level=settings.log_level)
    interceptors = configure_tracing("gateway", settings.otlp_endpoint)
    identity, metrics = load_identity(settings.identity_dir), GatewayMetrics(prometheus_client.REGISTRY)
    listens = [
        Listen(settings.edge_host, settings.edge_port, public_tls=_public_tls(settings)),
        Listen(settings.host, settings.port, identity),
    ]
    limits = ServerLimits(message_bytes=settings.max_message_bytes, concurrent_rpcs=settings.max_concurrent_rpcs)
    async with joined(settings, identity, metrics) as mesh:
        holder = SnapshotHolder()
        registers, services = _registers(settings, mesh, DiscoveryServicer(holder, identifier=identity.node_id))
        server = serving(
            listens, registers, services, interceptors=interceptors, limits=limits, drain_grace_s=settings.drain_grace_s
        )
        async with server as running:
            edge_port, port = running.ports
            publish_edge(holder, settings, port)
            metrics_port = settings.metrics_port
            if metrics_port is not None:
                metrics_port = start_metrics_endpoint(settings.host, metrics_port)
            structlog.get_logger("penstock.gateway").info("serving", port=port, edge_port=edge_port, metrics_port=metrics_port)
            announce(settings.ready_file, port=port, edge_port=edge_port, metrics_port=metrics_port)
            await stop.wait()


def _registers(settings: GatewaySettings, mesh: Mesh, discovery: DiscoveryServicer) -> tuple[list[Register], list[str]]:
    kserve = KServeServicer(mesh, strict_readiness=settings.strict_readiness, stream_in_flight=settings.stream_in_flight)
    registers: list[Register] = [
        kserve.register,
        OpenAIServicer(mesh).register,
        partial(discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server, discovery),
    ]
    return registers, [KSERVE, OPENAI, DISCOVERY]


def _public_tls(settings: GatewaySettings) -> PublicTls | None:
    if settings.edge_certificate is None or settings.edge_key is None:
        return None
    return PublicTls(settings.edge_certificate.read_bytes(), settings.edge_key.read_bytes())


def run(settings: GatewaySettings) -> int:
    """Serve until a signal; the exit status."""
    return run_service(partial(serve, settings))


def main(argv: Sequence[str] | None = None) -> int:
    return started(lambda: run(read_settings(GatewaySettings, argv)))


if __name__ == "__main__":
    sys.exit(main())
