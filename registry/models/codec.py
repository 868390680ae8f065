"""Between the wire's messages and the nouns of models. Decides nothing but what cannot be expressed inside."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from penstock.registry.v1 import models_pb2

from registry.models.catalogue import Wanted
from registry.models.publishing import Publication
from registry.models.signing import EndorsedKey
from registry.models.types import (
    AliasMove,
    AliasView,
    FoundVersion,
    ManifestFacts,
    ModelEntry,
    ModelFile,
    MoveKind,
    SignedBytes,
    Signer,
    TensorFacts,
    VersionSummary,
)
from runtime.errors import InvalidArgument
from runtime.ids import Digest, ModelName, ModelVersion, TenantId
from runtime.manifests import VerifiedEndorsement, VerifiedManifest, tenant_of
from runtime.model_description import trait_faults

_KINDS = {
    MoveKind.MOVED: models_pb2.ALIAS_MOVE_KIND_MOVED,
    MoveKind.PROMOTED: models_pb2.ALIAS_MOVE_KIND_PROMOTED,
    MoveKind.ROLLED_BACK: models_pb2.ALIAS_MOVE_KIND_ROLLED_BACK,
    MoveKind.REMOVED: models_pb2.ALIAS_MOVE_KIND_REMOVED,
    MoveKind.ABANDONED: models_pb2.ALIAS_MOVE_KIND_ABANDONED,
    MoveKind.WITHDRAWN: models_pb2.ALIAS_MOVE_KIND_WITHDRAWN,
}


def wanted_of(request: models_pb2.GetVersionRequest) -> Wanted:
    return Wanted(ModelName(request.model), request.version, request.digest)


def claims_of(signed: models_pb2.SignedManifest) -> TenantId:
    """Whose model an unverified manifest says it is of: where to look for its signer. Raises InvalidArgument."""
    try:
        return tenant_of(models_pb2.Manifest.FromString(signed.manifest))
    except DecodeError as error:
        raise InvalidArgument("the manifest is no serialised penstock.registry.v1.Manifest; sign it again") from error


def publication_of(signed: models_pb2.SignedManifest, verified: VerifiedManifest, endorsed: Signer | None) -> Publication:
    facts = facts_of(verified.manifest)
    kept = SignedBytes(signed.manifest, signed.signature, signed.ed25519_public_key)
    return Publication(facts, verified.digest, verified.signer_id, kept, endorsed)


def facts_of(manifest: models_pb2.Manifest) -> ManifestFacts:
    return ManifestFacts(
        model=ModelName(manifest.model),
        tenant=tenant_of(manifest),
        version=ModelVersion(manifest.version),
        engine=manifest.engine,
        task=manifest.task,
        files=tuple(ModelFile(file.path, Digest(file.sha256), file.size_bytes) for file in manifest.files),
        inputs=tuple(_tensor_of(tensor) for tensor in manifest.inputs),
        outputs=tuple(_tensor_of(tensor) for tensor in manifest.outputs),
        max_batch_size=manifest.max_batch_size,
        preferred_batch_sizes=tuple(manifest.batching.preferred_batch_sizes),
        trait_faults=tuple(trait_faults(manifest)),
    )


def endorsed_key_of(signed: models_pb2.SignedEndorsement, verified: VerifiedEndorsement) -> EndorsedKey:
    said = verified.endorsement
    signer = Signer(
        signer_id=verified.signer_id,
        tenant=TenantId(said.tenant),
        name=said.name,
        endorsement=signed.SerializeToString(deterministic=True),
        endorsed_at_ms=said.endorsed_at_ms,
        expires_at_ms=said.expires_at_ms,
        endorsed_by=verified.endorsed_by,
    )
    return EndorsedKey(signer, tuple(said.models), said.ed25519_public_key)


def endorsement_of(signer: Signer) -> models_pb2.SignedEndorsement:
    return models_pb2.SignedEndorsement.FromString(signer.endorsement)


def model_message(entry: ModelEntry) -> models_pb2.Model:
    model = entry.model
    return models_pb2.Model(
        model=model.model,
        description=model.description,
        created_at_ms=model.created_at_ms,
        versions=[summary_message(version) for version in entry.versions],
        tenant=model.tenant,
        shared_with=sorted(model.shared_with),
        aliases=[alias_message(alias) for alias in entry.aliases],
        generation=model.generation,
    )


def summary_message(summary: VersionSummary) -> models_pb2.VersionSummary:
    return models_pb2.VersionSummary(
        version=summary.version,
        digest=summary.digest,
        engine=summary.engine,
        task=summary.task,
        size_bytes=summary.size_bytes,
        published_at_ms=summary.published_at_ms,
        signer_id=summary.signer_id,
        withdrawn_at_ms=summary.withdrawn_at_ms,
        withdrawn_because=summary.withdrawn_because,
    )


def version_message(found: FoundVersion, *, endorsed: bool) -> models_pb2.GetVersionResponse:
    """`endorsed`: the signer is believed because of its endorsement, which goes along."""
    signed = found.version.signed
    endorsement = None
    if endorsed and found.endorsement is not None:
        endorsement = models_pb2.SignedEndorsement.FromString(found.endorsement)
    return models_pb2.GetVersionResponse(
        version=summary_message(found.version.summary),
        manifest=models_pb2.SignedManifest(
            manifest=signed.manifest, signature=signed.signature, ed25519_public_key=signed.ed25519_public_key
        ),
        endorsement=endorsement,
    )


def alias_message(view: AliasView) -> models_pb2.Alias:
    state, pending = view.state, view.state.pending
    message = models_pb2.Alias(
        alias=state.alias,
        version=_version(state.number),
        digest=view.digest,
        weight=state.weight,
        generation=state.generation,
        moved_at_ms=state.moved_at_ms,
    )
    if pending is not None:
        under_way = models_pb2.PendingMove(
            version=_version(pending.number),
            digest=view.pending_digest,
            weight=pending.weight,
            since_ms=pending.since_ms,
            promotes=pending.promotes,
        )
        message.pending.CopyFrom(under_way)
    return message


def move_message(move: AliasMove) -> models_pb2.AliasMove:
    return models_pb2.AliasMove(
        alias=move.alias,
        from_version=_version(move.from_number),
        to_version=_version(move.to_number),
        weight=move.weight,
        generation=move.generation,
        at_ms=move.at_ms,
        by=move.by,
        kind=_KINDS[move.kind],
        reason=move.reason,
    )


def signer_message(signer: Signer) -> models_pb2.Signer:
    said = models_pb2.Endorsement.FromString(endorsement_of(signer).endorsement)
    return models_pb2.Signer(
        signer_id=signer.signer_id,
        tenant=signer.tenant,
        name=signer.name,
        models=said.models,
        ed25519_public_key=said.ed25519_public_key,
        endorsed_at_ms=signer.endorsed_at_ms,
        expires_at_ms=signer.expires_at_ms,
        revoked_at_ms=signer.revoked_at_ms,
        endorsed_by=signer.endorsed_by,
    )


def _version(number: int) -> str:
    return str(number) if number else ""


def _tensor_of(tensor: models_pb2.TensorSpec) -> TensorFacts:
    return TensorFacts(tensor.name, tensor.datatype, tuple(tensor.shape))
