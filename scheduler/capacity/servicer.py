"""FleetService.AwaitCapacity on the wire. A gateway that goes away while it waits has withdrawn."""

from __future__ import annotations

from typing import Any

import grpc.aio
from penstock.scheduler.v1 import scheduler_pb2

from placement.types import ANY_REGION
from runtime.clock import Clock, SystemClock
from runtime.errors import Unimplemented
from runtime.ids import Region
from scheduler.capacity.codec import asked_of, place_message
from scheduler.capacity.loop import Capacity

Context = grpc.aio.ServicerContext[Any, Any]


class CapacityServicer:
    """Its part of FleetService. `region` is what a request means that names none."""

    def __init__(self, capacity: Capacity | None = None, region: Region = ANY_REGION, clock: Clock | None = None) -> None:
        self._capacity, self._region, self._clock = capacity, region, clock or SystemClock()

    async def AwaitCapacity(
        self, request: scheduler_pb2.AwaitCapacityRequest, context: Context
    ) -> scheduler_pb2.AwaitCapacityResponse:
        if self._capacity is None:
            raise Unimplemented("this scheduler has no queue for requests without room; ask another one")
        place = await self._capacity.wait(asked_of(request, self._region))
        return place_message(place, self._clock.monotonic_s())
