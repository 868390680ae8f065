"""Composes the gateway: mesh, services, Envoy's control plane. Lifetimes nest; leaving them is the order of shutting down."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import prometheus_client
import structlog

from gateway.config import GatewaySettings
from gateway.doors import doors_of
from gateway.doorway import doorway
from gateway.edge import public_tls
from gateway.envoy_identity import envoy_renewed
from gateway.http.server import http_serving
from gateway.jobs.room import jobs_room
from gateway.mesh import joined
from gateway.metrics import GatewayMetrics
from gateway.processes import Place, supervised
from runtime.clock import SystemClock
from runtime.config import read_settings
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import load_identity
from runtime.own_region import located
from runtime.process import announce, run_service, started
from runtime.renewal import renewing
from runtime.serving import Listen, ServerLimits, serving
from runtime.telemetry import configure_logging, configure_tracing, start_metrics_endpoint

ENVELOPE_BYTES = 64 * 1024
"""What stands around a body of the largest size in its message: names, content type, framing."""


async def serve(settings: GatewaySettings, stop: asyncio.Event, place: Place | None = None) -> None:
    """Serve until `stop` is set. Raises a PenstockError where it cannot start; registry, scheduler and etcd may come later."""
    configure_logging("gateway", level=settings.log_level)
    interceptors = configure_tracing("gateway", settings.otlp_endpoint)
    settings, place = located(settings, SystemClock()), place or Place(partial(announce, settings.ready_file))
    identity, metrics = load_identity(settings.identity_dir), GatewayMetrics(prometheus_client.REGISTRY)
    listens = [
        Listen(settings.edge_host, settings.edge_port, public_tls=public_tls(settings), shared=place.is_shared),
        Listen(settings.host, settings.port, identity),
    ]
    message_bytes = settings.max_message_bytes + ENVELOPE_BYTES
    limits = ServerLimits(message_bytes=message_bytes, concurrent_rpcs=settings.max_concurrent_rpcs)
    async with (
        EtcdStore(EtcdSettings.at(settings.etcd_endpoints)) as store,
        joined(settings, identity, metrics, process=place.number) as mesh,
        doorway(settings, identity, store, mesh.board.revocations, SystemClock(), process=place.number) as door,
        jobs_room(settings, identity, mesh) as jobs,
        envoy_renewed(settings) if place.number == 0 else nullcontext(),
    ):
        doors = doors_of(settings, identity, mesh, jobs, door.discovery)
        server = serving(
            listens,
            doors.registers,
            doors.services,
            interceptors=interceptors,
            limits=limits,
            drain_grace_s=settings.drain_grace_s,
            revocations=mesh.board.revocations,
        )
        async with (
            http_serving(doors.http, settings.host, settings.door_port, identity, settings.drain_grace_s) as http_port,
            server as running,
            renewing(identity, settings.registry_address),
        ):
            edge_port, port = running.ports
            await door.begin(port, mesh.fleet.until_synced, http_port)
            bound = None if settings.metrics_port is None else start_metrics_endpoint(settings.host, settings.metrics_port)
            structlog.get_logger("penstock.gateway").info("serving", port=port, edge_port=edge_port, metrics_port=bound)
            place.announce(port=port, edge_port=edge_port, door_port=http_port, metrics_port=bound)
            await stop.wait()
            doors.readiness.leave()
            jobs.runner.wind_down()
            await running.set_serving(False)
            await door.leave()


def run(settings: GatewaySettings) -> int:
    """Serve until a signal; the exit status."""
    return run_service(partial(serve if settings.processes == 1 else supervised, settings))


def main(argv: Sequence[str] | None = None) -> int:
    return started(lambda: run(read_settings(GatewaySettings, argv)))


if __name__ == "__main__":
    sys.exit(main())
