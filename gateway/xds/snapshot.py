"""One consistent state of Envoy's configuration, versioned by its content.

Owns the five types of resources, their order, and whether they fit together. Never knows what a resource says: it is a name,
bytes, and the names it refers to. Source: the xDS protocol, "Eventual consistency considerations" and "Resource warming".
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_VERSION_DIGITS = 16


class ResourceType(enum.Enum):
    """The types that are served, by their type URL; in the order in which they make before they break."""

    SECRETS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    CLUSTERS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
    LISTENERS = "type.googleapis.com/envoy.config.listener.v3.Listener"
    ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

    @property
    def whole(self) -> bool:
        """Whether an answer has to carry every resource: what it leaves out, Envoy deletes."""
        return self in (ResourceType.CLUSTERS, ResourceType.LISTENERS)

    @property
    def dependent(self) -> ResourceType | None:
        """The type that has to be sent again after this one changed: a warming cluster or listener waits for it."""
        return _DEPENDENTS.get(self)


_DEPENDENTS = {ResourceType.CLUSTERS: ResourceType.ENDPOINTS, ResourceType.LISTENERS: ResourceType.ROUTES}


@dataclass(frozen=True, slots=True)
class Reference:
    """A resource named by another."""

    kind: ResourceType
    name: str


@dataclass(frozen=True, slots=True)
class Resource:
    """One serialised resource."""

    name: str
    body: bytes
    refers_to: frozenset[Reference] = frozenset()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All resources, by type and sorted by name, and the version of each type."""

    resources: Mapping[ResourceType, tuple[Resource, ...]]
    versions: Mapping[ResourceType, str]

    @classmethod
    def of(cls, resources: Mapping[ResourceType, Iterable[Resource]]) -> Snapshot:
        """The snapshot of these resources; the same resources give the same versions on every replica."""
        ordered = {kind: tuple(sorted(resources.get(kind, ()), key=lambda resource: resource.name)) for kind in ResourceType}
        return cls(ordered, {kind: _version(found) for kind, found in ordered.items()})

    def faults(self) -> tuple[str, ...]:
        """Why Envoy could not use it: what is named twice, what is referred to and absent, what nothing refers to."""
        return (*self._twice(), *self._absent(), *self._unused())

    def _twice(self) -> list[str]:
        names = {kind: [resource.name for resource in found] for kind, found in self.resources.items()}
        return [
            f"{kind.name} {name} is there twice" for kind, all_ in names.items() for name in set(all_) if all_.count(name) > 1
        ]

    def _absent(self) -> list[str]:
        return [f"{wanted.kind.name} {wanted.name} is referred to and absent" for wanted in self._wanted() - self._present()]

    def _unused(self) -> list[str]:
        orphans = {reference for reference in self._present() - self._wanted() if not reference.kind.whole}
        return [f"{orphan.kind.name} {orphan.name} is there and nothing refers to it" for orphan in orphans]

    def _present(self) -> set[Reference]:
        return {Reference(kind, resource.name) for kind, found in self.resources.items() for resource in found}

    def _wanted(self) -> set[Reference]:
        return {wanted for found in self.resources.values() for resource in found for wanted in resource.refers_to}


def _version(resources: tuple[Resource, ...]) -> str:
    digest = hashlib.sha256()
    for resource in resources:
        for part in (resource.name.encode(), resource.body):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()[:_VERSION_DIGITS]
