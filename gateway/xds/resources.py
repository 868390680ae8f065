"""The edge and its gateways, as the snapshot that Envoy is given. Pure: the same values give the same versions everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from google.protobuf import message

from gateway.xds import registry_front
from gateway.xds.clusters import (
    GATEWAYS,
    GATEWAYS_HTTP,
    REGISTRIES,
    gateways_cluster,
    gateways_http_cluster,
    gateways_members,
    members,
    registries_cluster,
)
from gateway.xds.listener import LISTENER, edge_listener
from gateway.xds.routes import ROUTES, edge_routes
from gateway.xds.snapshot import Reference, Resource, ResourceType, Snapshot
from gateway.xds.tls import CERTIFICATE, IDENTITY, certificate_secret
from gateway.xds.types import Edge, Endpoint, RegistryFront

_TO_IDENTITY = Reference(ResourceType.SECRETS, IDENTITY)
_TO_CERTIFICATE = Reference(ResourceType.SECRETS, CERTIFICATE)


def edge_snapshot(
    edge: Edge,
    gateways: Iterable[Endpoint],
    draining: AbstractSet[Endpoint] = frozenset(),
    http: Mapping[Endpoint, Endpoint] | None = None,
) -> Snapshot:
    """The gateways' cluster and members, the edge's listener and routes; the registry's beside them, if it has a front.

    `draining`: those of the gateways that finish what they have. `http`: where they take HTTP as it comes; None: nowhere, and
    all JSON is transcoded.
    """
    front, gateways = edge.registry, list(gateways)
    to_clusters = [Reference(ResourceType.CLUSTERS, GATEWAYS)]
    to_clusters += [Reference(ResourceType.CLUSTERS, GATEWAYS_HTTP)] if http is not None else []
    to_clusters += [Reference(ResourceType.CLUSTERS, REGISTRIES)] if front else []
    to_endpoints = Reference(ResourceType.ENDPOINTS, GATEWAYS)
    to_certificate = [_TO_CERTIFICATE] if edge.server_files is not None else []
    found = {
        ResourceType.SECRETS: _secrets(edge),
        ResourceType.CLUSTERS: [_resource(GATEWAYS, gateways_cluster(edge), to_endpoints, _TO_IDENTITY)],
        ResourceType.ENDPOINTS: [_resource(GATEWAYS, gateways_members(gateways, draining))],
        ResourceType.LISTENERS: [
            _resource(LISTENER, edge_listener(edge), Reference(ResourceType.ROUTES, ROUTES), *to_certificate)
        ],
        ResourceType.ROUTES: [_resource(ROUTES, edge_routes(edge, direct=http is not None), *to_clusters)],
    }
    if http is not None:
        to_members = Reference(ResourceType.ENDPOINTS, GATEWAYS_HTTP)
        doors = {http[each]: each in draining for each in gateways if each in http}
        listed = members(GATEWAYS_HTTP, doors, frozenset(door for door, drains in doors.items() if drains))
        found[ResourceType.CLUSTERS].append(_resource(GATEWAYS_HTTP, gateways_http_cluster(edge), to_members, _TO_IDENTITY))
        found[ResourceType.ENDPOINTS].append(_resource(GATEWAYS_HTTP, listed))
    if front:
        for kind, resources in _registry(edge, front).items():
            found[kind] += resources
    return Snapshot.of(found)


def _registry(edge: Edge, front: RegistryFront) -> dict[ResourceType, list[Resource]]:
    to_endpoints = Reference(ResourceType.ENDPOINTS, REGISTRIES)
    cluster = _resource(REGISTRIES, registries_cluster(edge, front), to_endpoints, _TO_IDENTITY)
    found = {
        ResourceType.CLUSTERS: [cluster],
        ResourceType.ENDPOINTS: [_resource(REGISTRIES, members(REGISTRIES, front.endpoints))],
    }
    if front.listen is not None:
        listener = registry_front.registry_listener(edge, front.listen)
        routes = registry_front.registry_routes(edge)
        to_routes = Reference(ResourceType.ROUTES, registry_front.ROUTES)
        found[ResourceType.LISTENERS] = [_resource(registry_front.LISTENER, listener, to_routes, _TO_IDENTITY)]
        found[ResourceType.ROUTES] = [_resource(registry_front.ROUTES, routes, Reference(ResourceType.CLUSTERS, REGISTRIES))]
    return found


def _secrets(edge: Edge) -> list[Resource]:
    identity = certificate_secret(IDENTITY, edge.identity.certificate, edge.identity.key)
    found = [_resource(IDENTITY, identity)]
    if (files := edge.server_files) is not None:
        found.append(_resource(CERTIFICATE, certificate_secret(CERTIFICATE, files.certificate, files.key)))
    return found


def _resource(name: str, content: message.Message, *refers_to: Reference) -> Resource:
    return Resource(name, content.SerializeToString(deterministic=True), frozenset(refers_to))
