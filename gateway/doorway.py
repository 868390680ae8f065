"""This gateway process's place behind the edge: told when it serves, kept with its neighbours, left in order.

Puts presence, neighbours and Envoy's configuration together. Decides when Envoys are told what: nothing before etcd was read or
a bound has passed, so that a restarted gateway does not tell them that it is the only one; that others are better while it
knows no fleet; and on leaving, first that it drains, and to end only when that was heard. Never sees a request.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import structlog

from gateway.config import GatewaySettings
from gateway.edge import edge_of, own_endpoint, told_endpoint
from gateway.neighbours import Neighbour, Neighbours
from gateway.presence import GatewayPresence, present
from gateway.presence_codec import GatewayFacts
from gateway.xds.holder import SnapshotHolder
from gateway.xds.resources import edge_snapshot
from gateway.xds.servicer import DiscoveryServicer
from gateway.xds.snapshot import ResourceType
from gateway.xds.types import AddressUnusable, Edge, Endpoint
from runtime.clock import Clock
from runtime.identity import NodeIdentity
from runtime.ids import Region, gateway_key
from runtime.keyvalue import KeyValueStore
from runtime.records import RecordVerifier
from runtime.revocations import Revocations

FIRST_LOOK_S = 3.0
"""How long a start waits for etcd before Envoys are told without it."""

HEARING_S = 0.4
"""From the acknowledgement of Envoy's main thread, and from etcd's answer, to the last worker thread of the last Envoy."""

_log = structlog.get_logger("penstock.doorway")


class Doorway:
    """Belongs to one event loop. `begin` once the ports are bound, `leave` before they are closed."""

    def __init__(
        self,
        settings: GatewaySettings,
        edge: Edge | None,
        identity: NodeIdentity,
        presence: GatewayPresence,
        neighbours: Neighbours,
        process: int,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._settings, self._edge, self._identity, self._tasks = settings, edge, identity, tasks
        self._presence, self._neighbours, self._process = presence, neighbours, process
        self._holder = SnapshotHolder()
        self.discovery = DiscoveryServicer(self._holder, identifier=identity.node_id)
        self._own: Endpoint | None = None
        self._http: Endpoint | None = None
        self._draining = False
        self._warming: asyncio.Task[None] | None = None
        self._key = gateway_key(Region(settings.region), identity.node_id, process)

    async def begin(self, port: int, warm: Callable[[], Awaitable[object]], http_port: int | None = None) -> None:
        """It serves on this inner port. Returns when it has told so; `warm` returns once requests would find workers.

        `http_port`: on which it takes HTTP as it comes; none: what Envoy brings is transcoded.

        Until then it is told of as draining: others are better, and alone it is asked all the same.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                await self._neighbours.synced()
        if self._edge is not None:
            self._own = own_endpoint(self._settings, port)
            self._http = None if http_port is None else replace(self._own, port=http_port)
        warming = self._warming = self._tasks.create_task(self._warm(warm), name="warming")
        await asyncio.sleep(0)
        self._draining = not warming.done()
        self._announce(port, http_port)
        self._publish()

    async def leave(self) -> None:
        """Have nothing new sent here: returns when Envoys know, or the time for it is over. Envoys then go elsewhere."""
        self.cool()
        self._draining = True
        self._presence.drain()
        self._publish()
        try:
            async with asyncio.timeout(self._settings.drain_notice_s):
                await self.discovery.until(lambda discovery: not self._deaf())
                if self._others():
                    await self._presence.told()
                if self.discovery.edges() or self._others():
                    await asyncio.sleep(HEARING_S)
        except TimeoutError:
            _log.warning("drain_not_heard", edges=self._deaf())
        self.discovery.close()

    def tell(self) -> None:
        """The neighbours changed."""
        if self._own is not None:
            self._publish()

    def cool(self) -> None:
        """It is warm for nobody any more."""
        if self._warming is not None:
            self._warming.cancel()

    async def _warm(self, warm: Callable[[], Awaitable[object]]) -> None:
        await warm()
        if self._draining:
            self._draining = False
            self._presence.drain(False)
            self._publish()

    def _announce(self, port: int, http_port: int | None) -> None:
        try:
            endpoint = told_endpoint(self._settings, port)
        except AddressUnusable as error:
            _log.warning("gateway_not_told_of", why=error.message)
            return
        if endpoint is None:
            _log.warning("gateway_not_told_of", why="it listens on every address; pass --advertise IP:PORT")
            return
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        region = Region(self._settings.region)
        http = "" if http_port is None else f"{host}:{http_port}"
        facts = GatewayFacts(self._identity.node_id, self._process, region, f"{host}:{endpoint.port}", http)
        self._presence.begin(facts, draining=self._draining)

    def _others(self) -> list[Neighbour]:
        known = self._neighbours.known.items()
        return [each for key, each in known if key != self._key and each.endpoint != self._own]

    def _deaf(self) -> list[str]:
        """Envoys that run with other members than they were told last."""
        snapshot = self._holder.current
        version = snapshot.versions[ResourceType.ENDPOINTS] if snapshot is not None else None
        known = ((edge.node, edge.acknowledged.get(ResourceType.ENDPOINTS)) for edge in self.discovery.edges())
        return [node for node, acknowledged in known if acknowledged not in (None, version)]

    def _publish(self) -> None:
        if self._edge is None or self._own is None:
            return
        members = [*self._others(), Neighbour(self._identity.node_id, self._own, self._draining, self._http)]
        draining = frozenset(each.endpoint for each in members if each.draining)
        doors = {each.endpoint: each.http for each in members if each.http is not None} if self._http is not None else None
        self._holder.publish(edge_snapshot(self._edge, [each.endpoint for each in members], draining, doors))


@asynccontextmanager
async def doorway(
    settings: GatewaySettings,
    identity: NodeIdentity,
    store: KeyValueStore,
    revocations: Revocations,
    clock: Clock,
    *,
    process: int = 0,
) -> AsyncIterator[Doorway]:
    """Stand there while the context lasts; leaving takes the presence away. Raises what `edge_of` does; waits for nobody."""
    edge = edge_of(settings)
    if edge is not None:
        own_endpoint(settings, settings.port)  # an address that Envoy cannot take is told of now
    verifier = RecordVerifier(identity.authority_pem, revocations=revocations)
    neighbours = Neighbours(Region(settings.region), verifier, revocations, clock)
    async with (
        neighbours.following(store),
        present(store, identity, clock, random.SystemRandom()) as presence,
        asyncio.TaskGroup() as tasks,
    ):
        made = Doorway(settings, edge, identity, presence, neighbours, process, tasks)
        neighbours.on_change.append(made.tell)
        try:
            yield made
        finally:
            made.cool()
