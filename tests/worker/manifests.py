"""Model versions to fetch: signed, with files, and a registry in memory that can be made to fail."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Self

import nacl.signing
from penstock.registry.v1 import models_pb2

from runtime.errors import NotFound, Unavailable
from runtime.ids import Digest
from runtime.manifests import digest_of, sign_manifest
from worker.files.manifest import vouched

PUBLISHER = nacl.signing.SigningKey(b"p" * 32)
TRUSTED = frozenset([bytes(PUBLISHER.verify_key)])
CHUNK_BYTES = 1000


def sha256_of(content: bytes) -> Digest:
    return Digest(hashlib.sha256(content).hexdigest())


def manifest_of(files: Mapping[str, bytes], *, model: str = "digits", version: str = "1") -> models_pb2.Manifest:
    return models_pb2.Manifest(
        model=model,
        version=version,
        engine="onnx",
        task="tensor",
        max_batch_size=8,
        files=[
            models_pb2.ManifestFile(path=path, sha256=sha256_of(content), size_bytes=len(content))
            for path, content in files.items()
        ],
        inputs=[models_pb2.TensorSpec(name="x", datatype="FP32", shape=[1])],
        outputs=[models_pb2.TensorSpec(name="y", datatype="FP32", shape=[1])],
    )


@dataclass(slots=True)
class MemoryRegistry:
    """Implements `worker.files.origins.Source` and `Origin`; notes what it is asked."""

    name: str = "the registry"
    files: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    fetched: list[tuple[str, int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    """Of the versions for whose files it was asked."""
    away: bool = False
    breaks_after_bytes: int | None = None
    """The next transfer breaks there."""
    held: asyncio.Event | None = None
    """Transfers wait for it."""

    def publish(
        self,
        manifest: models_pb2.Manifest,
        files: Mapping[str, bytes] | None = None,
        key: nacl.signing.SigningKey = PUBLISHER,
        endorsement: models_pb2.SignedEndorsement | None = None,
    ) -> Digest:
        self.files.update({sha256_of(content): content for content in (files or {}).values()})
        signed = sign_manifest(key, manifest)
        self.manifests[digest_of(signed)] = vouched(models_pb2.GetVersionResponse(manifest=signed, endorsement=endorsement))
        return digest_of(signed)

    def publish_files(self, files: Mapping[str, bytes], *, model: str = "digits", version: str = "1") -> Digest:
        return self.publish(manifest_of(files, model=model, version=version), files)

    async def manifest(self, digest: Digest) -> bytes:
        self.asked.append(digest)
        if self.away:
            raise Unavailable("the registry is away")
        if digest not in self.manifests:
            raise NotFound(f"no version has digest {digest}")
        return self.manifests[digest]

    def files_of(self, digest: Digest) -> Self:
        self.digests.append(digest)
        return self

    async def fetch(self, sha256: Digest, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        if self.away:
            raise Unavailable("the registry is away")
        self.fetched.append((sha256, offset_bytes))
        if self.held is not None:
            await self.held.wait()
        content, sent_bytes = self.files[sha256], 0
        for start in range(offset_bytes, len(content), CHUNK_BYTES):
            if self.breaks_after_bytes is not None and sent_bytes >= self.breaks_after_bytes:
                self.breaks_after_bytes = None
                raise Unavailable("the connection broke")
            chunk = content[start : start + CHUNK_BYTES]
            sent_bytes += len(chunk)
            yield chunk
