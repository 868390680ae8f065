"""Signed manifests as the worker takes them: verified, of the digest that was ordered, with paths that stay inside the folder.

A codec. A manifest travels and is kept together with the endorsement of its signer, as a GetVersionResponse with nothing else:
the registry's own word about a version is signed by nobody. Decides whether a manifest may be used here; the registry's own
checks are not relied on.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from penstock.registry.v1 import models_pb2

from runtime.ids import Digest, NodeId
from runtime.manifests import ManifestRefused, verify_manifest
from worker.engine import ModelRefused
from worker.spec import spec_of
from worker.types import ModelSpec

MAX_FILES = 10_000
_NOBODY = NodeId("")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ManifestFile:
    path: str
    """Relative, forward slashes."""
    sha256: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """A model version as vouched for."""

    spec: ModelSpec
    files: tuple[ManifestFile, ...]
    signer_id: NodeId = _NOBODY
    confidential: bool = False
    """Its files lie in memory alone, and are given to nobody."""


def vouched(answer: models_pb2.GetVersionResponse) -> bytes:
    """What is kept of the registry's answer: the manifest and what makes its signer believed."""
    kept = models_pb2.GetVersionResponse(manifest=answer.manifest)
    if answer.HasField("endorsement"):
        kept.endorsement.CopyFrom(answer.endorsement)
    return kept.SerializeToString()


def open_manifest(raw: bytes, digest: Digest, trusted_signers: Container[bytes], *, now_ms: int) -> Description:
    """From what `vouched` made. Raises ManifestRefused, ModelRefused."""
    try:
        kept = models_pb2.GetVersionResponse.FromString(raw)
    except DecodeError as error:
        raise ManifestRefused(f"what stands for manifest {digest} is none; fetch or publish it again") from error
    endorsement = kept.endorsement if kept.HasField("endorsement") else None
    verified = verify_manifest(kept.manifest, trusted_signers, endorsement, now_ms=now_ms)
    if verified.digest != digest:
        raise ManifestRefused(
            f"manifest {digest} was asked for, and {verified.digest} came; the registry is not to be believed"
        )
    manifest = verified.manifest
    files = tuple(ManifestFile(file.path, Digest(file.sha256), file.size_bytes) for file in manifest.files)
    spec = spec_of(manifest, digest, kept.manifest.ed25519_public_key)
    _check_files(spec, files)
    return Description(spec, files, verified.signer_id, manifest.confidential)


def is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


def _check_files(spec: ModelSpec, files: tuple[ManifestFile, ...]) -> None:
    where = f"the manifest of {spec.model!r} version {spec.version}"
    if not 1 <= len(files) <= MAX_FILES:
        raise ModelRefused(f"{where} lists {len(files)} files; 1 to {MAX_FILES} are taken")
    paths = {file.path for file in files}
    if len(paths) != len(files):
        raise ModelRefused(f"{where} lists a path twice")
    for file in files:
        segments = file.path.split("/")
        if "\\" in file.path or not file.path.isprintable() or any(part in ("", ".", "..") for part in segments):
            raise ModelRefused(f"{where} lists path {file.path[:80]!r}, which leads out of the model's folder or is no path")
        if any("/".join(segments[:count]) in paths for count in range(1, len(segments))):
            raise ModelRefused(f"{where} lists path {file.path[:80]!r} inside of another file")
        if not is_sha256(file.sha256):
            raise ModelRefused(f"{where} gives {file.path[:80]!r} the sha256 {file.sha256[:80]!r}; 64 hex digits are expected")
