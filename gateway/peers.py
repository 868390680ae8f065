"""Registry and scheduler as the gateway asks them: gRPC over mTLS, every answer within a bound.

Owns nothing but the calls; channels belong to whoever opened them. Foreign errors leave as our own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

import grpc.aio
from penstock.registry.v1 import accounts_pb2, models_pb2
from penstock.registry.v1.accounts_pb2_grpc import AccountServiceStub
from penstock.registry.v1.models_pb2_grpc import ModelServiceStub
from penstock.scheduler.v1 import scheduler_pb2
from penstock.scheduler.v1.scheduler_pb2_grpc import FleetServiceStub

from gateway import codec
from gateway.admission import KeyFacts
from gateway.types import FleetNews, PublishedVersion
from placement.assign import Placement
from runtime.ids import ModelName, ModelVersion, Region
from runtime.status import error_of

ANSWER_TIMEOUT_S = 5.0
_Answer = TypeVar("_Answer")


class RegistryClient:
    """A `gateway.keys.KeyDirectory`, and the list of what was published."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._accounts: Any = AccountServiceStub(channel)
        self._models: Any = ModelServiceStub(channel)

    async def resolve(self, secret_sha256: bytes) -> KeyFacts:
        request = accounts_pb2.ResolveKeyRequest(secret_sha256=secret_sha256)
        answer: accounts_pb2.ResolveKeyResponse = await _answer(self._accounts.ResolveKey(request, timeout=ANSWER_TIMEOUT_S))
        return codec.key_facts_of(answer.key)

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
    """A `gateway.fleet.FleetSource`, and where wishes go."""

    def __init__(self, channel: grpc.aio.Channel, region: Region) -> None:
        self._fleet: Any = FleetServiceStub(channel)
        self._region = region

    async def watch(self) -> AsyncGenerator[FleetNews, None]:
        call = self._fleet.WatchFleet(scheduler_pb2.WatchFleetRequest(region=self._region))
        try:
            async for message in call:
                yield codec.news_of(message, self._region)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        finally:
            call.cancel()

    async def place(self, placement: Placement) -> Placement:
        """Wish for this; what was written, with its generation."""
        request = codec.place_request(placement)
        answer: scheduler_pb2.PlaceModelResponse = await _answer(self._fleet.PlaceModel(request, timeout=ANSWER_TIMEOUT_S))
        return codec.placement_of(answer.placement)


async def _answer(call: Awaitable[_Answer]) -> _Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from failure
