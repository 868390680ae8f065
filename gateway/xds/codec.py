"""Discovery messages to and from the values of `subscription`. Decides nothing."""

from __future__ import annotations

from google.protobuf import any_pb2
from xds import core_pb2, discovery_pb2

from gateway.xds.snapshot import ResourceType
from gateway.xds.subscription import Reply, Request

_KINDS = {kind.value: kind for kind in ResourceType}
_DETAIL_CHARACTERS = 2_000
"""Envoy quotes what it refuses; more than this of it helps nobody."""


def decode(message: discovery_pb2.DiscoveryRequest) -> Request | None:
    """What Envoy said; None for a type that is not served here."""
    kind = _KINDS.get(message.type_url)
    if kind is None:
        return None
    rejection = message.error_detail.message[:_DETAIL_CHARACTERS] if message.HasField("error_detail") else None
    return Request(kind, frozenset(message.resource_names), message.version_info, message.response_nonce, rejection)


def encode(reply: Reply, identifier: str) -> discovery_pb2.DiscoveryResponse:
    """What Envoy is told; the identifier says which gateway did."""
    return discovery_pb2.DiscoveryResponse(
        version_info=reply.version,
        resources=[any_pb2.Any(type_url=reply.kind.value, value=resource.body) for resource in reply.resources],
        type_url=reply.kind.value,
        nonce=reply.nonce,
        control_plane=core_pb2.ControlPlane(identifier=identifier),
    )
