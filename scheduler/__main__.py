"""Composes the scheduler: etcd, loops, servicer. Nested lifetimes; leaving is the order of shutting down."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from functools import partial

import structlog
from penstock.scheduler.v1 import scheduler_pb2_grpc

from placement.rules import Route
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
from runtime.serving import Listen, ServerLimits, serving
from runtime.telemetry import configure_logging, configure_tracing
from scheduler.config import SchedulerSettings, job_limits, own_address
from scheduler.jobs.policy import Retries
from scheduler.jobs.room import opened_jobs
from scheduler.leading.leadership import Leadership
from scheduler.leading.types import group_of
from scheduler.limits.room import LimitsRoom
from scheduler.limits.servicer import SERVICE as LIMITS_SERVICE
from scheduler.limits.servicer import LimitsServicer
from scheduler.loop import Scheduler
from scheduler.metrics import Told, opened_metrics
from scheduler.peers import RegistryPeer
from scheduler.picker.door import opened_picker
from scheduler.placements import Placements
from scheduler.presence import PresenceReader
from scheduler.servicer import SERVICES, FleetServicer
from scheduler.services import Services
from scheduler.switches import Switches
from scheduler.workers import WorkerPeers

MESSAGE_BYTES = 20 * 1024 * 1024
"""A job's payload or answer is one message."""


async def serve(settings: SchedulerSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises a PenstockError where it cannot start; etcd and databases may come later."""
    configure_logging("scheduler", level=settings.log_level)
    interceptors = configure_tracing("scheduler", settings.otlp_endpoint)
    identity, board, clock, rng = load_identity(settings.identity_dir), NoticeBoard(), SystemClock(), random.SystemRandom()
    verifier, home = RecordVerifier(identity.authority_pem, revocations=board.revocations), Region(settings.region)
    async with (
        EtcdStore(EtcdSettings.at(settings.etcd_endpoints)) as store,
        inner_channel(settings.registry_address, identity, Role.REGISTRY) as registry,
        WorkerPeers(identity) as workers,
        opened_jobs(settings.jobs_database, clock, rng, job_limits(settings), Retries(settings.jobs_max_attempts)) as jobs,
    ):
        leadership = Leadership(store, clock, rng, group_of(settings.regions), identity.node_id, ttl_s=settings.lease_ttl_s)
        scheduler = Scheduler(store, PresenceReader(verifier), clock, rng, board, leadership)
        placements = Placements(store, scheduler.control, home, board)
        switches = Switches(scheduler, placements, RegistryPeer(registry), clock, rng, limit_s=settings.alias_move_limit_s)
        services = Services(scheduler, store, workers, home, clock, rng, Route(strategy=settings.strategy))
        limits = LimitsRoom(store, clock, rng, identity.node_id, ttl_s=settings.lease_ttl_s)
        fleet = FleetServicer(scheduler, placements, services.rooms)
        server = serving(
            [Listen(settings.host, settings.port, identity)],
            [
                partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, fleet),
                LimitsServicer(limits).register,
                *jobs.registers,
            ],
            [*SERVICES, LIMITS_SERVICE, *jobs.services],
            interceptors=interceptors,
            limits=ServerLimits(message_bytes=MESSAGE_BYTES),
            drain_grace_s=settings.drain_grace_s,
            revocations=board.revocations,
        )
        async with (
            server as running,
            board.following(store, verifier, clock),
            scheduler.running(),
            services.running(),
            jobs.running(),
            switches.running(),
            opened_picker(services.picker, settings.picker_host, settings.picker_port, clock, rng) as picker_port,
            renewing(identity, settings.registry_address),
            leadership.running(own_address(settings, running.ports[0])),
            limits.running(own_address(settings, running.ports[0])),
        ):
            told = Told(scheduler, switches, services, jobs, limits)
            with opened_metrics(told, settings.host, settings.metrics_port) as metrics_port:
                bound = {"port": running.ports[0], "picker_port": picker_port, "metrics_port": metrics_port}
                structlog.get_logger("penstock.scheduler").info("serving", **bound)
                announce(settings.ready_file, **bound)
                await stop.wait()


def run(settings: SchedulerSettings) -> int:
    """Serve until a signal; the exit status."""
    return run_service(partial(serve, settings))


def main(argv: Sequence[str] | None = None) -> int:
    return started(lambda: run(read_settings(SchedulerSettings, argv)))


if __name__ == "__main__":
    sys.exit(main())
