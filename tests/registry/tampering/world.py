"""A registry with its real pieces, a published model, and a worker that loads it; and ways to spoil what they hold."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nacl.signing
from penstock.registry.v1 import files_pb2, files_pb2_grpc, models_pb2, models_pb2_grpc
from sqlalchemy import Column, Table, select, update

from registry.access.door import NodeDoor
from registry.audit.audited import audited
from registry.audit.bounded import BoundedTrail
from registry.audit.servicer import AuditServicer
from registry.files.composition import compose_files
from registry.files.data_keys import DataKeys
from registry.files.local import LocalObjects
from registry.files.rotation import Rotation
from registry.files.types import FileLimits
from registry.models.servicer import ModelServicer
from runtime.clock import SystemClock
from runtime.identity import NodeIdentity, Role, node_id_of
from runtime.ids import Digest, ModelName, ModelVersion
from runtime.manifests import sign_endorsement, sign_manifest
from tests.registry.harness import MASTER_KEYS, Ground, Served, served
from tests.worker.manifests import manifest_of
from worker.files.artifacts import Artifacts, Prepared
from worker.files.cache import open_cache
from worker.files.incidents import Incidents
from worker.files.registry_source import RegistrySource

ROOT, SIGNER = nacl.signing.SigningKey(b"r" * 32), nacl.signing.SigningKey(b"s" * 32)
SIGNER_ID = node_id_of(bytes(SIGNER.verify_key))
MODEL = ModelName("digits")
CONTENT = random.Random(5).randbytes((1 << 20) + 70_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
_MESSAGE_BYTES = 256 * 1024


@dataclass(slots=True)
class World:
    ground: Ground
    objects: Path
    worker_disk: Path
    server: Served
    artifacts: Artifacts
    digest: str = ""
    version: str = "stable"
    """What `load` asks for."""

    async def models(self, role: Role = Role.OPERATOR) -> models_pb2_grpc.ModelServiceStub:
        return models_pb2_grpc.ModelServiceStub(await self.server.channel(role))

    async def files(self) -> files_pb2_grpc.FileServiceStub:
        return files_pb2_grpc.FileServiceStub(await self.server.channel(Role.OPERATOR))

    async def publish(self) -> None:
        """A model of an endorsed signer, with one file, called `stable`."""
        models = await self.models()
        await self.upload(CONTENT)
        await models.CreateModel(models_pb2.CreateModelRequest(model=MODEL))
        endorsement = models_pb2.Endorsement(
            tenant="default", ed25519_public_key=bytes(SIGNER.verify_key), name="ci", models=[MODEL], endorsed_at_ms=1
        )
        signed = sign_endorsement(ROOT, endorsement)
        await models.EndorseSigner(models_pb2.EndorseSignerRequest(endorsement=signed))
        manifest = sign_manifest(SIGNER, manifest_of({"model.onnx": CONTENT}))
        published = await models.PublishVersion(models_pb2.PublishVersionRequest(manifest=manifest))
        self.digest = published.version.digest
        moved = models_pb2.MoveAliasRequest(model=MODEL, alias="stable", version="1", immediate=True)
        await models.MoveAlias(moved)

    async def upload(self, content: bytes) -> str:
        """Its sha256."""
        files, sha256 = await self.files(), hashlib.sha256(content).hexdigest()
        begun = await files.BeginUpload(files_pb2.BeginUploadRequest(sha256=sha256, size_bytes=len(content)))

        async def part() -> AsyncIterator[files_pb2.UploadPartRequest]:
            yield files_pb2.UploadPartRequest(header=files_pb2.UploadPartHeader(upload_id=begun.upload_id, number=0))
            for start in range(0, len(content), _MESSAGE_BYTES):
                yield files_pb2.UploadPartRequest(data=content[start : start + _MESSAGE_BYTES])

        await files.UploadPart(part())
        async for _ in files.CompleteUpload(files_pb2.CompleteUploadRequest(upload_id=begun.upload_id)):
            pass
        return sha256

    async def load(self) -> Prepared:
        """As a mesh does it: the name is looked up, what it means is loaded."""
        models = await self.models(Role.WORKER)
        found = await models.GetVersion(models_pb2.GetVersionRequest(model=MODEL, version=self.version))
        digest = Digest(found.version.digest)
        description = await self.artifacts.describe(digest, (MODEL, ModelVersion(found.version.version)))
        return await self.artifacts.prepare(description, lambda _: None)

    def loaded_files(self) -> list[Path]:
        """What an engine could open on the worker."""
        return [file for folder in ("models", "files") for file in (self.worker_disk / folder).rglob("*") if file.is_file()]

    async def noted(self, action: str) -> None:
        """Return once the trail says so."""
        async with asyncio.timeout(20):
            while not [entry for entry in await self.ground.actions() if entry[0] == action and entry[2] == "failed"]:
                await asyncio.sleep(0.01)

    def parts(self) -> Iterator[Path]:
        """The stored objects."""
        return (file for file in (self.objects / "objects").rglob("*") if file.is_file())

    async def rewrite(self, column: Column[Any], change: Callable[[Any], Any]) -> None:
        """Change one column of the table's only row, or of all, behind the registry's back."""
        table = column.table
        assert isinstance(table, Table)
        async with self.ground.database.writing() as connection:
            value = (await connection.execute(select(column))).scalars().first()
            await connection.execute(update(table).values({column.name: change(value)}))


def flipped(raw: bytes, at: int = -1) -> bytes:
    """One bit of one byte."""
    altered = bytearray(raw)
    altered[at] ^= 1
    return bytes(altered)


@asynccontextmanager
async def world_on(ground: Ground, folder: Path, identities: dict[Role, NodeIdentity]) -> AsyncIterator[World]:
    """Everything is there, published, and not loaded yet."""
    bounded, door = BoundedTrail(ground.trail, ground.clock), NodeDoor()
    data_keys, objects = DataKeys(MASTER_KEYS), LocalObjects(folder / "objects")
    files = compose_files(
        door=door,
        database=ground.database,
        objects=objects,
        seals=ground.seals,
        data_keys=data_keys,
        trail=ground.trail,
        rotation=Rotation(ground.database, ground.seals, data_keys, ground.trail),
        clock=ground.clock,
        limits=FileLimits(),
    )
    roots = frozenset([bytes(ROOT.verify_key)])
    common = {"door": door, "database": ground.database, "seals": ground.seals, "trail": ground.trail, "clock": ground.clock}
    models = ModelServicer(bounded=bounded, roots=lambda: roots, **common)  # type: ignore[arg-type]
    audit = AuditServicer(bounded=bounded, **common)  # type: ignore[arg-type]
    registers = [audited(servicer.register, bounded) for servicer in (files.servicer, models, audit)]
    async with served(registers, identities) as server:
        channel = await server.channel(Role.WORKER)
        incidents = Incidents(channel, SystemClock(), random.Random(1))
        with open_cache(folder / "worker", 1 << 30) as cache:
            source = RegistrySource(channel, identities[Role.WORKER])
            artifacts = Artifacts(cache, source, lambda: roots, clock=ground.clock, report=incidents.report)
            async with incidents.told():
                world = World(ground, folder / "objects", folder / "worker", server, artifacts)
                await world.publish()
                yield world
