"""The gateway's way into the mesh: keys from the registry, its notices from etcd, the fleet from the schedulers, links to
workers, a router over them.

Owns their lifetimes and the loops that keep them current. Never serves anything itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc.aio

from gateway.auto import AutoModels
from gateway.cache.response_cache import ResponseCache
from gateway.cache.types import CacheSettings
from gateway.callers import Callers
from gateway.capacity import Capacity, CapacitySettings
from gateway.config import Auth, CallerRegion, GatewaySettings
from gateway.dispatch import Detours, Dispatch
from gateway.exchange import Exchanges
from gateway.fallbacks import Fallbacks
from gateway.fleet import Fleet
from gateway.hedging import Hedges
from gateway.keys import Keys
from gateway.kserve.copies import CopyInquiry
from gateway.kserve.overrides import Overrides
from gateway.kserve.repository import Repository, RepositorySettings
from gateway.limits.limiter import Limiter
from gateway.limits.purse import Purse
from gateway.limits.sharing import Sharing
from gateway.links.link import WorkerLink
from gateway.links.types import LinkSettings
from gateway.metrics import GatewayMetrics
from gateway.offers import Offers
from gateway.others import OtherWorkers
from gateway.peers import RegistryClient, SchedulerClient
from gateway.publisher import Publisher, Roots
from gateway.regions import Regions
from gateway.reports import Reports
from gateway.request_log.room import LogRoom, log_settings, request_log_room
from gateway.request_log.types import Origin
from gateway.routes import Routes
from gateway.routing import Router, RoutingSettings
from gateway.schedulers import Schedulers
from gateway.targets import Targets
from gateway.tracing import traceparent_of_span
from gateway.upkeep import Upkeep
from gateway.whereabouts import Whereabouts, caller_address
from placement.routing.retry_budget import RetryBudget
from placement.rules import Route
from placement.types import Worker
from runtime.channel import inner_channel
from runtime.clock import Clock, SystemClock
from runtime.errors import FailedPrecondition
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import NodeIdentity, Role
from runtime.ids import NodeId, Region
from runtime.manifests import read_trusted_signers
from runtime.notices import NoticeBoard
from runtime.own_region import geolocation_of
from runtime.records import RecordVerifier


@dataclass(frozen=True, slots=True)
class Mesh:
    """What the servicers are made of."""

    callers: Callers
    exchanges: Exchanges
    dispatch: Dispatch
    auto: AutoModels
    targets: Targets
    fleet: Fleet
    copies: CopyInquiry
    repository: Repository
    registry: RegistryClient
    metrics: GatewayMetrics
    board: NoticeBoard
    schedulers: Schedulers
    regions: Regions
    log: LogRoom = field(default_factory=LogRoom)


@asynccontextmanager
async def joined(
    settings: GatewaySettings, identity: NodeIdentity, metrics: GatewayMetrics, *, process: int = 0
) -> AsyncIterator[Mesh]:
    """Part of the mesh until left. Registry, scheduler and etcd may come later, and go. `process`: of the gateway's."""
    clock, region, limit = SystemClock(), Region(settings.region), settings.max_message_bytes
    link_settings = LinkSettings(
        streams=settings.streams_per_worker, answer_bytes=limit, lost_after_s=settings.worker_silence_s
    )

    def open_link(worker: Worker) -> WorkerLink:
        others = OtherWorkers(fleet, metrics, worker.worker_id)
        return WorkerLink(worker.address, identity, worker.worker_id, settings=link_settings, others=others)

    def open_channel(worker: Worker) -> grpc.aio.Channel:
        return inner_channel(worker.address, identity, Role.WORKER, node_id=NodeId(worker.worker_id))

    async with AsyncExitStack() as stack:
        origin = Origin(region, identity.node_id, process)
        kept = request_log_room(settings.request_log, log_settings(settings), origin, clock, metrics.registry)
        log = await stack.enter_async_context(kept)
        registry_channel = inner_channel(settings.registry_address, identity, Role.REGISTRY)
        registry = RegistryClient(await stack.enter_async_context(registry_channel))
        opened = partial(_scheduler, identity)
        schedulers = await _schedulers(settings, opened, clock, stack)
        board, keys = NoticeBoard(), Keys(registry, clock)
        stack.push_async_callback(keys.close)
        board.on_key.append(lambda key_id: keys.forget([key_id]))
        board.on_resync.append(keys.doubt_all)
        board.on_limits.append(keys.refresh_all)
        limiter = Limiter(Purse(), clock, metrics)
        metrics.follow_limits(lambda: not limiter.sure)
        fleet = Fleet(
            schedulers,
            open_link,
            clock,
            board,
            region,
            cross_region=settings.cross_region,
            all_regions=_serves_all_regions(settings),
        )
        whereabouts = await _whereabouts(settings, fleet, clock, stack)
        address_of = partial(caller_address, proxies_before_envoy=settings.proxies_before_envoy)
        is_enforced = settings.auth is Auth.REQUIRED
        budget, routes = RetryBudget(), Routes(fleet, Route(strategy=settings.strategy, cross_region=settings.cross_region))
        targets = Targets(board, fleet, enforced=is_enforced, wait_s=settings.cold_wait_s, routes=routes)
        capacity = Capacity(schedulers, metrics, CapacitySettings(settings.capacity_waiters, settings.capacity_wait_s))
        router = Router(
            fleet,
            metrics,
            RoutingSettings(settings.strategy, settings.cold_wait_s, settings.cross_region),
            budget,
            capacity,
        )
        metrics.follow(fleet.links)
        metrics.follow_waiting(lambda: capacity.waiting)
        metrics.follow_health(lambda: fleet.state.health)
        fallbacks = Fallbacks(routes, targets, fleet, router.ledger, metrics)
        detours = Detours(routes, fallbacks, Hedges(router, fleet, budget, metrics))
        cache = _response_cache(settings, fleet, metrics)
        copies = CopyInquiry(fleet, open_channel, None if cache is None else cache.counts)
        stack.push_async_callback(copies.close)
        store = await stack.enter_async_context(EtcdStore(EtcdSettings.at(settings.etcd_endpoints)))
        verifier = RecordVerifier(identity.authority_pem)
        await stack.enter_async_context(board.following(store, verifier, clock))
        reports = Reports(fleet, router.ledger, schedulers.known, clock, metrics, region)
        upkeep, sharing = Upkeep(fleet, metrics, clock), Sharing(limiter, schedulers.known, opened, clock, secrets.token_hex(8))
        await stack.enter_async_context(_running(fleet.run(), reports.run(), upkeep.run(), sharing.run()))
        yield Mesh(
            Callers(
                keys if is_enforced else None,
                metrics,
                traceparent_of_span if settings.otlp_endpoint is not None else None,
                None if whereabouts is None else address_of,
                address_of,
            ),
            Exchanges(metrics, limiter, log.log),
            Dispatch(router, detours, cache),
            AutoModels(Offers(targets, fleet, routes)),
            targets,
            fleet,
            copies,
            Repository(
                fleet,
                registry,
                schedulers,
                RepositorySettings(region, settings.load_copies, settings.load_wait_s),
                Overrides(Publisher(registry_channel, identity, clock, _roots(settings), board)),
            ),
            registry,
            metrics,
            board,
            schedulers,
            Regions(region, fleet.regions, header_allowed=settings.allow_region_header, whereabouts=whereabouts),
            log,
        )


def _response_cache(settings: GatewaySettings, fleet: Fleet, metrics: GatewayMetrics) -> ResponseCache | None:
    if not settings.response_cache_bytes:
        return None
    return ResponseCache(fleet, metrics, CacheSettings(settings.response_cache_bytes, settings.response_cache_ttl_s))


def _scheduler(identity: NodeIdentity, address: str) -> SchedulerClient:
    """With a channel of its own."""
    return SchedulerClient(address, inner_channel(address, identity, Role.SCHEDULER))


async def _schedulers(
    settings: GatewaySettings, opened: Callable[[str], SchedulerClient], clock: Clock, stack: AsyncExitStack
) -> Schedulers:
    """All that the settings name."""
    known = [opened(address) for address in settings.scheduler_addresses]
    for each in known:
        await stack.enter_async_context(each.channel)
    everywhere = settings.cross_region or _serves_all_regions(settings)
    schedulers = Schedulers(known, opened, Region(settings.region), clock, all_regions=everywhere)
    stack.push_async_callback(schedulers.close)
    return schedulers


async def _whereabouts(settings: GatewaySettings, fleet: Fleet, clock: Clock, stack: AsyncExitStack) -> Whereabouts | None:
    """None where it does not matter from where callers call. Raises FailedPrecondition, InvalidArgument."""
    if settings.caller_region is not CallerRegion.ADDRESS:
        return None
    if settings.geolocation_database is None and not settings.region_overrides:
        raise FailedPrecondition(
            "--caller-region address has nothing to look callers up in; pass --geolocation-database FILE.mmdb or"
            " --region-overrides"
        )
    geolocation = geolocation_of(settings, Region(settings.region), clock)
    await stack.enter_async_context(_running(geolocation.run()))
    return Whereabouts(geolocation, fleet.inhabited)


def _serves_all_regions(settings: GatewaySettings) -> bool:
    """Whether requests may be from other regions than this gateway's."""
    return settings.allow_region_header or settings.caller_region is CallerRegion.ADDRESS


def _roots(settings: GatewaySettings) -> Roots | None:
    """Raises FailedPrecondition on a file that cannot be read. It is read anew each time it is needed."""
    if settings.trusted_signers is None:
        return None
    roots = partial(read_trusted_signers, settings.trusted_signers)
    roots()
    return roots


@asynccontextmanager
async def _running(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Loops that run until this is left."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop) for loop in loops]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
