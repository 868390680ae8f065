"""The model store in SQL. Decides nothing: uniqueness is the database's, and its violations become our errors here."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Select, insert, select
from sqlalchemy.exc import IntegrityError

from registry.database import Database
from registry.ports import ModelExists, ModelUnknown, VersionExists
from registry.schema import models, versions
from registry.types import Model, ModelWithVersions, SignedBytes, StoredVersion, VersionSummary
from runtime.ids import Digest, ModelName, ModelVersion, NodeId

_SUMMARY = [
    versions.c[name] for name in ("model", "number", "digest", "engine", "task", "size_bytes", "published_at_ms", "signer_id")
]
_SIGNED = [versions.c[name] for name in ("manifest", "signature", "ed25519_public_key")]


class SqlModelStore:
    """Implements ModelStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_model(self, model: Model) -> None:
        row = {"model": model.model, "description": model.description, "created_at_ms": model.created_at_ms}
        try:
            async with self._database.writing() as connection:
                await connection.execute(insert(models).values(row))
        except IntegrityError as error:
            raise ModelExists(f"model {model.model} exists already; publish a version of it") from error

    async def models(self) -> tuple[ModelWithVersions, ...]:
        async with self._database.reading() as connection:
            found = (await connection.execute(select(models).order_by(models.c.model))).all()
            published = (await connection.execute(select(*_SUMMARY).order_by(versions.c.number))).all()
        by_model: dict[str, list[VersionSummary]] = {row.model: [] for row in found}
        for row in published:
            # A model made between the two reads is not in the first.
            by_model.get(row.model, []).append(_summary(row))
        return tuple(
            ModelWithVersions(Model(ModelName(row.model), row.description, row.created_at_ms), tuple(by_model[row.model]))
            for row in found
        )

    async def has_model(self, model: ModelName) -> bool:
        async with self._database.reading() as connection:
            return (await connection.execute(select(models.c.model).where(models.c.model == model))).first() is not None

    async def add_version(self, version: StoredVersion) -> None:
        summary, signed = version.summary, version.signed
        row = {
            "digest": summary.digest,
            "model": summary.model,
            "number": int(summary.version),
            "engine": summary.engine,
            "task": summary.task,
            "size_bytes": summary.size_bytes,
            "published_at_ms": summary.published_at_ms,
            "signer_id": summary.signer_id,
            "manifest": signed.manifest,
            "signature": signed.signature,
            "ed25519_public_key": signed.ed25519_public_key,
        }
        try:
            async with self._database.writing() as connection:
                await connection.execute(insert(versions).values(row))
        except IntegrityError as error:
            if not await self.has_model(summary.model):
                raise ModelUnknown(f"there is no model {summary.model}; create it first") from error
            raise VersionExists(f"model {summary.model} has a version {summary.version} already; publish the next") from error

    async def version(self, model: ModelName, version: ModelVersion) -> StoredVersion | None:
        wanted = select(*_SUMMARY, *_SIGNED).where(versions.c.model == model)
        if version:
            wanted = wanted.where(versions.c.number == int(version))
        return await self._one(wanted.order_by(versions.c.number.desc()).limit(1))

    async def version_by_digest(self, digest: Digest) -> StoredVersion | None:
        return await self._one(select(*_SUMMARY, *_SIGNED).where(versions.c.digest == digest))

    async def _one(self, wanted: Select[Any]) -> StoredVersion | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(wanted)).first()
        if row is None:
            return None
        return StoredVersion(_summary(row), SignedBytes(row.manifest, row.signature, row.ed25519_public_key))


def _summary(row: Row[Any]) -> VersionSummary:
    return VersionSummary(
        model=ModelName(row.model),
        version=ModelVersion(str(row.number)),
        digest=Digest(row.digest),
        engine=row.engine,
        task=row.task,
        size_bytes=row.size_bytes,
        published_at_ms=row.published_at_ms,
        signer_id=NodeId(row.signer_id),
    )
