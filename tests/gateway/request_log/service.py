"""UsageService on a real port, over a real log."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc.aio
from penstock.gateway.v1 import usage_pb2_grpc
from prometheus_client import CollectorRegistry

from gateway.admission import KeyFacts
from gateway.callers import Callers
from gateway.exchange import Exchanges
from gateway.keys import Keys
from gateway.metrics import GatewayMetrics
from gateway.request_log.room import LogRoom, request_log_room
from gateway.request_log.servicer import SERVICE, UsageServicer
from gateway.request_log.types import DAY_MS, LogSettings, Origin
from runtime.clock import SystemClock
from runtime.errors import NotFound
from runtime.ids import KeyId, TenantId
from runtime.serving import Listen, serving

ACME, ACME_TOO, STRANGER = "sk-pn-acme", "sk-pn-acme-too", "sk-pn-stranger"
_KEYS = {
    ACME: KeyFacts(KeyId("k"), TenantId("t")),
    ACME_TOO: KeyFacts(KeyId("k2"), TenantId("t"), may_infer=False),
    STRANGER: KeyFacts(KeyId("s"), TenantId("u"), admin=True),
}
_AGES_MS = 100_000 * DAY_MS
AT_THE_END = LogSettings(every_s=1000.0, retention_ms=_AGES_MS, sums_ms=_AGES_MS)
QUICK = replace(AT_THE_END, every_s=0.02)
"""When what is asked of the service itself is in the log. What tests write is from 2024."""


class Directory:
    async def resolve(self, secret_sha256: bytes) -> KeyFacts:
        for secret, facts in _KEYS.items():
            if hashlib.sha256(secret.encode()).digest() == secret_sha256:
                return facts
        raise NotFound("no such key")


@dataclass(frozen=True, slots=True)
class SmallMesh:
    callers: Callers
    exchanges: Exchanges


@dataclass(slots=True)
class Service:
    room: LogRoom
    stub: Any
    port: int
    registry: CollectorRegistry

    @staticmethod
    def key(secret: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {secret}"),)


@asynccontextmanager
async def usage_service(address: str, settings: LogSettings = AT_THE_END) -> AsyncIterator[Service]:
    clock, registry = SystemClock(), CollectorRegistry()
    metrics = GatewayMetrics(registry)
    async with request_log_room(address, settings, Origin("local", "g", 3), clock, registry) as room:
        mesh = SmallMesh(Callers(Keys(Directory(), clock), metrics), Exchanges(metrics, log=room.log))
        servicer = UsageServicer(mesh, room, clock)
        async with serving([Listen("127.0.0.1", 0)], [servicer.register], [SERVICE], drain_grace_s=0.1) as running:
            port = running.ports[0]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Service(room, usage_pb2_grpc.UsageServiceStub(channel), port, registry)
