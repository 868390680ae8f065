"""A worker's part in a mesh: orders followed while it lives, presence while it answers.

Puts the pieces together from the settings. Decides nothing but that a setting is missing.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import grpc.aio

from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.errors import FailedPrecondition
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import NodeIdentity, Role
from runtime.ids import Region, TenantId, WorkerId, assignment_key
from runtime.manifests import read_trusted_signers
from runtime.notices import NoticeBoard
from runtime.records import RecordVerifier
from worker.config import WorkerSettings
from worker.execute.model_service import ModelService
from worker.files.artifacts import Artifacts
from worker.files.cache import open_cache
from worker.files.incidents import Incidents
from worker.files.peers import NearbyWorkers, PeerRules
from worker.files.registry_source import RegistrySource
from worker.files.sharing import SharedFiles
from worker.files.volatile import open_volatile_cache
from worker.front import Ports
from worker.hardware import DEFAULT_TIERS, read_disk_free_bytes, read_hardware, read_tiers, tiers_of
from worker.life.lifecycle import Holdings
from worker.life.loading import LoadRules, OpenModel
from worker.life.machine_memory import read_memory_limit_bytes
from worker.life.reconcile import Reconciler
from worker.models import ModelTable
from worker.presence import Presence, PresenceTiming
from worker.presence_codec import WorkerFacts
from worker.threads import in_thread

_WILDCARDS = ("", "0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Following:
    """What goes with following orders."""

    store: EtcdStore
    models: ModelService
    """LoadModel, UnloadModel and ReadArtifact, for the inner port."""
    memory_bytes: int
    """What open models may take together."""


class Membership:
    """This worker in its mesh. Entering `following_orders` waits for neither etcd nor registry."""

    def __init__(
        self,
        settings: WorkerSettings,
        identity: NodeIdentity,
        table: ModelTable,
        holdings: Holdings,
        open_model: OpenModel,
    ) -> None:
        if settings.trusted_signers is None:
            raise FailedPrecondition("a worker needs to know whose models to load; pass --trusted-signers FILE")
        if settings.host in _WILDCARDS and not settings.advertise:
            raise FailedPrecondition(f"others cannot call {settings.host or 'an empty host'}; pass --advertise HOST:PORT")
        self._settings, self._identity, self._table, self._holdings = settings, identity, table, holdings
        self._open_model = open_model
        self._signers = partial(read_trusted_signers, settings.trusted_signers)
        self._signers()  # a file that cannot be read is told of now; it is read anew at each load
        self._tiers = DEFAULT_TIERS if settings.tiers is None else read_tiers(settings.tiers)
        self._clock, self._rng = SystemClock(), random.SystemRandom()
        self.board = NoticeBoard()
        """What the registry tells the mesh, heard while orders are followed."""
        self._region, self._worker_id = Region(settings.region), WorkerId(identity.node_id)

    @asynccontextmanager
    async def following_orders(self) -> AsyncIterator[Following]:
        """Hold what the scheduler assigns, and what operators ask for, while the context lasts."""
        settings = self._settings
        rules = LoadRules(
            at_once=settings.loads_at_once,
            attempts=settings.load_attempts,
            again_after_s=settings.load_again_s,
            leave_grace_s=settings.leave_grace_s,
            drain_grace_s=settings.drain_grace_s,
        )
        memory_bytes = settings.memory_bytes
        if memory_bytes is None:
            memory_bytes = await in_thread(read_memory_limit_bytes)
        with (
            open_cache(settings.cache_dir, settings.cache_bytes) as cache,
            open_volatile_cache(settings.volatile_dir, settings.volatile_bytes, self._worker_id) as volatile,
        ):
            async with (
                EtcdStore(EtcdSettings.at(settings.etcd_endpoints)) as store,
                self.board.following(store, RecordVerifier(self._identity.authority_pem)),
                inner_channel(settings.registry_address, self._identity, Role.REGISTRY) as channel,
                self._incidents(channel) as incidents,
            ):
                reconciler = Reconciler(
                    store,
                    assignment_key(self._region, self._worker_id),
                    Artifacts(
                        cache,
                        RegistrySource(channel, self._identity),
                        self._signers,
                        self._peers(store),
                        self._clock,
                        board=self.board,
                        volatile=volatile,
                        report=incidents.report,
                    ),
                    self._table,
                    self._open_model,
                    self._holdings,
                    self._clock,
                    self._rng,
                    rules,
                    memory_bytes=memory_bytes,
                    board=self.board,
                )
                files = SharedFiles(cache, tenants=self._tenants, at_once=settings.artifact_reads_at_once)
                async with reconciler.running():
                    yield Following(store, ModelService(reconciler.local, files), memory_bytes)

    def _tenants(self) -> frozenset[TenantId]:
        return self._identity.certificate.peer.tenants

    @asynccontextmanager
    async def _incidents(self, channel: grpc.aio.Channel) -> AsyncIterator[Incidents]:
        incidents = Incidents(channel, self._clock, self._rng)
        async with incidents.told():
            yield incidents

    def _peers(self, store: EtcdStore) -> NearbyWorkers | None:
        if not self._settings.peers_at_most:
            return None
        rules = PeerRules(at_most=self._settings.peers_at_most)
        return NearbyWorkers(
            store, self._region, self._identity, self._clock, self._rng, rules, revocations=self.board.revocations
        )

    @asynccontextmanager
    async def present(self, following: Following, ports: Ports, draining: Callable[[], bool]) -> AsyncIterator[None]:
        """Be in the fleet, while the context lasts."""
        settings, identity = self._settings, self._identity
        hardware = await in_thread(read_hardware, settings.cache_dir)
        facts = WorkerFacts(
            worker_id=self._worker_id,
            region=self._region,
            address=settings.advertise or told_address(settings, ports.inner),
            tiers=tiers_of(hardware, self._tiers),
            hardware=hardware,
            x25519_public_key=identity.x25519_public_key,
            max_in_flight=settings.max_in_flight,
            software_version=_own_version(),
            labels=settings.label,
            memory_budget_bytes=following.memory_bytes,
            sealed_address=told_address(settings, ports.sealed, settings.sealed_advertise),
            kserve_address=told_address(settings, ports.kserve, settings.kserve_advertise),
            cost=settings.cost,
        )
        presence = Presence(
            facts,
            identity,
            self._holdings,
            self._clock,
            self._rng,
            draining=draining,
            disk_free_bytes=partial(read_disk_free_bytes, Path(settings.cache_dir)),
            timing=PresenceTiming(settings.lease_ttl_s, settings.heartbeat_s),
        )
        async with presence.joined(following.store):
            yield


def membership_of(
    settings: WorkerSettings,
    identity: NodeIdentity | None,
    table: ModelTable,
    holdings: Holdings,
    open_model: OpenModel,
) -> Membership | None:
    """None for a worker that serves alone. Raises FailedPrecondition where a setting is missing."""
    if settings.standalone:
        return None
    if identity is None:
        raise FailedPrecondition("a worker of a mesh needs an identity; pass --identity-dir, or --standalone to serve alone")
    if identity.role is not Role.WORKER:
        raise FailedPrecondition(
            f"the identity in {identity.folder} is that of a {identity.role.value}; a worker needs its own"
        )
    return Membership(settings, identity, table, holdings, open_model)


def told_address(settings: WorkerSettings, port: int | None, advertised: str = "") -> str:
    """Where others reach a port: as advertised, else on the host on which this worker is reached; empty where it is off."""
    if port is None:
        return ""
    if advertised:
        return advertised
    host = settings.host
    if settings.advertise:
        host = settings.advertise.rpartition(":")[0].strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _own_version() -> str:
    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return "0"
