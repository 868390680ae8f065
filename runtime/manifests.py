"""Signed manifests: what a model version is, vouched for by a key somebody chose to trust.

A codec over penstock.registry.v1.SignedManifest and SignedEndorsement that publisher, registry and worker share. A manifest
is believed if a root signed it, or if a root endorsed its signer for the model and its tenant. Roots are what an operator put
into a file on this machine: nobody can add one through the registry. A signature covers bytes as they travel, behind a prefix
that keeps it from being taken for a signature over anything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import nacl.exceptions
import nacl.signing
from google.protobuf.message import DecodeError, Message
from penstock.registry.v1 import models_pb2

from runtime.errors import Code, FailedPrecondition, PenstockError
from runtime.identity import node_id_of
from runtime.ids import DEFAULT_TENANT, Digest, NodeId, TenantId

_MANIFEST = b"penstock-manifest-v1\n"
_ENDORSEMENT = b"penstock-endorsement-v1\n"
M = TypeVar("M", bound=Message)


class ManifestRefused(PenstockError, code=Code.PERMISSION_DENIED, reason="MANIFEST_REFUSED"):
    """A manifest whose signature does not fit, or whose signer may not sign it."""


@dataclass(frozen=True, slots=True)
class VerifiedManifest:
    manifest: models_pb2.Manifest
    digest: Digest
    signer_id: NodeId
    tenant: TenantId


@dataclass(frozen=True, slots=True)
class VerifiedEndorsement:
    endorsement: models_pb2.Endorsement
    signer_id: NodeId
    """Of the key that is endorsed."""
    endorsed_by: NodeId


def sign_manifest(key: nacl.signing.SigningKey, manifest: models_pb2.Manifest) -> models_pb2.SignedManifest:
    """Serialise once and sign those bytes."""
    raw = manifest.SerializeToString(deterministic=True)
    return models_pb2.SignedManifest(
        manifest=raw, signature=key.sign(_MANIFEST + raw).signature, ed25519_public_key=bytes(key.verify_key)
    )


def sign_endorsement(root: nacl.signing.SigningKey, endorsement: models_pb2.Endorsement) -> models_pb2.SignedEndorsement:
    """A root's word that another key may sign."""
    raw = endorsement.SerializeToString(deterministic=True)
    return models_pb2.SignedEndorsement(
        endorsement=raw, signature=root.sign(_ENDORSEMENT + raw).signature, ed25519_public_key=bytes(root.verify_key)
    )


def digest_of(signed: models_pb2.SignedManifest) -> Digest:
    """The version's identity: sha256 of the signed bytes."""
    return Digest(hashlib.sha256(signed.manifest).hexdigest())


def tenant_of(manifest: models_pb2.Manifest) -> TenantId:
    return TenantId(manifest.tenant) or DEFAULT_TENANT


def verify_manifest(
    signed: models_pb2.SignedManifest,
    roots: Container[bytes],
    endorsement: models_pb2.SignedEndorsement | None = None,
    *,
    now_ms: int = 0,
    revoked_signers: Container[str] = (),
) -> VerifiedManifest:
    """The manifest, if a root (an Ed25519 public key of 32 bytes) signed it, or endorsed who did. Raises ManifestRefused.

    `now_ms` is compared with the endorsement's end: pass the wall clock wherever an endorsement may come.
    """
    signer_id = node_id_of(signed.ed25519_public_key)
    if signer_id in revoked_signers:
        raise ManifestRefused(f"the manifest's signer {signer_id} was revoked; publish the model again with another key")
    manifest = _opened(models_pb2.Manifest, _MANIFEST, signed.manifest, signed.signature, signed.ed25519_public_key, "manifest")
    verified = VerifiedManifest(manifest, digest_of(signed), signer_id, tenant_of(manifest))
    if signed.ed25519_public_key in roots:
        return verified
    if endorsement is None:
        raise ManifestRefused(
            f"the manifest's signer {signer_id} is not trusted here; add its public key to the trusted signers, or endorse it"
        )
    _check_right(verified, signed.ed25519_public_key, verify_endorsement(endorsement, roots), now_ms)
    return verified


def verify_endorsement(signed: models_pb2.SignedEndorsement, roots: Container[bytes]) -> VerifiedEndorsement:
    """The endorsement, if a root signed it. Raises ManifestRefused. Whether it still holds is for who uses it."""
    root_id = node_id_of(signed.ed25519_public_key)
    if signed.ed25519_public_key not in roots:
        raise ManifestRefused(
            f"the endorsement is by {root_id}, who is not trusted here; add its public key to the trusted signers"
        )
    opened = _opened(
        models_pb2.Endorsement, _ENDORSEMENT, signed.endorsement, signed.signature, signed.ed25519_public_key, "endorsement"
    )
    return VerifiedEndorsement(opened, node_id_of(opened.ed25519_public_key), root_id)


def may_sign(endorsement: models_pb2.Endorsement, model: str) -> bool:
    """Whether one of the endorsement's patterns is for this model."""
    return any(fnmatchcase(model, pattern) for pattern in endorsement.models)


def read_trusted_signers(file: Path) -> frozenset[bytes]:
    """Public keys in hex, one a line; `#` starts a comment. Raises FailedPrecondition on a file that cannot be read so."""
    try:
        lines = [line.split("#", 1)[0].strip() for line in file.read_text().splitlines()]
        keys = frozenset(bytes.fromhex(line) for line in lines if line)
    except (OSError, ValueError) as error:
        raise FailedPrecondition(
            f"cannot read the trusted signers in {file}: one hex Ed25519 key a line is expected"
        ) from error
    if wrong := [key for key in keys if len(key) != 32]:
        raise FailedPrecondition(f"{file} holds {len(wrong)} keys that are not 32 bytes long")
    return keys


def _check_right(verified: VerifiedManifest, signer: bytes, given: VerifiedEndorsement, now_ms: int) -> None:
    endorsement, signer_id = given.endorsement, verified.signer_id
    if endorsement.ed25519_public_key != signer:
        raise ManifestRefused(f"the endorsement is of {given.signer_id}, not of the manifest's signer {signer_id}")
    if endorsement.tenant != verified.tenant:
        raise ManifestRefused(
            f"signer {signer_id} signs for tenant {endorsement.tenant!r}; the manifest is {verified.tenant!r}'s"
        )
    if not may_sign(endorsement, verified.manifest.model):
        allowed = ", ".join(endorsement.models) or "none"
        raise ManifestRefused(f"signer {signer_id} may not sign model {verified.manifest.model!r}; it may sign: {allowed}")
    if endorsement.expires_at_ms and now_ms >= endorsement.expires_at_ms:
        raise ManifestRefused(f"the endorsement of signer {signer_id} has expired; endorse it again")


def _opened(kind: type[M], context: bytes, raw: bytes, signature: bytes, public_key: bytes, what: str) -> M:
    try:
        nacl.signing.VerifyKey(public_key).verify(context + raw, signature)
        return kind.FromString(raw)
    except (nacl.exceptions.BadSignatureError, ValueError, DecodeError) as error:
        raise ManifestRefused(
            f"the {what} was altered after {node_id_of(public_key)} signed it; fetch or publish it again"
        ) from error
