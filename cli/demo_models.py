"""The two demo models: published where the registry lacks them, placed where nobody asked for them yet, waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc.aio
from inference import grpc_service_pb2, grpc_service_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from cli.profile import Profile
from cli.publish import place, publish_folder
from runtime.identity import NodeIdentity
from runtime.ids import EVERY_TENANT

FOLDER = Path(__file__).with_name("demo")
NAMES = ("digits", "sums")
_POLL_S = 0.05


async def publish_demos(profile: Profile, operator: NodeIdentity, copies: int, say: Callable[[str], None]) -> None:
    """Idempotent: what is there stays, also a placement that somebody changed."""
    say("publishing the demo models")
    async with profile.registry_channel() as registry, profile.scheduler_channel() as scheduler:
        fleet = scheduler_pb2_grpc.FleetServiceStub(scheduler)
        for name in NAMES:
            published = await publish_folder(registry, operator.signing_key, FOLDER / name, shared_with=(EVERY_TENANT,))
            known = await _placements(fleet)
            if not any(placement.model == name for placement in known.placements):
                await place(scheduler, published, copies)


async def _placements(fleet: scheduler_pb2_grpc.FleetServiceStub) -> scheduler_pb2.ListPlacementsResponse:
    """What is wished for, as soon as the scheduler knows: it says UNAVAILABLE until it has seen etcd."""
    while True:
        try:
            return await fleet.ListPlacements(scheduler_pb2.ListPlacementsRequest(), wait_for_ready=True)
        except grpc.aio.AioRpcError as failure:
            if failure.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        await asyncio.sleep(_POLL_S)


async def wait_until_ready(profile: Profile, say: Callable[[str], None]) -> None:
    """Until the gateway itself says that both answer."""
    say("loading the demo models")
    async with profile.gateway_channel() as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for name in NAMES:
            while not await _ready(stub, name, profile):
                await asyncio.sleep(_POLL_S)


async def _ready(stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub, name: str, profile: Profile) -> bool:
    try:
        request = grpc_service_pb2.ModelReadyRequest(name=name)
        return (await stub.ModelReady(request, metadata=profile.metadata, timeout=5)).ready
    except grpc.aio.AioRpcError:
        return False
