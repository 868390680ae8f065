"""Files of a registry as its clients move them, step by step, so that a test can stop in between."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from penstock.registry.v1 import audit_pb2, audit_pb2_grpc, files_pb2, files_pb2_grpc, models_pb2, models_pb2_grpc

from cli.publish import publish_folder
from runtime.channel import inner_channel
from runtime.identity import NodeIdentity, Role
from tests.support.registry_load import model_folder

PIECE_BYTES = 1 << 20
Identities = dict[Role, NodeIdentity]


@dataclass(slots=True)
class Files:
    """An operator that uploads and a worker that fetches."""

    operator: grpc.aio.Channel
    worker: grpc.aio.Channel
    identities: Identities

    @property
    def uploads(self) -> files_pb2_grpc.FileServiceStub:
        return files_pb2_grpc.FileServiceStub(self.operator)

    async def publish(self, folder: Path, model: str, size_bytes: int) -> files_pb2.FetchFileRequest:
        """A model with one large file; what a worker asks to get it."""
        key = self.identities[Role.OPERATOR].signing_key
        published = await publish_folder(self.operator, key, model_folder(folder, model, size_bytes))
        request = models_pb2.GetVersionRequest(model=model, version=published.version)
        signed = (await models_pb2_grpc.ModelServiceStub(self.operator).GetVersion(request)).manifest
        (file,) = (each for each in models_pb2.Manifest.FromString(signed.manifest).files if each.path.endswith("model.py"))
        return self.wish(file.sha256, published.digest)

    def wish(self, sha256: str, digest: str, first_chunk: int = 0) -> files_pb2.FetchFileRequest:
        key = self.identities[Role.WORKER].ed25519_public_key
        return files_pb2.FetchFileRequest(sha256=sha256, digest=digest, first_chunk=first_chunk, ed25519_public_key=key)

    def fetch(self, wish: files_pb2.FetchFileRequest, timeout_s: float = 25.0) -> AsyncIterator[files_pb2.FetchFileResponse]:
        return aiter(files_pb2_grpc.FileServiceStub(self.worker).FetchFile(wish, timeout=timeout_s))

    async def fetched_bytes(self, wish: files_pb2.FetchFileRequest, timeout_s: float = 25.0) -> int:
        """Sealed bytes in all."""
        return sum([len(part.sealed_chunk) async for part in self.fetch(wish, timeout_s)])

    async def begin(self, content: bytes) -> files_pb2.BeginUploadResponse:
        sha256 = hashlib.sha256(content).hexdigest()
        return await self.uploads.BeginUpload(files_pb2.BeginUploadRequest(sha256=sha256, size_bytes=len(content)), timeout=20)

    async def send(self, begun: files_pb2.BeginUploadResponse, content: bytes, number: int) -> None:
        messages = part_of(content, begun, number)
        await self.uploads.UploadPart(iter(messages), timeout=25)

    async def complete(self, begun: files_pb2.BeginUploadResponse) -> bool:
        call = self.uploads.CompleteUpload(files_pb2.CompleteUploadRequest(upload_id=begun.upload_id), timeout=25)
        return [step.complete async for step in call][-1]

    async def actions(self, action: str) -> list[audit_pb2.AuditEntry]:
        """What the trail has of this, newest first."""
        request = audit_pb2.ListEntriesRequest(action=action)
        return list((await audit_pb2_grpc.AuditServiceStub(self.operator).ListEntries(request, timeout=20)).entries)


def part_of(content: bytes, begun: files_pb2.BeginUploadResponse, number: int) -> list[files_pb2.UploadPartRequest]:
    """The messages of one part."""
    header = files_pb2.UploadPartHeader(upload_id=begun.upload_id, number=number)
    data = content[number * begun.part_bytes : (number + 1) * begun.part_bytes]
    pieces = [files_pb2.UploadPartRequest(data=data[at : at + PIECE_BYTES]) for at in range(0, len(data), PIECE_BYTES)]
    return [files_pb2.UploadPartRequest(header=header), *pieces]


@asynccontextmanager
async def moving_files(address: str, identities: Identities) -> AsyncIterator[Files]:
    async with (
        inner_channel(address, identities[Role.OPERATOR], Role.REGISTRY) as operator,
        inner_channel(address, identities[Role.WORKER], Role.REGISTRY) as worker,
    ):
        yield Files(operator, worker, identities)
