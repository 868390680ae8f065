"""FleetService.ReportDemand on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from penstock.scheduler.v1 import scheduler_pb2

from runtime.errors import Unimplemented
from runtime.identity import Role
from runtime.serving import inner_peer
from scheduler.demand.codec import report_of
from scheduler.demand.intake import DemandIntake

Context = grpc.aio.ServicerContext[Any, Any]


class DemandServicer:
    """Its part of FleetService."""

    def __init__(self, intake: DemandIntake | None = None) -> None:
        self._intake = intake

    async def ReportDemand(
        self, request: AsyncIterator[scheduler_pb2.ReportDemandRequest], context: Context
    ) -> scheduler_pb2.ReportDemandResponse:
        if self._intake is None:
            raise Unimplemented("this scheduler gathers no demand")
        with self._intake.listening(inner_peer(context, Role.GATEWAY).node_id) as gateway:
            async for message in request:
                self._intake.hear(gateway, report_of(message))
        return scheduler_pb2.ReportDemandResponse()
