"""The gateway's way into the mesh: keys from the registry, its notices from etcd, the fleet from the scheduler, links to
workers, a router over them.

Owns their lifetimes and the loops that keep them current. Never serves anything itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc.aio

from gateway.callers import Callers
from gateway.config import Auth, GatewaySettings
from gateway.fleet import Fleet
from gateway.keys import Keys
from gateway.kserve.copies import CopyInquiry
from gateway.kserve.overrides import Overrides
from gateway.kserve.repository import Repository, RepositorySettings
from gateway.links.link import WorkerLink
from gateway.links.types import LinkSettings
from gateway.metrics import GatewayMetrics
from gateway.peers import RegistryClient, SchedulerClient
from gateway.publisher import Publisher, Roots
from gateway.routing import Router, RoutingSettings
from gateway.targets import Targets
from gateway.tracing import traceparent_of_span
from placement.types import Worker
from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import NodeIdentity, Role
from runtime.ids import NodeId, Region
from runtime.manifests import read_trusted_signers
from runtime.notices import NoticeBoard
from runtime.records import RecordVerifier


@dataclass(frozen=True, slots=True)
class Mesh:
    """What the servicers are made of."""

    callers: Callers
    router: Router
    targets: Targets
    fleet: Fleet
    copies: CopyInquiry
    repository: Repository
    registry: RegistryClient
    metrics: GatewayMetrics
    board: NoticeBoard


@asynccontextmanager
async def joined(settings: GatewaySettings, identity: NodeIdentity, metrics: GatewayMetrics) -> AsyncIterator[Mesh]:
    """Part of the mesh until left. Registry, scheduler and etcd may come later, and go."""
    clock, region, limit = SystemClock(), Region(settings.region), settings.max_message_bytes
    link_settings = LinkSettings(streams=settings.streams_per_worker, answer_bytes=limit)

    def open_link(worker: Worker) -> WorkerLink:
        return WorkerLink(worker.address, identity, worker.worker_id, settings=link_settings)

    def open_channel(worker: Worker) -> grpc.aio.Channel:
        return inner_channel(worker.address, identity, Role.WORKER, node_id=NodeId(worker.worker_id))

    async with AsyncExitStack() as stack:
        registry_channel = inner_channel(settings.registry_address, identity, Role.REGISTRY)
        scheduler_channel = inner_channel(settings.scheduler_address, identity, Role.SCHEDULER)
        registry = RegistryClient(await stack.enter_async_context(registry_channel))
        scheduler = SchedulerClient(await stack.enter_async_context(scheduler_channel), region)
        board, keys = NoticeBoard(), Keys(registry, clock)
        stack.push_async_callback(keys.close)
        board.on_key.append(lambda key_id: keys.forget([key_id]))
        board.on_resync.append(keys.doubt_all)
        fleet = Fleet(scheduler, open_link, clock, board)
        is_enforced = settings.auth is Auth.REQUIRED
        targets = Targets(board, fleet, enforced=is_enforced, wait_s=settings.cold_wait_s)
        metrics.follow(fleet.links)
        copies = CopyInquiry(fleet, open_channel)
        stack.push_async_callback(copies.close)
        store = await stack.enter_async_context(EtcdStore(EtcdSettings.at(settings.etcd_endpoints)))
        verifier = RecordVerifier(identity.authority_pem)
        await stack.enter_async_context(board.following(store, verifier, clock))
        await stack.enter_async_context(_following(fleet))
        yield Mesh(
            Callers(
                keys if is_enforced else None,
                metrics,
                traceparent_of_span if settings.otlp_endpoint is not None else None,
            ),
            Router(fleet, metrics, RoutingSettings(settings.strategy, settings.cold_wait_s)),
            targets,
            fleet,
            copies,
            Repository(
                fleet,
                registry,
                scheduler,
                RepositorySettings(region, settings.load_copies, settings.load_wait_s),
                Overrides(Publisher(registry_channel, identity, clock, _roots(settings), board)),
            ),
            registry,
            metrics,
            board,
        )


def _roots(settings: GatewaySettings) -> Roots | None:
    """Raises FailedPrecondition on a file that cannot be read. It is read anew each time it is needed."""
    if settings.trusted_signers is None:
        return None
    roots = partial(read_trusted_signers, settings.trusted_signers)
    roots()
    return roots


@asynccontextmanager
async def _following(fleet: Fleet) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as loops:
        following = loops.create_task(fleet.run(), name="fleet")
        try:
            yield
        finally:
            following.cancel()
