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
import prometheus_client

from runtime.identity import NodeIdentity
from runtime.serving import Listen, ServerLimits, serving
from runtime.telemetry import start_metrics_endpoint
from worker.config import WorkerSettings
from worker.execution import SERVICE as EXECUTE
from worker.execution import Execution
from worker.inference import TableInference
from worker.metrics import register_metrics
from worker.models import ModelTable
from worker.servicer import SERVICE as KSERVE
from worker.servicer import register_inference

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
) -> AsyncIterator[Ports]:
    """Serve while the context lasts. Raises PortTaken."""

    def is_ready() -> bool:
        return not leaving and not execution.draining

    leaving = False
    limits, grace_s = ServerLimits(message_bytes=MESSAGE_BYTES), settings.drain_grace_s
    async with AsyncExitStack() as stack:
        inner = kserve = None
        if identity is not None:
            registers = [execution.register, register_inference(inference, table, inner=True, ready=is_ready)]
            listen = Listen(settings.host, settings.port, identity)
            opening = serving(
                [listen], registers, [EXECUTE, KSERVE], interceptors=interceptors, limits=limits, drain_grace_s=grace_s
            )
            inner = await stack.enter_async_context(opening)
        if settings.kserve_port is not None:
            register = register_inference(inference, table, inner=False, ready=is_ready)
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


def opened_metrics(settings: WorkerSettings, table: ModelTable, inference: TableInference) -> int | None:
    """Serve the counters for the rest of this process; the bound port, None where it is off."""
    if settings.metrics_port is None:
        return None
    register_metrics(table, inference, prometheus_client.REGISTRY)
    return start_metrics_endpoint(settings.host, settings.metrics_port)
