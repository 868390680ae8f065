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
from gateway.edge import public_tls, publish_edge
from gateway.jobs.room import Jobs, jobs_room
from gateway.jobs.servicer import SERVICE as JOBS
from gateway.kserve.servicer import SERVICE as KSERVE
from gateway.kserve.servicer import KServeServicer
from gateway.mesh import Mesh, joined
from gateway.metrics import GatewayMetrics
from gateway.openai.servicer import SERVICE as OPENAI
from gateway.openai.servicer import OpenAIServicer
from gateway.reservations import SERVICE as RESERVATIONS
from gateway.reservations import ReservationServicer
from gateway.xds.holder import SnapshotHolder
from gateway.xds.servicer import SERVICE as DISCOVERY
from gateway.xds.servicer import DiscoveryServicer
from runtime.clock import SystemClock
from runtime.config import read_settings
from runtime.identity import NodeIdentity, load_identity
from runtime.own_region import located
from runtime.process import announce, run_service, started
from runtime.renewal import renewing
from runtime.serving import Listen, Register, ServerLimits, serving
from runtime.telemetry import configure_logging, configure_tracing, start_metrics_endpoint


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises a PenstockError where it cannot start; registry, scheduler and etcd may come later."""
    configure_logging("gateway", level=settings.log_level)
    interceptors = configure_tracing("gateway", settings.otlp_endpoint)
    settings = located(settings, SystemClock())
    identity, metrics = load_identity(settings.identity_dir), GatewayMetrics(prometheus_client.REGISTRY)
    listens = [
        Listen(settings.edge_host, settings.edge_port, public_tls=public_tls(settings)),
        Listen(settings.host, settings.port, identity),
    ]
    limits = ServerLimits(message_bytes=settings.max_message_bytes, concurrent_rpcs=settings.max_concurrent_rpcs)
    async with joined(settings, identity, metrics) as mesh, jobs_room(settings, identity, mesh) as jobs:
        holder = SnapshotHolder()
        registers, services = _registers(settings, identity, mesh, jobs, DiscoveryServicer(holder, identifier=identity.node_id))
        server = serving(
            listens,
            registers,
            services,
            interceptors=interceptors,
            limits=limits,
            drain_grace_s=settings.drain_grace_s,
            revocations=mesh.board.revocations,
        )
        async with server as running, renewing(identity, settings.registry_address):
            publish_edge(holder, settings, port := running.ports[1])
            bound = None if settings.metrics_port is None else start_metrics_endpoint(settings.host, settings.metrics_port)
            structlog.get_logger("penstock.gateway").info("serving", port=port, edge_port=running.ports[0], metrics_port=bound)
            announce(settings.ready_file, port=port, edge_port=running.ports[0], metrics_port=bound)
            await stop.wait()
            jobs.runner.wind_down()


def _registers(
    settings: GatewaySettings, identity: NodeIdentity, mesh: Mesh, jobs: Jobs, discovery: DiscoveryServicer
) -> tuple[list[Register], list[str]]:
    kserve = KServeServicer(mesh, strict_readiness=settings.strict_readiness, stream_in_flight=settings.stream_in_flight)
    openai = OpenAIServicer(mesh, jobs.files, jobs.batches)
    reservations = ReservationServicer(
        mesh.callers, mesh.targets, mesh.metrics, mesh.schedulers, mesh.regions, identity.authority_pem
    )
    ads = partial(discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server, discovery)
    registers: list[Register] = [kserve.register, openai.register, jobs.servicer.register, reservations.register, ads]
    return registers, [KSERVE, OPENAI, JOBS, RESERVATIONS, DISCOVERY]


def run(settings: GatewaySettings) -> int:
    """Serve until a signal; the exit status."""
    return run_service(partial(serve, settings))


def main(argv: Sequence[str] | None = None) -> int:
    return started(lambda: run(read_settings(GatewaySettings, argv)))


if __name__ == "__main__":
    sys.exit(main())
