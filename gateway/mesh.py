"""The gateway's way into the mesh: keys from the registry, the fleet from the scheduler, links to workers, a router over them.

Owns their lifetimes and the loops that keep them current. Never serves anything itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from gateway.callers import Callers
from gateway.config import Auth, GatewaySettings
from gateway.fleet import Fleet
from gateway.keys import Keys
from gateway.kserve.copies import CopyInquiry
from gateway.kserve.repository import Repository, RepositorySettings
from gateway.links.link import WorkerLink
from gateway.links.types import LinkSettings
from gateway.metrics import GatewayMetrics
from gateway.peers import RegistryClient, SchedulerClient
from gateway.routing import Router, RoutingSettings
from gateway.tracing import traceparent_of_span
from placement.types import Worker
from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.identity import NodeIdentity, Role
from runtime.ids import NodeId, Region


@dataclass(frozen=True, slots=True)
class Mesh:
    """What the servicers are made of."""

    callers: Callers
    router: Router
    fleet: Fleet
    copies: CopyInquiry
    repository: Repository
    registry: RegistryClient
    metrics: GatewayMetrics


@asynccontextmanager
async def joined(settings: GatewaySettings, identity: NodeIdentity, metrics: GatewayMetrics) -> AsyncIterator[Mesh]:
    """Part of the mesh until left. Registry and scheduler may come later, and go."""
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
        keys = Keys(registry, clock)
        stack.push_async_callback(keys.close)
        fleet = Fleet(scheduler, open_link, clock)
        metrics.follow(fleet.links)
        copies = CopyInquiry(fleet, open_channel)
        stack.push_async_callback(copies.close)
        await stack.enter_async_context(_following(fleet, keys))
        yield Mesh(
            Callers(
                keys if settings.auth is Auth.REQUIRED else None,
                metrics,
                traceparent_of_span if settings.otlp_endpoint is not None else None,
            ),
            Router(fleet, metrics, RoutingSettings(settings.strategy, settings.cold_wait_s)),
            fleet,
            copies,
            Repository(fleet, registry, scheduler, RepositorySettings(region, settings.load_copies, settings.load_wait_s)),
            registry,
            metrics,
        )


@asynccontextmanager
async def _following(fleet: Fleet, keys: Keys) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as loops:
        tasks = [loops.create_task(fleet.run(), name="fleet"), loops.create_task(keys.run(), name="keys")]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
