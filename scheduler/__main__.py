"""Composes the scheduler: etcd, loops, servicer. Nested lifetimes; leaving is the order of shutting down."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import prometheus_client
import structlog
from penstock.scheduler.v1 import scheduler_pb2_grpc

from runtime.clock import SystemClock
from runtime.config import read_settings
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import load_identity
from runtime.ids import Region
from runtime.process import announce, run_service, started
from runtime.records import RecordVerifier
from runtime.serving import Listen, serving
from runtime.telemetry import configure_logging, configure_tracing, start_metrics_endpoint
from scheduler.config import SchedulerSettings
from scheduler.loop import Scheduler
from scheduler.metrics import SchedulerMetrics
from scheduler.placements import Placements
from scheduler.presence import PresenceReader
from scheduler.servicer import SERVICES, FleetServicer


async def serve(settings: SchedulerSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises a PenstockError where it cannot start; etcd may come later."""
    configure_logging("scheduler", level=settings.log_level)
    interceptors = configure_tracing("scheduler", settings.otlp_endpoint)
    identity = load_identity(settings.identity_dir)
    async with EtcdStore(EtcdSettings.at(settings.etcd_endpoints)) as store:
        reader = PresenceReader(RecordVerifier(identity.authority_pem))
        scheduler = Scheduler(store, reader, SystemClock(), random.SystemRandom())
        servicer = FleetServicer(scheduler, Placements(store, scheduler.control, Region(settings.region)))
        server = serving(
            [Listen(settings.host, settings.port, identity)],
            [partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, servicer)],
            SERVICES,
            interceptors=interceptors,
            drain_grace_s=settings.drain_grace_s,
        )
        async with server as running, scheduler.running():
            with _metrics(scheduler, settings) as metrics_port:
                structlog.get_logger("penstock.scheduler").info("serving", port=running.ports[0], metrics_port=metrics_port)
                announce(settings.ready_file, port=running.ports[0], metrics_port=metrics_port)
                await stop.wait()


@contextmanager
def _metrics(scheduler: Scheduler, settings: SchedulerSettings) -> Iterator[int | None]:
    collector = SchedulerMetrics(scheduler)
    prometheus_client.REGISTRY.register(collector)
    try:
        yield None if settings.metrics_port is None else start_metrics_endpoint(settings.host, settings.metrics_port)
    finally:
        prometheus_client.REGISTRY.unregister(collector)


def run(settings: SchedulerSettings) -> int:
    """Serve until a signal; the exit status."""
    return run_service(partial(serve, settings))


def main(argv: Sequence[str] | None = None) -> int:
    return started(lambda: run(read_settings(SchedulerSettings, argv)))


if __name__ == "__main__":
    sys.exit(main())
