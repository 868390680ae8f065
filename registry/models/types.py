"""The nouns of models: what is published under which name, by whom, for whom."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from runtime.errors import Code, PenstockError
from runtime.ids import Digest, ModelName, ModelVersion, NodeId, TenantId

STABLE = "stable"
"""The alias that gets what the others leave of the requests that name no version."""


class ModelExists(PenstockError, code=Code.ALREADY_EXISTS, reason="MODEL_EXISTS"):
    """A model of that name was created before."""


class ModelUnknown(PenstockError, code=Code.NOT_FOUND, reason="MODEL_UNKNOWN"):
    """No such model in the registry, for this caller."""


class VersionExists(PenstockError, code=Code.ALREADY_EXISTS, reason="VERSION_EXISTS"):
    """That version of the model was published before, with another content."""


class VersionUnknown(PenstockError, code=Code.NOT_FOUND, reason="VERSION_UNKNOWN"):
    """No such version in the registry, for this caller."""


class FilesMissing(PenstockError, code=Code.FAILED_PRECONDITION, reason="FILES_MISSING"):
    """Files that the manifest names are not stored, or are not the publisher's."""


class AliasUnknown(PenstockError, code=Code.NOT_FOUND, reason="ALIAS_UNKNOWN"):
    """The model has no such alias."""


class AliasChanged(PenstockError, code=Code.ABORTED, reason="ALIAS_CHANGED"):
    """The alias is not what the caller expected: somebody moved it."""


class AliasRefused(PenstockError, code=Code.FAILED_PRECONDITION, reason="ALIAS_REFUSED"):
    """As the model's aliases are now, this change is not possible."""


class SignerUnknown(PenstockError, code=Code.NOT_FOUND, reason="SIGNER_UNKNOWN"):
    """Nobody endorsed that key for that tenant."""


class SignerRefused(PenstockError, code=Code.FAILED_PRECONDITION, reason="SIGNER_REFUSED"):
    """The endorsement is older than what is known of its key, or came too late."""


class SignerChanged(PenstockError, code=Code.ABORTED, reason="SIGNER_CHANGED"):
    """The signer was endorsed anew or revoked while a version was being published."""


@dataclass(frozen=True, slots=True)
class Model:
    model: ModelName
    tenant: TenantId
    description: str
    shared_with: frozenset[str]
    """Other tenants that may call and load it; "*" = all."""
    created_at_ms: int
    generation: int = 0


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
    tenant: TenantId
    version: ModelVersion
    engine: str
    task: str
    files: tuple[ModelFile, ...]
    inputs: tuple[TensorFacts, ...] = ()
    outputs: tuple[TensorFacts, ...] = ()
    max_batch_size: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    trait_faults: tuple[str, ...] = ()
    """What cannot be so of what it says of itself, as `runtime.model_description` has it."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class SignedBytes:
    """A manifest as it was signed: kept and handed out bit for bit."""

    manifest: bytes = field(repr=False)
    signature: bytes
    ed25519_public_key: bytes


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """A published version, without its manifest."""

    model: ModelName
    number: int
    digest: Digest
    engine: str
    task: str
    size_bytes: int
    published_at_ms: int
    signer_id: NodeId
    withdrawn_at_ms: int = 0
    """0 = it is not."""
    withdrawn_because: str = ""

    @property
    def version(self) -> ModelVersion:
        return ModelVersion(str(self.number))


@dataclass(frozen=True, slots=True)
class StoredVersion:
    summary: VersionSummary
    signed: SignedBytes


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """A version as it is handed out."""

    version: StoredVersion
    endorsement: bytes | None
    """A serialised SignedEndorsement of its signer, where there is one."""


class MoveKind(enum.Enum):
    """What a change of an alias was; the values are in the database."""

    MOVED = "moved"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    REMOVED = "removed"
    ABANDONED = "abandoned"
    """A move that was under way was given up; the alias stayed where it was."""
    WITHDRAWN = "withdrawn"
    """Its target was withdrawn."""


@dataclass(frozen=True, slots=True)
class PendingMove:
    """A target that is being warmed."""

    number: int
    weight: int
    since_ms: int
    kind: MoveKind
    by: str
    promotes: str = ""
    """The alias that goes away when the move is done."""


@dataclass(frozen=True, slots=True)
class AliasState:
    """A name for a version. `number` is 0 while its first target is being warmed."""

    alias: str
    number: int
    weight: int
    generation: int
    moved_at_ms: int
    pending: PendingMove | None = None


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One line of an alias's history. 0 stands for no version.

    Of an abandoned move, `to_number` and `weight` are what it would have come to.
    """

    alias: str
    generation: int
    from_number: int
    to_number: int
    weight: int
    at_ms: int
    by: str
    kind: MoveKind
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AliasView:
    """An alias with the digests of its targets; empty where there is none."""

    state: AliasState
    digest: Digest
    pending_digest: Digest


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model, what was published of it (lowest number first), and its aliases by name."""

    model: Model
    versions: tuple[VersionSummary, ...] = ()
    aliases: tuple[AliasView, ...] = ()


@dataclass(frozen=True, slots=True)
class Signer:
    """A key that a root endorsed for a tenant."""

    signer_id: NodeId
    tenant: TenantId
    name: str
    endorsement: bytes = field(repr=False)
    """A serialised SignedEndorsement."""
    endorsed_at_ms: int
    endorsed_by: NodeId
    """The root."""
    expires_at_ms: int = 0
    """0 = never."""
    revoked_at_ms: int = 0
    """0 = it is not."""
