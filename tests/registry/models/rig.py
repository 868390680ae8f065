"""What tests of models stand on: a ModelService on a real database, called as anybody; signed manifests, stored files."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import nacl.signing
from penstock.registry.v1 import models_pb2
from sqlalchemy import insert

from registry.access.door import Context
from registry.access.policy import ACCOUNT_SCOPES, NODE_SCOPES
from registry.access.types import AccountRole, ActorKind, Principal
from registry.audit.bounded import BoundedTrail
from registry.models.servicer import ModelServicer
from registry.schema import file_owners, files
from runtime.identity import Role, node_id_of
from runtime.ids import ModelName, NodeId, TenantId
from runtime.manifests import sign_endorsement, sign_manifest
from tests.registry.harness import OPERATOR, Ground

ROOT = nacl.signing.SigningKey(b"r" * 32)
WEIGHTS, TOKENS = b"weights" * 1000, b"tokens"
NOWHERE = cast("Context", None)


def person(tenant: str, role: AccountRole = AccountRole.PUBLISHER, *models: str) -> Principal:
    allowed = frozenset(ModelName(model) for model in models)
    return Principal(ActorKind.KEY, f"key-of-{tenant}", ACCOUNT_SCOPES[role], TenantId(tenant), allowed, role=role)


def node(role: Role, *tenants: str) -> Principal:
    served = frozenset(TenantId(tenant) for tenant in tenants)
    return Principal(
        ActorKind.NODE, f"a-{role.value}", NODE_SCOPES[role], node_role=role, node_id=NodeId("n"), node_tenants=served
    )


@dataclass
class AnybodyDoor:
    """Lets in whom the test says."""

    principal: Principal = OPERATOR

    async def enter(self, _: Context) -> Principal:
        return self.principal


@dataclass
class Desk:
    """A registry's ModelService, called in this process: requests and answers are the wire's."""

    ground: Ground
    roots: set[bytes] = field(default_factory=lambda: {bytes(ROOT.verify_key)})
    door: AnybodyDoor = field(default_factory=AnybodyDoor)

    def __post_init__(self) -> None:
        self.servicer = self.on(self.ground)

    def on(self, ground: Ground) -> ModelServicer:
        """A replica."""
        return ModelServicer(
            door=self.door,
            database=ground.database,
            seals=ground.seals,
            trail=ground.trail,
            bounded=BoundedTrail(ground.trail, ground.clock),
            roots=lambda: frozenset(self.roots),
            clock=ground.clock,
        )

    @contextmanager
    def called_by(self, principal: Principal) -> Any:
        before, self.door.principal = self.door.principal, principal
        try:
            yield
        finally:
            self.door.principal = before

    async def create(self, model: str = "digits", tenant: str = "acme", shared_with: Sequence[str] = ()) -> models_pb2.Model:
        request = models_pb2.CreateModelRequest(model=model, tenant=tenant, shared_with=shared_with, description="reads digits")
        return (await self.servicer.CreateModel(request, NOWHERE)).model

    async def store(self, content: bytes, *tenants: str) -> None:
        await self.store_all([content], *tenants)

    async def store_all(self, contents: Sequence[bytes], *tenants: str) -> None:
        """As if these tenants had uploaded them."""
        rest = {"part_bytes": 1, "wrapped_key": b"", "master_key_id": "k1", "created_at_ms": 1}
        rows = [
            {"sha256": sha256_of(content), "object_id": secrets.token_bytes(16), "size_bytes": len(content), **rest}
            for content in contents
        ]
        owned = [{"tenant": tenant, "sha256": row["sha256"], "since_ms": 1} for tenant in tenants for row in rows]
        async with self.ground.database.writing() as connection:
            await connection.execute(insert(files), rows)
            await connection.execute(insert(file_owners), owned)

    async def publish(self, *numbers: int, model: str = "digits", tenant: str = "acme") -> list[models_pb2.VersionSummary]:
        """Versions of the weights, made where they are not."""
        return [await self.publish_signed(sign_manifest(ROOT, manifest(model, tenant, str(number)))) for number in numbers]

    async def publish_signed(self, signed: models_pb2.SignedManifest) -> models_pb2.VersionSummary:
        answer = await self.servicer.PublishVersion(models_pb2.PublishVersionRequest(manifest=signed), NOWHERE)
        return answer.version

    async def get(self, version: str = "", model: str = "digits", digest: str = "") -> models_pb2.GetVersionResponse:
        request = models_pb2.GetVersionRequest(model=model, version=version, digest=digest)
        return await self.servicer.GetVersion(request, NOWHERE)

    async def number(self, version: str = "") -> str:
        return (await self.get(version)).version.version

    async def move(self, alias: str, version: int, weight: int = 0, **more: Any) -> models_pb2.Alias:
        """At once, unless it is said otherwise."""
        more = {"immediate": True} | more
        request = models_pb2.MoveAliasRequest(model="digits", alias=alias, version=str(version), weight=weight, **more)
        return (await self.servicer.MoveAlias(request, NOWHERE)).alias

    async def model(self, model: str = "digits") -> models_pb2.Model:
        (found,) = [each for each in await self.models() if each.model == model]
        return found

    async def models(self, tenant: str = "") -> list[models_pb2.Model]:
        return list((await self.servicer.ListModels(models_pb2.ListModelsRequest(tenant=tenant), NOWHERE)).models)

    async def aliases(self) -> dict[str, models_pb2.Alias]:
        return {alias.alias: alias for alias in (await self.model()).aliases}

    async def history(self, alias: str = "", limit: int = 1000) -> list[models_pb2.AliasMove]:
        """Oldest first."""
        request = models_pb2.ListAliasMovesRequest(model="digits", alias=alias, limit=limit)
        return list((await self.servicer.ListAliasMoves(request, NOWHERE)).moves)[::-1]

    async def told(self) -> int:
        """How often the mesh is to be told."""
        return await self.ground.count("outbox")


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def manifest(
    model: str = "digits", tenant: str = "acme", version: str = "1", contents: Sequence[bytes] = (WEIGHTS,), licence: str = ""
) -> models_pb2.Manifest:
    said = models_pb2.Manifest(
        model=model, tenant=tenant, version=version, engine="onnx", task="tensor", licence=licence, max_batch_size=8
    )
    for place, content in enumerate(contents):
        said.files.add(path=f"files/{place}.bin", sha256=sha256_of(content), size_bytes=len(content))
    return said


def endorsement(
    key: nacl.signing.SigningKey,
    tenant: str = "acme",
    models: Sequence[str] = ("*",),
    by: nacl.signing.SigningKey = ROOT,
    at_ms: int = 1,
    expires_at_ms: int = 0,
) -> models_pb2.SignedEndorsement:
    said = models_pb2.Endorsement(
        tenant=tenant,
        ed25519_public_key=bytes(key.verify_key),
        name="somebody",
        models=models,
        endorsed_at_ms=at_ms,
        expires_at_ms=expires_at_ms,
    )
    return sign_endorsement(by, said)


async def endorse(desk: Desk, signed: models_pb2.SignedEndorsement) -> models_pb2.Signer:
    return (await desk.servicer.EndorseSigner(models_pb2.EndorseSignerRequest(endorsement=signed), NOWHERE)).signer


async def revoke(desk: Desk, key: nacl.signing.SigningKey, tenant: str = "acme") -> models_pb2.Signer:
    request = models_pb2.RevokeSignerRequest(signer_id=node_id_of(bytes(key.verify_key)), tenant=tenant)
    return (await desk.servicer.RevokeSigner(request, NOWHERE)).signer


async def furnished(ground: Ground) -> Desk:
    """With acme's model `digits` and its files, and no version yet."""
    desk = Desk(ground)
    await desk.create()
    await desk.store_all([WEIGHTS, TOKENS], "acme")
    return desk
