"""Tells the registry, for its audit trail, what turned out not to be what it should be.

Best effort and bounded: one of a kind in ten minutes, one every two seconds, some that wait, a few tries each. A load never
waits for it, and what cannot be told is in the log.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio
import structlog
from penstock.registry.v1 import audit_pb2, audit_pb2_grpc

from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.errors import PenstockError

WAITING_AT_MOST = 32
_SUBJECT_LENGTH, _DETAIL_LENGTH = 256, 500
_SPACED_S = 2.0
_SAME_AFTER_S = 600.0
_REMEMBERED = 1_000
_ATTEMPTS = 5
_ANSWER_S = 5.0
_BACKOFF = Backoff(first_s=0.5, max_s=10.0)
_log = structlog.get_logger("penstock.incidents")

Report = Callable[[PenstockError, str], None]
"""Of an error, and what it is about, such as a digest."""


def unreported(_: PenstockError, __: str) -> None:
    """For a worker without a registry to tell."""


@dataclass(frozen=True, slots=True)
class Incident:
    reason: str
    subject: str
    detail: str


class Incidents:
    """Those of one worker."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock, rng: random.Random) -> None:
        self._stub = audit_pb2_grpc.AuditServiceStub(channel)
        self._clock, self._rng = clock, rng
        self._waiting: asyncio.Queue[Incident] = asyncio.Queue(WAITING_AT_MOST)
        self._told_s: dict[tuple[str, str], float] = {}
        """When one of this reason about this subject was told last."""

    def report(self, error: PenstockError, subject: str) -> None:
        """A `Report`. Never waits and never fails."""
        incident = Incident(error.reason, subject[:_SUBJECT_LENGTH], error.message[:_DETAIL_LENGTH])
        _log.error("incident", reason=incident.reason, subject=incident.subject, detail=incident.detail)
        if not self._is_new(incident):
            return
        try:
            self._waiting.put_nowait(incident)
        except asyncio.QueueFull:
            _log.warning("incident_not_told", reason=incident.reason, subject=incident.subject, why="too many wait")

    @asynccontextmanager
    async def told(self) -> AsyncIterator[None]:
        """Tell of them while the context lasts."""
        telling = asyncio.create_task(self._tell_each(), name="incidents")
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.wait((telling,))

    def _is_new(self, incident: Incident) -> bool:
        kind, now_s = (incident.reason, incident.subject), self._clock.monotonic_s()
        last_s = self._told_s.pop(kind, None)
        if last_s is not None and now_s - last_s < _SAME_AFTER_S:
            self._told_s[kind] = last_s
            return False
        while len(self._told_s) >= _REMEMBERED:
            del self._told_s[next(iter(self._told_s))]
        self._told_s[kind] = now_s
        return True

    async def _tell_each(self) -> None:
        while True:
            incident = await self._waiting.get()
            await self._tell(incident)
            await self._clock.sleep(_SPACED_S)

    async def _tell(self, incident: Incident) -> None:
        request = audit_pb2.ReportIncidentRequest(reason=incident.reason, subject=incident.subject, detail=incident.detail)
        for failures in range(1, _ATTEMPTS + 1):
            try:
                await self._stub.ReportIncident(request, timeout=_ANSWER_S)
                return
            except grpc.aio.AioRpcError as failure:
                why = failure.details()
            await self._clock.sleep(_BACKOFF.delay_s(failures, self._rng))
        _log.warning("incident_not_told", reason=incident.reason, subject=incident.subject, why=why)
