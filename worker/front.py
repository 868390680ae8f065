"""The worker's servers: the inner port for gateways (mTLS), and where they are asked for a plaintext KServe port and one for
sealed calls (TLS, for clients that have no certificate).

Owns how they stop: health says so, a moment passes for those who send to hear of it, calls end within the grace, then the
ports close. Never decides whether the worker is in the fleet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio
from prometheus_client.registry import CollectorRegistry

from runtime.identity import NodeIdentity
from runtime.ids import WorkerId
from runtime.revocations import Revocations
from runtime.serving import Listen, Running, ServerLimits, serving
from runtime.telemetry import start_metrics_endpoint
from worker.config import WorkerSettings
from worker.execute.execution import SERVICE as EXECUTE
from worker.execute.execution import Execution
from worker.inference import TableInference
from worker.kserve.servicer import SERVICE as KSERVE
from worker.kserve.servicer import register_inference
from worker.kserve.shared_memory import SharedMemory, SharedMemoryPolicy
from worker.machine_metrics import register_machine
from worker.metrics import register_metrics
from worker.models import ModelTable
from worker.quota import QuotaPolicy
from worker.sealed.door import Door
from worker.sealed.servicer import SERVICE as SEALED
from worker.sealed.servicer import SealedServicer
from worker.types import Repository

MESSAGE_BYTES = 64 * 1024 * 1024
_ENVELOPE_BYTES = 4 * 1024
"""What a sealed call is longer than its payload, at most."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What was bound."""

    inner: int | None
    kserve: int | None
    sealed: int | None = None


@asynccontextmanager
async def opened_front(
    settings: WorkerSettings,
    identity: NodeIdentity | None,
    table: ModelTable,
    inference: TableInference,
    execution: Execution,
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    repository: Repository | None = None,
    revocations: Revocations | None = None,
) -> AsyncIterator[Ports]:
    """Serve while the context lasts; nodes in `revocations` are not. Raises PortTaken."""

    def is_ready() -> bool:
        return not leaving and not execution.draining

    leaving = False
    traced = settings.otlp_endpoint is not None
    limits, grace_s = ServerLimits(message_bytes=MESSAGE_BYTES), settings.drain_grace_s
    async with AsyncExitStack() as stack:
        inner = kserve = None
        if identity is not None:
            register = register_inference(inference, table, inner=True, ready=is_ready, traced=traced, repository=repository)
            registers = [execution.register, register]
            listen = Listen(settings.host, settings.port, identity)
            opening = serving(
                [listen],
                registers,
                [EXECUTE, KSERVE],
                interceptors=interceptors,
                limits=limits,
                drain_grace_s=grace_s,
                revocations=revocations,
            )
            inner = await stack.enter_async_context(opening)
        if settings.kserve_port is not None:
            register = register_inference(
                inference,
                table,
                inner=False,
                ready=is_ready,
                memory=shared_memory_of(settings),
                traced=traced,
                repository=repository,
            )
            listen = Listen(settings.host, settings.kserve_port)
            opening = serving([listen], [register], [KSERVE], interceptors=interceptors, limits=limits, drain_grace_s=grace_s)
            kserve = await stack.enter_async_context(opening)
        door = sealed = None
        if settings.sealed_port is not None and identity is not None:
            door = _door(identity, inference, execution)
            sealed = await stack.enter_async_context(_opened_sealed(settings, settings.sealed_port, identity, door))
        try:
            yield Ports(*(running.ports[0] if running else None for running in (inner, kserve, sealed)))
        finally:
            leaving = True
            for running in (inner, kserve, sealed):
                if running is not None:
                    await running.set_serving(False)
            await asyncio.sleep(settings.leave_grace_s)
            await execution.drain(grace_s)
            if door is not None:
                door.cut_off()


def _door(identity: NodeIdentity, inference: TableInference, execution: Execution) -> Door:
    private_key = identity.signing_key.to_curve25519_private_key()
    return Door(inference, inference.holds, WorkerId(identity.node_id), private_key, execution)


def _opened_sealed(
    settings: WorkerSettings, port: int, identity: NodeIdentity, door: Door
) -> AbstractAsyncContextManager[Running]:
    """No interceptors: spans and metrics of this port would tell of calls that are between a client and this worker."""
    return serving(
        [Listen(settings.host, port, identity, asks_certificate=False)],
        [SealedServicer(door).register],
        [SEALED],
        limits=ServerLimits(message_bytes=settings.sealed_call_bytes + _ENVELOPE_BYTES, concurrent_rpcs=settings.sealed_calls),
        drain_grace_s=settings.drain_grace_s,
    )


def quota_of(settings: WorkerSettings) -> QuotaPolicy:
    """Tenants are told apart where gateways name them; the plaintext port alone knows none."""
    if settings.identity_dir is None:
        return QuotaPolicy(settings.max_in_flight)
    return QuotaPolicy(settings.max_in_flight, settings.tenant_share, settings.tenant_max_in_flight)


def shared_memory_of(settings: WorkerSettings) -> SharedMemory | None:
    """For the plaintext port only: what comes through a gateway was sent from another machine."""
    prefix = settings.shared_memory_prefix
    return None if prefix is None else SharedMemory(SharedMemoryPolicy(prefix))


def opened_metrics(settings: WorkerSettings, table: ModelTable, inference: TableInference) -> int | None:
    """Serve the counters for the rest of this process; the bound port, None where it is off."""
    if settings.metrics_port is None:
        return None
    registry = CollectorRegistry()
    register_metrics(table, inference, registry)
    register_machine(registry)
    return start_metrics_endpoint(settings.host, settings.metrics_port, registry)
