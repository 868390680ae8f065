"""Registry and schedulers as the gateway asks them: gRPC over mTLS, every answer within a bound.

Owns nothing but the calls; channels belong to whoever opened them. Foreign errors leave as our own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog
from penstock.registry.v1 import accounts_pb2, models_pb2
from penstock.registry.v1.accounts_pb2_grpc import AccountServiceStub
from penstock.registry.v1.models_pb2_grpc import ModelServiceStub
from penstock.scheduler.v1 import scheduler_pb2
from penstock.scheduler.v1.scheduler_pb2_grpc import FleetServiceStub

from gateway import codec
from gateway.admission import KeyFacts
from gateway.types import CapacityAsk, DemandReport, FleetNews, Held, PublishedVersion
from placement.copies.assign import Placement
from placement.rules import RoutingPolicy
from runtime.errors import InvalidArgument, Unavailable
from runtime.ids import ModelName, ModelVersion, Region
from runtime.status import error_of

ANSWER_TIMEOUT_S = 5.0
_SETTLED = (
    grpc.ChannelConnectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)
_ANSWER_UNDERWAY_S = 0.05
"""The scheduler keeps the time of those who wait; its answer that time ran out needs some to arrive."""

_log = structlog.get_logger("penstock.peers")
_Answer = TypeVar("_Answer")


class RegistryClient:
    """A `gateway.keys.KeyDirectory`, and the list of what was published."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._accounts: Any = AccountServiceStub(channel)
        self._models: Any = ModelServiceStub(channel)

    async def resolve(self, secret_sha256: bytes) -> KeyFacts:
        request = accounts_pb2.ResolveKeyRequest(secret_sha256=secret_sha256)
        answer: accounts_pb2.ResolveKeyResponse = await _answer(self._accounts.ResolveKey(request, timeout=ANSWER_TIMEOUT_S))
        return codec.key_facts_of(answer)

    async def published(self) -> tuple[PublishedVersion, ...]:
        """Every version that may be served, by model and from the oldest."""
        request = models_pb2.ListModelsRequest()
        answer: models_pb2.ListModelsResponse = await _answer(self._models.ListModels(request, timeout=ANSWER_TIMEOUT_S))
        return tuple(
            codec.version_of(model.model, version)
            for model in answer.models
            for version in model.versions
            if not version.withdrawn_at_ms
        )

    async def version(self, model: ModelName, version: ModelVersion) -> PublishedVersion:
        """One version: a number, an alias, or, empty, what unversioned requests mostly get. Raises NotFound."""
        request = models_pb2.GetVersionRequest(model=model, version=version)
        answer: models_pb2.GetVersionResponse = await _answer(self._models.GetVersion(request, timeout=ANSWER_TIMEOUT_S))
        return codec.version_of(model, answer.version)


class SchedulerClient:
    """One scheduler, by its address; see `gateway.schedulers` for all of them."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address, self.channel = address, channel
        self._fleet: Any = FleetServiceStub(channel)

    async def watch(self, region: Region) -> AsyncGenerator[FleetNews, None]:
        """The workers of this region (empty: of all), and the wishes, policy and leaders of all."""
        call = self._fleet.WatchFleet(scheduler_pb2.WatchFleetRequest(region=region))
        try:
            async for message in call:
                news = codec.news_of(message)
                yield replace(news, policy=_policy(message)) if message.HasField("routing_policy") else news
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        finally:
            call.cancel()

    async def place(self, placement: Placement) -> Placement:
        """Wish for this; what was written, with its generation."""
        request = codec.place_request(placement)
        answer: scheduler_pb2.PlaceModelResponse = await _answer(self._fleet.PlaceModel(request, timeout=ANSWER_TIMEOUT_S))
        return codec.placement_of(answer.placement)

    async def reachable(self, timeout_s: float) -> bool:
        """Whether it is connected, or comes to be within the time; at once where connecting has just failed."""
        try:
            async with asyncio.timeout(timeout_s):
                while (state := self.channel.get_state(True)) not in _SETTLED:
                    await self.channel.wait_for_state_change(state)
        except TimeoutError:
            return False
        return state is grpc.ChannelConnectivity.READY

    async def await_capacity(self, ask: CapacityAsk) -> Held:
        """A place, as soon as the queue comes to this request. Cancelling it leaves the queue."""
        left_s = ask.until_s - asyncio.get_running_loop().time()
        request = codec.capacity_request(ask, ask.until_s - left_s)
        call = self._fleet.AwaitCapacity(request, timeout=max(left_s, 0.0) + _ANSWER_UNDERWAY_S)
        answer: scheduler_pb2.AwaitCapacityResponse = await _answer(call)
        return codec.held_of(answer)

    @asynccontextmanager
    async def reporting(self) -> AsyncIterator[Callable[[DemandReport], Awaitable[None]]]:
        """A stream of reports: what is yielded writes one. Raises PenstockError, there too, once the scheduler has gone."""
        call = self._fleet.ReportDemand()

        async def write(report: DemandReport) -> None:
            try:
                for message in codec.demand_messages(report):
                    await call.write(message)
            except asyncio.InvalidStateError as error:  # it has ended: its status says why
                raise Unavailable(f"scheduler {self.address} ended the stream of reports: {await call.details()}") from error

        try:
            yield write
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        finally:
            call.cancel()


def _policy(message: scheduler_pb2.WatchFleetResponse) -> RoutingPolicy | None:
    """None where this gateway cannot read it: the one before stays in force."""
    try:
        return codec.policy_of(message.routing_policy)
    except InvalidArgument as error:
        _log.error("routing_policy_unreadable", generation=message.routing_policy.generation, why=error.message)
        return None


async def _answer(call: Awaitable[_Answer]) -> _Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from failure
