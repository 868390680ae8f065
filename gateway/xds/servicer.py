"""The aggregated discovery stream: carries what `subscription` decides, and shows what every Envoy made of it.

Owns the open streams. Never decides what is owed, never builds a resource, never asks anybody but the holder.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import structlog
from xds import discovery_pb2, discovery_pb2_grpc

from gateway.xds import codec
from gateway.xds.holder import SnapshotHolder
from gateway.xds.snapshot import ResourceType
from gateway.xds.subscription import Rejection, Request, Subscriptions
from runtime.errors import Code, PenstockError
from runtime.identity import Role
from runtime.serving import inner_peer

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"

Wire = grpc.aio.ServicerContext[Any, Any]
Authorise = Callable[[Wire], object]
"""Raises unless the peer may have the configuration."""

_REMEMBERED_REJECTIONS = 64
_NAMES_PER_REQUEST = 1_024
_log = structlog.get_logger("penstock.edge")


class TooManyEdges(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="TOO_MANY_EDGES"):
    """This gateway already serves as many Envoys as it takes."""


class EdgeLeaves(PenstockError, code=Code.UNAVAILABLE, reason="GATEWAY_LEAVES"):
    """This gateway is about to end; another one has the configuration too."""


class TooManyNames(PenstockError, code=Code.INVALID_ARGUMENT, reason="TOO_MANY_RESOURCE_NAMES"):
    """One subscription names more resources than any edge of ours has."""


@dataclass(frozen=True, slots=True)
class EdgeRejection:
    """A rejection, and which Envoy said it of which type."""

    node: str
    kind: ResourceType
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class EdgeStatus:
    """One connected Envoy: the version it runs with by type, what it refused, and whether it has all that is current."""

    node: str
    acknowledged: dict[ResourceType, str]
    rejected: dict[ResourceType, Rejection]
    settled: bool


@dataclass(slots=True, eq=False)
class _Stream:
    wake: asyncio.Event
    node: str = ""
    closed: bool = False
    subscriptions: Subscriptions = field(default_factory=Subscriptions)


def _only_envoy(context: Wire) -> object:
    return inner_peer(context, Role.ENVOY)


class DiscoveryServicer(discovery_pb2_grpc.AggregatedDiscoveryServiceServicer):
    """Serves the holder's snapshot to every Envoy that connects and may."""

    def __init__(
        self, holder: SnapshotHolder, *, identifier: str, authorise: Authorise = _only_envoy, max_streams: int = 256
    ) -> None:
        self._holder = holder
        self._identifier = identifier
        self._authorise = authorise
        self._max_streams = max_streams
        self._streams: set[_Stream] = set()
        self._rejections: deque[EdgeRejection] = deque(maxlen=_REMEMBERED_REJECTIONS)
        self._waiters: set[asyncio.Event] = set()
        self._closed = False

    def close(self) -> None:
        """End every stream, and begin none: Envoys go to another gateway, and keep what they have meanwhile."""
        self._closed = True
        for stream in self._streams:
            stream.closed = True
            stream.wake.set()

    def edges(self) -> tuple[EdgeStatus, ...]:
        """Every connected Envoy."""
        return tuple(self._status(stream) for stream in self._streams)

    def rejections(self) -> tuple[EdgeRejection, ...]:
        """The latest refusals, oldest first, also of Envoys that have gone."""
        return tuple(self._rejections)

    async def until(self, reached: Callable[[DiscoveryServicer], bool]) -> None:
        """Return once this holds; looked at again whenever an Envoy came, spoke or went. The caller bounds the wait."""
        wake = asyncio.Event()
        self._waiters.add(wake)
        try:
            while not reached(self):
                await wake.wait()
                wake.clear()
        finally:
            self._waiters.discard(wake)

    async def StreamAggregatedResources(  # type: ignore[override]  # the stubs know generators only; this writes to the context
        self, request_iterator: AsyncIterator[discovery_pb2.DiscoveryRequest], context: Wire
    ) -> None:
        """One Envoy, from its connecting to its going."""
        self._authorise(context)
        if self._closed:
            raise EdgeLeaves("this gateway is about to end; connect to another one")
        if len(self._streams) >= self._max_streams:
            raise TooManyEdges(
                f"{len(self._streams)} Envoys are connected, {self._max_streams} are allowed; connect to another gateway"
            )
        stream = _Stream(asyncio.Event())
        self._streams.add(stream)
        try:
            await self._carry(stream, request_iterator, context)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._streams.discard(stream)
            self._moved()

    async def _carry(self, stream: _Stream, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], context: Wire) -> None:
        with self._holder.watching(stream.wake):
            async with asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(self._listen(stream, requests), name="discovery-requests")
                while not stream.closed:
                    await stream.wake.wait()
                    stream.wake.clear()
                    await self._tell(stream, context)
                listening.cancel()

    async def _listen(self, stream: _Stream, requests: AsyncIterator[discovery_pb2.DiscoveryRequest]) -> None:
        async for message in requests:
            stream.node = message.node.id or stream.node
            if len(message.resource_names) > _NAMES_PER_REQUEST:
                raise TooManyNames(
                    f"{len(message.resource_names)} resource names in one request, {_NAMES_PER_REQUEST} are allowed"
                )
            request = codec.decode(message)
            if request is None:
                _log.warning("discovery_type_unknown", node=stream.node, type_url=message.type_url[:200])
                continue
            self._heard(stream, request)
        stream.closed = True
        stream.wake.set()

    def _heard(self, stream: _Stream, request: Request) -> None:
        subscription = stream.subscriptions.take(request)
        refused = subscription.rejected
        if request.rejection is not None and refused is not None:
            self._rejections.append(EdgeRejection(stream.node, request.kind, refused))
            _log.error(
                "edge_rejected", node=stream.node, kind=request.kind.name, version=refused.version, detail=refused.detail
            )
        stream.wake.set()
        self._moved()

    def _moved(self) -> None:
        for waiter in self._waiters:
            waiter.set()

    async def _tell(self, stream: _Stream, context: Wire) -> None:
        snapshot = self._holder.current
        if snapshot is None:
            return
        for reply in stream.subscriptions.due(snapshot):
            _log.debug(
                "edge_told", node=stream.node, kind=reply.kind.name, version=reply.version, resources=len(reply.resources)
            )
            await context.write(codec.encode(reply, self._identifier))

    def _status(self, stream: _Stream) -> EdgeStatus:
        found = stream.subscriptions.by_kind.values()
        snapshot = self._holder.current
        return EdgeStatus(
            stream.node,
            {one.kind: one.acknowledged for one in found if one.acknowledged is not None},
            {one.kind: one.rejected for one in found if one.rejected is not None},
            snapshot is not None and stream.subscriptions.settled(snapshot),
        )
