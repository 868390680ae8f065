"""Signed manifests: what a model version is, vouched for by a key somebody chose to trust.

A codec over penstock.registry.v1.SignedManifest that publisher, registry and worker share. The signature covers the manifest's
bytes as they travel, behind a prefix that keeps it from being taken for a signature over anything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import nacl.exceptions
import nacl.signing
from google.protobuf.message import DecodeError
from penstock.registry.v1 import models_pb2

from runtime.errors import Code, FailedPrecondition, PenstockError
from runtime.identity import node_id_of
from runtime.ids import Digest, NodeId

_CONTEXT = b"penstock-manifest-v1\n"


class ManifestRefused(PenstockError, code=Code.PERMISSION_DENIED, reason="MANIFEST_REFUSED"):
    """A manifest whose signature does not fit, or whose signer is not trusted."""


@dataclass(frozen=True, slots=True)
class VerifiedManifest:
    manifest: models_pb2.Manifest
    digest: Digest
    signer_id: NodeId


def sign_manifest(key: nacl.signing.SigningKey, manifest: models_pb2.Manifest) -> models_pb2.SignedManifest:
    """Serialise once and sign those bytes."""
    raw = manifest.SerializeToString(deterministic=True)
    return models_pb2.SignedManifest(
        manifest=raw, signature=key.sign(_CONTEXT + raw).signature, ed25519_public_key=bytes(key.verify_key)
    )


def digest_of(signed: models_pb2.SignedManifest) -> Digest:
    """The version's identity: sha256 of the signed bytes."""
    return Digest(hashlib.sha256(signed.manifest).hexdigest())


def verify_manifest(signed: models_pb2.SignedManifest, trusted_signers: Container[bytes]) -> VerifiedManifest:
    """The manifest, if one of these Ed25519 public keys (32 bytes each) signed it. Raises ManifestRefused."""
    signer_id = node_id_of(signed.ed25519_public_key)
    if signed.ed25519_public_key not in trusted_signers:
        raise ManifestRefused(
            f"the manifest's signer {signer_id} is not trusted here; add its public key to the trusted signers"
        )
    try:
        nacl.signing.VerifyKey(signed.ed25519_public_key).verify(_CONTEXT + signed.manifest, signed.signature)
        manifest = models_pb2.Manifest.FromString(signed.manifest)
    except (nacl.exceptions.BadSignatureError, ValueError, DecodeError) as error:
        raise ManifestRefused(f"the manifest was altered after {signer_id} signed it; fetch or publish it again") from error
    return VerifiedManifest(manifest, digest_of(signed), signer_id)


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
