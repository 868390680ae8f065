"""What tests of stored files stand on: the room of files over a real database and a real folder, and somebody who uploads."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from penstock.registry.v1 import files_pb2, files_pb2_grpc, models_pb2
from sqlalchemy import insert

from registry.access.door import NodeDoor
from registry.access.types import ActorKind, Principal, Scope
from registry.files.completion import Completion
from registry.files.composition import Files, compose_files
from registry.files.data_keys import DataKeys
from registry.files.layout import Layout
from registry.files.local import LocalObjects
from registry.files.objects import Objects
from registry.files.sql import FileStore
from registry.files.sql_collection import CollectionStore
from registry.files.types import DAY_MS, Begun, FileLimits, UploadId
from registry.files.uploads import Uploads
from registry.master_keys import MasterKeys
from registry.schema import models, version_files, versions
from registry.seals import insert_sealed
from runtime.identity import NodeIdentity, Role
from runtime.sealed_chunks import CHUNK_BYTES
from runtime.serving import Register
from tests.registry.harness import MASTER_KEYS, OPERATOR, Ground, Served, served

LIMITS = FileLimits(part_bytes=CHUNK_BYTES, silence_s=5.0)
SIZE_BYTES = 3 * CHUNK_BYTES + 12_345
"""Four parts of the limits above, the last one short."""

ACME = Principal(ActorKind.KEY, "acme-key", frozenset({Scope.MODELS_PUBLISH, Scope.MODELS_READ}), tenant=OPERATOR.tenant)


def of_tenant(tenant: str, *scopes: Scope) -> Principal:
    from runtime.ids import TenantId

    return replace(ACME, tenant=TenantId(tenant), actor_id=f"{tenant}-key", scopes=frozenset(scopes) or ACME.scopes)


def content_of(size_bytes: int = SIZE_BYTES, seed: int = 0) -> bytes:
    return hashlib.shake_256(seed.to_bytes(4, "big")).digest(size_bytes)


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class NoRotation:
    master_key_id = "k1"

    async def run(self, by: Principal | None = None) -> AsyncIterator[tuple[int, int]]:
        for done in range(3):
            yield done, 2


@dataclass(slots=True)
class Rig:
    """One replica's room of files, without a server."""

    ground: Ground
    objects: Objects
    store: FileStore
    collection: CollectionStore
    uploads: Uploads
    completion: Completion
    data_keys: DataKeys
    files: Files
    limits: FileLimits
    published: int = field(default=0)

    async def begin(self, content: bytes, tenant: str = "acme", **announced: object) -> Begun:
        wanted = {"sha256": sha256_of(content), "size_bytes": len(content), **announced}
        return await self.uploads.begin(of_tenant(tenant), tenant, wanted["sha256"], wanted["size_bytes"])  # type: ignore[arg-type]

    async def send(self, begun: Begun, content: bytes, *numbers: int, tenant: str = "acme") -> None:
        """These parts, or all."""
        assert begun.upload is not None
        layout = begun.upload.layout
        for number in numbers or range(layout.part_count):
            await self.uploads.receive(
                of_tenant(tenant), begun.upload.upload_id, number, pieces_of(part_of(content, layout, number)), accepted
            )

    async def complete(self, begun: Begun, tenant: str = "acme") -> None:
        assert begun.upload is not None
        steps = [step async for step in self.completion.complete(of_tenant(tenant), begun.upload.upload_id)]
        assert steps[-1].complete

    async def upload(self, content: bytes, tenant: str = "acme") -> Begun:
        begun = await self.begin(content, tenant)
        if begun.upload is not None:
            await self.send(begun, content, tenant=tenant)
            await self.complete(begun, tenant)
        return begun

    async def publish(self, *contents: bytes, tenant: str = "acme", model: str = "m", shared_with: Iterable[str] = ()) -> str:
        """What the room of models does, as far as files are concerned: the version's digest. Raises IntegrityError."""
        async with self.ground.database.writing() as connection:
            digest = secrets.token_hex(32)
            self.published += 1
            name = f"{model}{self.published}"
            row = {
                "model": name,
                "tenant": tenant,
                "description": "",
                "shared_with": sorted(shared_with),
                "created_at_ms": 1,
                "generation": 0,
            }
            await insert_sealed(connection, self.ground.seals, models, row)
            manifest = models_pb2.Manifest(
                model=name, files=[models_pb2.ManifestFile(sha256=sha256_of(content)) for content in contents]
            )
            version = {
                "digest": digest,
                "model": name,
                "number": 1,
                "engine": "onnx",
                "task": "tensor",
                "size_bytes": 1,
                "published_at_ms": 1,
                "signer_id": "s",
                "manifest": manifest.SerializeToString(),
                "signature": b"",
                "ed25519_public_key": b"",
                "withdrawn_at_ms": 0,
                "withdrawn_because": "",
            }
            await insert_sealed(connection, self.ground.seals, versions, version)
            for content in contents:
                await connection.execute(insert(version_files).values(digest=digest, sha256=sha256_of(content)))
        return digest

    async def keys(self) -> set[str]:
        """All there is in the store."""
        return {each.key async for page in self.objects.pages("objects/") for each in page}

    def later(self, days: float) -> None:
        self.ground.clock.now_s += days * DAY_MS / 1000


def rig_on(ground: Ground, objects: Objects | Path, limits: FileLimits = LIMITS, keys: MasterKeys = MASTER_KEYS) -> Rig:
    stored: Objects = LocalObjects(objects) if isinstance(objects, Path) else objects
    data_keys = DataKeys(keys)
    store = FileStore(ground.database, ground.seals, ground.trail)
    uploads = Uploads(store, stored, data_keys, ground.clock, limits)
    files = compose_files(
        door=NodeDoor(),
        database=ground.database,
        objects=stored,
        seals=ground.seals,
        data_keys=data_keys,
        trail=ground.trail,
        rotation=NoRotation(),
        clock=ground.clock,
        limits=limits,
    )
    completion = Completion(uploads, store, stored, data_keys, ground.clock, limits)
    return Rig(
        ground, stored, store, CollectionStore(ground.database, ground.trail), uploads, completion, data_keys, files, limits
    )


async def accepted() -> None:
    """Nobody waits for it."""


def part_of(content: bytes, layout: Layout, number: int) -> bytes:
    return content[number * layout.part_bytes : (number + 1) * layout.part_bytes]


async def pieces_of(part: bytes, piece_bytes: int = 300_000) -> AsyncIterator[bytes]:
    for start in range(0, len(part), piece_bytes):
        yield part[start : start + piece_bytes]


@asynccontextmanager
async def served_rig(rig: Rig, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Served]:
    registers: list[Register] = [rig.files.servicer.register]
    async with served(registers, identities) as server:
        yield server


async def stub_of(server: Served, role: Role = Role.OPERATOR) -> files_pb2_grpc.FileServiceStub:
    return files_pb2_grpc.FileServiceStub(await server.channel(role))


def upload_id_of(begun: Begun) -> UploadId:
    assert begun.upload is not None
    return begun.upload.upload_id


async def part_messages(upload_id: str, number: int, *pieces: bytes) -> AsyncIterator[files_pb2.UploadPartRequest]:
    yield files_pb2.UploadPartRequest(header=files_pb2.UploadPartHeader(upload_id=upload_id, number=number))
    for piece in pieces:
        yield files_pb2.UploadPartRequest(data=piece)


async def fetched(
    stub: files_pb2_grpc.FileServiceStub, identity: NodeIdentity, digest: str, content: bytes, first_chunk: int = 0
) -> tuple[files_pb2.FileHeader, list[bytes]]:
    """Header and sealed chunks."""
    request = files_pb2.FetchFileRequest(
        sha256=sha256_of(content), digest=digest, first_chunk=first_chunk, ed25519_public_key=identity.ed25519_public_key
    )
    messages = [message async for message in stub.FetchFile(request)]
    return messages[0].header, [message.sealed_chunk for message in messages[1:]]
