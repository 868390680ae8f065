"""The picker's own port: plaintext, for the Envoy beside it, with nothing else of the scheduler on it.

The health names are those that the endpoint picker protocol asks for.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
from grpc_health.v1 import health_pb2
from xds import external_processor_pb2_grpc

from runtime.clock import Clock
from runtime.serving import Listen, serving
from scheduler.picker.picking import Picker
from scheduler.picker.servicer import SERVICE, PickerServicer

_HEALTH_NAMES = ("liveness", "readiness")


@asynccontextmanager
async def opened_picker(
    picker: Picker, host: str, port: int | None, clock: Clock, rng: random.Random
) -> AsyncIterator[int | None]:
    """Pick while the context lasts; the bound port, None where there is to be none. Raises PortTaken."""
    if port is None:
        yield None
        return
    servicer = PickerServicer(picker, clock, rng)

    def register(server: grpc.aio.Server) -> None:
        external_processor_pb2_grpc.add_ExternalProcessorServicer_to_server(servicer, server)

    async with serving([Listen(host, port)], [register], [SERVICE]) as running:
        for name in _HEALTH_NAMES:
            await running.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        yield running.ports[0]
