"""Composes the scheduler: etcd, loops, servicer. Nested lifetimes; leaving is the order of shutting down."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from functools import partial

import structlog
from penstock.scheduler.v1 import scheduler_pb2_grpc

from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.config import read_settings
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import Role, load_identity
from runtime.ids import Region
from runtime.notices import NoticeBoard
from runtime.process import announce, run_service, started
from runtime.records import RecordVerifier
from runtime.renewal import renewing
from runtime.serving import Listen, serving
from runtime.telemetry import configure_logging, configure_tracing
from scheduler.config import SchedulerSettings
from scheduler.loop import Scheduler
from scheduler.metrics import opened_metrics
from scheduler.peers import RegistryPeer
from scheduler.placements import Placements
from scheduler.presence import PresenceReader
from scheduler.servicer import SERVICES, FleetServicer
from scheduler.switches import Switches


async def serve(settings: SchedulerSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises a PenstockError where it cannot start; etcd may come later."""
    configure_logging("scheduler", level=settings.log_level)
    interceptors = configure_tracing("scheduler", settings.otlp_endpoint)
    identity, board, clock, rng = load_identity(settings.identity_dir), NoticeBoard(), SystemClock(), random.SystemRandom()
    verifier = RecordVerifier(identity.authority_pem, revocations=board.revocations)
    async with (
        EtcdStore(EtcdSettings.at(settings.etcd_endpoints)) as store,
        inner_channel(settings.registry_address, identity, Role.REGISTRY) as registry,
    ):
        scheduler = Scheduler(store, PresenceReader(verifier), clock, rng, board)
        placements = Placements(store, scheduler.control, Region(settings.region), board)
        switches = Switches(scheduler, placements, RegistryPeer(registry), clock, rng, limit_s=settings.alias_move_limit_s)
        server = serving(
            [Listen(settings.host, settings.port, identity)],
            [partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, FleetServicer(scheduler, placements))],
            SERVICES,
            interceptors=interceptors,
            drain_grace_s=settings.drain_grace_s,
            revocations=board.revocations,
        )
        async with (
            server as running,
            board.following(store, verifier, clock),
            scheduler.running(),
            switches.running(),
            renewing(identity, settings.registry_address),
        ):
            with opened_metrics(scheduler, switches, settings.host, settings.metrics_port) as metrics_port:
                structlog.get_logger("penstock.scheduler").info("serving", port=running.ports[0], metrics_port=metrics_port)
                announce(settings.ready_file, port=running.ports[0], metrics_port=metrics_port)
                await stop.wait()


def run(settings: SchedulerSettings) -> int:
    """Serve until a signal; the exit status."""
    return run_service(partial(serve, settings))


def main(argv: Sequence[str] | None = None) -> int:
    return started(lambda: run(read_settings(SchedulerSettings, argv)))


if __name__ == "__main__":
    sys.exit(main())
