"""The edge and its gateways, as the snapshot that Envoy is given. Pure: the same values give the same versions everywhere."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import message

from gateway.xds import registry_front
from gateway.xds.clusters import GATEWAYS, REGISTRIES, gateways_cluster, gateways_members, members, registries_cluster
from gateway.xds.listener import LISTENER, edge_listener
from gateway.xds.routes import ROUTES, edge_routes
from gateway.xds.snapshot import Reference, Resource, ResourceType, Snapshot
from gateway.xds.types import Edge, Endpoint, RegistryFront


def edge_snapshot(edge: Edge, gateways: Iterable[Endpoint]) -> Snapshot:
    """The gateways' cluster and members, the edge's listener and routes; the registry's beside them, if it has a front."""
    front = edge.registry
    to_clusters = [Reference(ResourceType.CLUSTERS, GATEWAYS)]
    to_clusters += [Reference(ResourceType.CLUSTERS, REGISTRIES)] if front else []
    found = {
        ResourceType.CLUSTERS: [_resource(GATEWAYS, gateways_cluster(edge), Reference(ResourceType.ENDPOINTS, GATEWAYS))],
        ResourceType.ENDPOINTS: [_resource(GATEWAYS, gateways_members(gateways))],
        ResourceType.LISTENERS: [_resource(LISTENER, edge_listener(edge), Reference(ResourceType.ROUTES, ROUTES))],
        ResourceType.ROUTES: [_resource(ROUTES, edge_routes(edge), *to_clusters)],
    }
    if front:
        for kind, resources in _registry(edge, front).items():
            found[kind] += resources
    return Snapshot.of(found)


def withdrawn_snapshot(edge: Edge, gateways: Iterable[Endpoint]) -> Snapshot:
    """The same without its listener: new connections are refused, streams that run go on. What comes before Envoy is ended."""
    whole = edge_snapshot(edge, gateways).resources
    return Snapshot.of({kind: whole[kind] for kind in (ResourceType.CLUSTERS, ResourceType.ENDPOINTS)})


def _registry(edge: Edge, front: RegistryFront) -> dict[ResourceType, list[Resource]]:
    cluster = _resource(REGISTRIES, registries_cluster(edge, front), Reference(ResourceType.ENDPOINTS, REGISTRIES))
    found = {
        ResourceType.CLUSTERS: [cluster],
        ResourceType.ENDPOINTS: [_resource(REGISTRIES, members(REGISTRIES, front.endpoints))],
    }
    if front.listen is not None:
        listener = registry_front.registry_listener(edge, front.listen)
        routes = registry_front.registry_routes(edge)
        to_routes = Reference(ResourceType.ROUTES, registry_front.ROUTES)
        found[ResourceType.LISTENERS] = [_resource(registry_front.LISTENER, listener, to_routes)]
        found[ResourceType.ROUTES] = [_resource(registry_front.ROUTES, routes, Reference(ResourceType.CLUSTERS, REGISTRIES))]
    return found


def _resource(name: str, content: message.Message, *refers_to: Reference) -> Resource:
    return Resource(name, content.SerializeToString(deterministic=True), frozenset(refers_to))
