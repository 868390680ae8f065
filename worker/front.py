"""The worker's servers: the inner port for gateways (mTLS), and a plaintext KServe port where one is asked for.

Owns how they stop: health says so, a moment passes for those who send to hear of it, calls end within the grace, then the
ports close. Never decides whether the worker is in the fleet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio
from prometheus_client.registry import CollectorRegistry

from runtime.identity import NodeIdentity
from runtime.revocations import Revocations
from runtime.serving import Listen, ServerLimits, serving
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
from worker.types import Repository

MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ports:
    """What was bound."""

    inner: int | None
    kserve: int | None


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
        try:
            yield Ports(inner.ports[0] if inner else None, kserve.ports[0] if kserve else None)
        finally:
            leaving = True
            for running in (inner, kserve):
                if running is not None:
                    await running.set_serving(False)
            await asyncio.sleep(settings.leave_grace_s)
            await execution.drain(grace_s)


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
