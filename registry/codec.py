"""Between the wire's messages and the registry's own nouns. Decides nothing but what cannot be expressed inside."""

from __future__ import annotations

from penstock.registry.v1 import accounts_pb2, models_pb2

from registry.types import (
    ApiKey,
    FileStatus,
    KeyRole,
    KeyWish,
    ManifestFacts,
    Model,
    ModelFile,
    ModelWithVersions,
    RateLimit,
    SignedBytes,
    StoredVersion,
    Tenant,
    TensorFacts,
    VersionSummary,
)
from runtime.errors import InvalidArgument
from runtime.ids import Digest, ModelName, ModelVersion, TenantId


def facts_of(manifest: models_pb2.Manifest) -> ManifestFacts:
    return ManifestFacts(
        model=ModelName(manifest.model),
        version=ModelVersion(manifest.version),
        engine=manifest.engine,
        task=manifest.task,
        files=tuple(ModelFile(file.path, Digest(file.sha256), file.size_bytes) for file in manifest.files),
        inputs=tuple(_tensor_of(tensor) for tensor in manifest.inputs),
        outputs=tuple(_tensor_of(tensor) for tensor in manifest.outputs),
        max_batch_size=manifest.max_batch_size,
        preferred_batch_sizes=tuple(manifest.batching.preferred_batch_sizes),
    )


def signed_bytes_of(signed: models_pb2.SignedManifest) -> SignedBytes:
    return SignedBytes(signed.manifest, signed.signature, signed.ed25519_public_key)


def wish_of(request: accounts_pb2.CreateKeyRequest) -> KeyWish:
    """Raises InvalidArgument on a role that does not exist."""
    try:
        role = KeyRole(request.role)
    except ValueError as error:
        known = ", ".join(role.value for role in KeyRole)
        raise InvalidArgument(f"role {request.role[:40]!r}: one of {known} is expected") from error
    return KeyWish(
        tenant=TenantId(request.tenant),
        name=request.name,
        role=role,
        allowed_models=tuple(ModelName(model) for model in request.allowed_models),
        rate_limit=RateLimit(request.rate_limit.requests_per_s, request.rate_limit.burst),
        lifetime_s=request.lifetime_s,
    )


def model_message(entry: ModelWithVersions) -> models_pb2.Model:
    model = entry.model
    return models_pb2.Model(
        model=model.model,
        description=model.description,
        created_at_ms=model.created_at_ms,
        versions=[summary_message(version) for version in entry.versions],
    )


def new_model_message(model: Model) -> models_pb2.Model:
    return model_message(ModelWithVersions(model, ()))


def summary_message(summary: VersionSummary) -> models_pb2.VersionSummary:
    return models_pb2.VersionSummary(
        version=summary.version,
        digest=summary.digest,
        engine=summary.engine,
        task=summary.task,
        size_bytes=summary.size_bytes,
        published_at_ms=summary.published_at_ms,
        signer_id=summary.signer_id,
    )


def version_message(version: StoredVersion) -> models_pb2.GetVersionResponse:
    signed = version.signed
    return models_pb2.GetVersionResponse(
        version=summary_message(version.summary),
        manifest=models_pb2.SignedManifest(
            manifest=signed.manifest, signature=signed.signature, ed25519_public_key=signed.ed25519_public_key
        ),
    )


def stat_message(status: FileStatus) -> models_pb2.StatFileResponse:
    return models_pb2.StatFileResponse(received_bytes=status.received_bytes, complete=status.complete)


def upload_message(status: FileStatus) -> models_pb2.UploadFileResponse:
    return models_pb2.UploadFileResponse(received_bytes=status.received_bytes, complete=status.complete)


def tenant_message(tenant: Tenant) -> accounts_pb2.Tenant:
    return accounts_pb2.Tenant(tenant=tenant.tenant, created_at_ms=tenant.created_at_ms)


def key_message(key: ApiKey) -> accounts_pb2.ApiKey:
    return accounts_pb2.ApiKey(
        key_id=key.key_id,
        tenant=key.tenant,
        name=key.name,
        role=key.role.value,
        allowed_models=key.allowed_models,
        rate_limit=accounts_pb2.RateLimit(requests_per_s=key.rate_limit.requests_per_s, burst=key.rate_limit.burst),
        created_at_ms=key.created_at_ms,
        expires_at_ms=key.expires_at_ms,
        revoked_at_ms=key.revoked_at_ms,
    )


def _tensor_of(tensor: models_pb2.TensorSpec) -> TensorFacts:
    return TensorFacts(tensor.name, tensor.datatype, tuple(tensor.shape))
