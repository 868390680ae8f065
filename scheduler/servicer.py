"""penstock.scheduler.v1.FleetService on the wire: who may call what, and messages to nouns and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from runtime.errors import Code, PenstockError
from runtime.identity import Role
from runtime.serving import inner_peer
from scheduler import codec
from scheduler.capacity.servicer import CapacityServicer
from scheduler.demand.servicer import DemandServicer
from scheduler.loop import Scheduler
from scheduler.placements import Placements
from scheduler.reservations.servicer import ReservationServicer
from scheduler.routing.servicer import RoutingServicer

SERVICES = ("penstock.scheduler.v1.FleetService",)
_ALLOWED = (Role.GATEWAY, Role.OPERATOR)

Context = grpc.aio.ServicerContext[Any, Any]


class FleetUnseen(PenstockError, code=Code.UNAVAILABLE, reason="FLEET_UNSEEN"):
    """This scheduler has not seen etcd since it began, so it knows of no fleet, not even that there is none."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """Who answers what of FleetService besides the fleet and its placements."""

    demand: DemandServicer = field(default_factory=DemandServicer)
    capacity: CapacityServicer = field(default_factory=CapacityServicer)
    reservations: ReservationServicer = field(default_factory=ReservationServicer)
    routing: RoutingServicer = field(default_factory=RoutingServicer)


class FleetServicer(scheduler_pb2_grpc.FleetServiceServicer):
    """Gateways and operators may call all of it."""

    def __init__(self, scheduler: Scheduler, placements: Placements, rooms: Rooms | None = None) -> None:
        self._scheduler, self._placements, self._rooms = scheduler, placements, rooms or Rooms()

    # A coroutine that writes: cancelled generators leak natively in grpc.aio (grpc#43360).
    async def WatchFleet(self, request: scheduler_pb2.WatchFleetRequest, context: Context) -> None:  # type: ignore[override]
        inner_peer(context, *_ALLOWED)
        with self._scheduler.audience.watching(codec.region_of(request.region)) as watcher:
            while (update := await watcher.next()) is not None:
                await context.write(
                    codec.watch_message(
                        snapshot=update.snapshot,
                        payloads=[member.payload for member in update.members],
                        removed=update.removed,
                        stale=update.stale,
                        placements=update.placements,
                        leaders=update.leaders,
                        policy=update.policy,
                    )
                )

    async def ListWorkers(
        self, request: scheduler_pb2.ListWorkersRequest, context: Context
    ) -> scheduler_pb2.ListWorkersResponse:
        inner_peer(context, *_ALLOWED)
        self._seen()
        members = self._scheduler.fleet.members
        there = [members[who] for who in sorted(members) if request.region in ("", members[who].worker.region)]
        return scheduler_pb2.ListWorkersResponse(workers=codec.presence_messages(member.payload for member in there))

    async def PlaceModel(self, request: scheduler_pb2.PlaceModelRequest, context: Context) -> scheduler_pb2.PlaceModelResponse:
        inner_peer(context, *_ALLOWED)
        wish = await self._placements.place(codec.placement_of(request.placement))
        return scheduler_pb2.PlaceModelResponse(placement=codec.placement_message(wish))

    async def ListPlacements(
        self, request: scheduler_pb2.ListPlacementsRequest, context: Context
    ) -> scheduler_pb2.ListPlacementsResponse:
        inner_peer(context, *_ALLOWED)
        self._seen()
        wishes = self._scheduler.control.wishes()
        return scheduler_pb2.ListPlacementsResponse(placements=[codec.placement_message(wish) for wish in wishes])

    async def ReportDemand(
        self, request: AsyncIterator[scheduler_pb2.ReportDemandRequest], context: Context
    ) -> scheduler_pb2.ReportDemandResponse:
        inner_peer(context, Role.GATEWAY)
        return await self._rooms.demand.ReportDemand(request, context)

    async def AwaitCapacity(
        self, request: scheduler_pb2.AwaitCapacityRequest, context: Context
    ) -> scheduler_pb2.AwaitCapacityResponse:
        inner_peer(context, Role.GATEWAY)
        return await self._rooms.capacity.AwaitCapacity(request, context)

    async def Reserve(self, request: scheduler_pb2.ReserveRequest, context: Context) -> scheduler_pb2.ReserveResponse:
        inner_peer(context, *_ALLOWED)
        return await self._rooms.reservations.Reserve(request, context)

    async def ReleaseReservation(
        self, request: scheduler_pb2.ReleaseReservationRequest, context: Context
    ) -> scheduler_pb2.ReleaseReservationResponse:
        inner_peer(context, *_ALLOWED)
        return await self._rooms.reservations.ReleaseReservation(request, context)

    async def Drain(self, request: scheduler_pb2.DrainRequest, context: Context) -> scheduler_pb2.DrainResponse:
        inner_peer(context, Role.OPERATOR)
        return await self._rooms.reservations.Drain(request, context)

    async def Explain(self, request: scheduler_pb2.ExplainRequest, context: Context) -> scheduler_pb2.ExplainResponse:
        inner_peer(context, *_ALLOWED)
        self._seen()
        return await self._rooms.routing.Explain(request, context)

    async def GetRoutingPolicy(
        self, request: scheduler_pb2.GetRoutingPolicyRequest, context: Context
    ) -> scheduler_pb2.GetRoutingPolicyResponse:
        inner_peer(context, *_ALLOWED)
        return await self._rooms.routing.GetRoutingPolicy(request, context)

    async def SetRoutingPolicy(
        self, request: scheduler_pb2.SetRoutingPolicyRequest, context: Context
    ) -> scheduler_pb2.SetRoutingPolicyResponse:
        inner_peer(context, Role.OPERATOR)
        return await self._rooms.routing.SetRoutingPolicy(request, context)

    def _seen(self) -> None:
        if not self._scheduler.synced():
            raise FleetUnseen(
                "this scheduler has not reached etcd yet; try again, and check etcd if it goes on", retry_after_s=1.0
            )
