"""The nouns of picking an endpoint."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from placement.types import ANY_VERSION, Granted
from runtime.ids import ModelName, ModelVersion

DESTINATION = "x-gateway-destination-endpoint"
"""Header, and key under `envoy.lb` in the dynamic metadata: ip:port, and more for Envoy to fall back to, in order."""

SUBSET = "x-gateway-destination-endpoint-subset"
"""Key under `envoy.lb.subset_hint` in the filter metadata: the only endpoints that may be picked."""

SERVED = "x-gateway-destination-endpoint-served"
"""Key under `envoy.lb` in the filter metadata that comes with the answer: who it was in the end."""

# Source of the three: kubernetes-sigs/gateway-api-inference-extension, docs/proposals/004-endpoint-picker-protocol, 1.0.0.


class Reading(enum.Enum):
    """Where a request says which model it is for."""

    HEADERS = "headers"
    GRPC = "the first gRPC message"
    JSON = "a JSON body"


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom a request is for."""

    model: ModelName
    version: ModelVersion = ANY_VERSION
    session_key: str = ""


@dataclass(frozen=True, slots=True)
class Picked:
    """Endpoints, best first, and what was granted for the first of them."""

    endpoints: tuple[str, ...]
    granted: Granted


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """No endpoint: the HTTP status to answer with, its gRPC code for callers that speak gRPC, and why."""

    status: int
    grpc_code: int
    message: str
    retry_after_s: float | None = None
