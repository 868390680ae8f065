"""penstock.scheduler.v1.FleetService on the wire: who may call what, and messages to nouns and back."""

from __future__ import annotations

from typing import Any

import grpc.aio
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from runtime.errors import Code, PenstockError
from runtime.identity import Role
from runtime.ids import Region
from runtime.serving import inner_peer
from scheduler import codec
from scheduler.loop import Scheduler
from scheduler.placements import Placements

SERVICES = ("penstock.scheduler.v1.FleetService",)
_ALLOWED = (Role.GATEWAY, Role.OPERATOR)

Context = grpc.aio.ServicerContext[Any, Any]


class FleetUnseen(PenstockError, code=Code.UNAVAILABLE, reason="FLEET_UNSEEN"):
    """This scheduler has not seen etcd since it began, so it knows of no fleet, not even that there is none."""


class FleetServicer(scheduler_pb2_grpc.FleetServiceServicer):
    """Gateways and operators may call all of it."""

    def __init__(self, scheduler: Scheduler, placements: Placements) -> None:
        self._scheduler, self._placements = scheduler, placements

    # A coroutine that writes: cancelled generators leak natively in grpc.aio (grpc#43360).
    async def WatchFleet(self, request: scheduler_pb2.WatchFleetRequest, context: Context) -> None:  # type: ignore[override]
        inner_peer(context, *_ALLOWED)
        with self._scheduler.audience.watching(Region(request.region)) as watcher:
            while (update := await watcher.next()) is not None:
                await context.write(
                    codec.watch_message(
                        snapshot=update.snapshot,
                        payloads=[member.payload for member in update.members],
                        removed=update.removed,
                        stale=update.stale,
                        placements=update.placements,
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

    def _seen(self) -> None:
        if not self._scheduler.synced():
            raise FleetUnseen(
                "this scheduler has not reached etcd yet; try again, and check etcd if it goes on", retry_after_s=1.0
            )
