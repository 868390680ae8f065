"""The nouns of the registry, as everything between its codec and its stores speaks of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from runtime.ids import Digest, KeyId, ModelName, ModelVersion, NodeId, TenantId


@dataclass(frozen=True, slots=True)
class FileStatus:
    """How much of a file is stored. A file is visible to readers once it is complete, and never before."""

    received_bytes: int
    complete: bool


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a version: where it belongs in the model's folder, and which bytes it is."""

    path: str
    sha256: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What is checked of an input or output."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ManifestFacts:
    """What the registry decides by when a version is published; the rest of a manifest is for workers."""

    model: ModelName
    version: ModelVersion
    engine: str
    task: str
    files: tuple[ModelFile, ...]
    inputs: tuple[TensorFacts, ...] = ()
    outputs: tuple[TensorFacts, ...] = ()
    max_batch_size: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SignedBytes:
    """A manifest as it was signed: kept and handed out bit for bit."""

    manifest: bytes
    signature: bytes
    ed25519_public_key: bytes


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """A published version, without its manifest."""

    model: ModelName
    version: ModelVersion
    digest: Digest
    engine: str
    task: str
    size_bytes: int
    published_at_ms: int
    signer_id: NodeId


@dataclass(frozen=True, slots=True)
class StoredVersion:
    summary: VersionSummary
    signed: SignedBytes


@dataclass(frozen=True, slots=True)
class Model:
    model: ModelName
    description: str
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class ModelWithVersions:
    """A model and what was published of it, oldest first."""

    model: Model
    versions: tuple[VersionSummary, ...]


@dataclass(frozen=True, slots=True)
class Tenant:
    tenant: TenantId
    created_at_ms: int


class KeyRole(enum.Enum):
    """What the bearer of a key may do: call models, or also administer its tenant."""

    CALLER = "caller"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket's figures; 0 requests_per_s = no limit."""

    requests_per_s: float = 0.0
    burst: int = 0


@dataclass(frozen=True, slots=True)
class ApiKey:
    """All of a key but its secret, which is nowhere."""

    key_id: KeyId
    tenant: TenantId
    name: str
    role: KeyRole
    allowed_models: tuple[ModelName, ...]
    """Empty: every model."""
    rate_limit: RateLimit
    created_at_ms: int
    expires_at_ms: int
    """0 = never."""
    revoked_at_ms: int = 0
    """0 = not revoked."""


@dataclass(frozen=True, slots=True)
class KeyWish:
    """A key as someone asks for it."""

    tenant: TenantId
    name: str
    role: KeyRole
    allowed_models: tuple[ModelName, ...]
    rate_limit: RateLimit
    lifetime_s: int
    """0 = for ever."""
