"""The edge and its gateways, as the snapshot that Envoy is given. Pure: the same values give the same versions everywhere."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import message

from gateway.xds.clusters import GATEWAYS, gateways_cluster, gateways_members
from gateway.xds.listener import LISTENER, edge_listener
from gateway.xds.routes import ROUTES, edge_routes
from gateway.xds.snapshot import Reference, Resource, ResourceType, Snapshot
from gateway.xds.types import Edge, Endpoint


def edge_snapshot(edge: Edge, gateways: Iterable[Endpoint]) -> Snapshot:
    """One cluster with its members, one listener with its routes."""
    return Snapshot.of(
        {
            ResourceType.CLUSTERS: [_resource(GATEWAYS, gateways_cluster(edge), Reference(ResourceType.ENDPOINTS, GATEWAYS))],
            ResourceType.ENDPOINTS: [_resource(GATEWAYS, gateways_members(gateways))],
            ResourceType.LISTENERS: [_resource(LISTENER, edge_listener(edge), Reference(ResourceType.ROUTES, ROUTES))],
            ResourceType.ROUTES: [_resource(ROUTES, edge_routes(edge), Reference(ResourceType.CLUSTERS, GATEWAYS))],
        }
    )


def withdrawn_snapshot(edge: Edge, gateways: Iterable[Endpoint]) -> Snapshot:
    """The same without its listener: new connections are refused, streams that run go on. What comes before Envoy is ended."""
    whole = edge_snapshot(edge, gateways).resources
    return Snapshot.of({kind: whole[kind] for kind in (ResourceType.CLUSTERS, ResourceType.ENDPOINTS)})


def _resource(name: str, content: message.Message, *refers_to: Reference) -> Resource:
    return Resource(name, content.SerializeToString(deterministic=True), frozenset(refers_to))
