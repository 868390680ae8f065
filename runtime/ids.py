"""Names of things, typed so that one cannot stand in for another, and the etcd keys they live under."""

from __future__ import annotations

from typing import NewType

NodeId = NewType("NodeId", str)
"""Fingerprint of a node's Ed25519 public key: the first 20 hex digits of its sha256."""

WorkerId = NewType("WorkerId", str)
"""A worker's NodeId."""

Region = NewType("Region", str)
ModelName = NewType("ModelName", str)
ModelVersion = NewType("ModelVersion", str)
"""A positive decimal number; empty where the newest is meant."""

Digest = NewType("Digest", str)
"""sha256 in lower-case hex."""

TenantId = NewType("TenantId", str)
KeyId = NewType("KeyId", str)
UserId = NewType("UserId", str)

DEFAULT_TENANT = TenantId("default")
EVERY_TENANT = "*"
"""In the list of tenants that a model is shared with."""

PRESENCE_PREFIX = "/penstock/presence/"
MODELS_PREFIX = "/penstock/models/"
GATEWAYS_PREFIX = "/penstock/gateways/"


def presence_key(region: Region, worker: WorkerId) -> str:
    return f"{PRESENCE_PREFIX}{region}/{worker}"


def model_key(model: ModelName, version: ModelVersion, region: Region, worker: WorkerId) -> str:
    return f"{MODELS_PREFIX}{model}/{version}/{region}/{worker}"


def gateways_prefix(region: Region) -> str:
    return f"{GATEWAYS_PREFIX}{region}/"


def gateway_key(region: Region, gateway: NodeId, process: int) -> str:
    """Of one process of a gateway: those that share its edge port are numbered from 0."""
    return f"{gateways_prefix(region)}{gateway}/{process}"


def control_prefix(region: Region) -> str:
    return f"/penstock/control/{region}/"


def placements_prefix(region: Region) -> str:
    return f"{control_prefix(region)}placements/"


def placement_key(region: Region, model: ModelName, version: ModelVersion) -> str:
    return f"{placements_prefix(region)}{model}/{version}"


def assignments_prefix(region: Region) -> str:
    return f"{control_prefix(region)}assignments/"


def assignment_key(region: Region, worker: WorkerId) -> str:
    return f"{assignments_prefix(region)}{worker}"


ROUTING_POLICY_KEY = "/penstock/control/policy/routing"
ELECTION_PREFIX = "/penstock/election/"


def election_prefix(group: str) -> str:
    """Of the schedulers that lead the same regions: one of them at a time does."""
    return f"{ELECTION_PREFIX}{group}/"


REGISTRY_PREFIX = "/penstock/registry/"
"""What the registry tells everybody: `runtime.notices`."""


LIMITS_NOTICE_KEY = f"{REGISTRY_PREFIX}limits"


def model_notice_key(model: ModelName) -> str:
    return f"{REGISTRY_PREFIX}models/{model}"


def key_notice_key(key_id: KeyId) -> str:
    return f"{REGISTRY_PREFIX}keys/{key_id}"


def node_notice_key(node_id: NodeId) -> str:
    return f"{REGISTRY_PREFIX}nodes/{node_id}"
