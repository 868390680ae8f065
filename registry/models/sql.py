"""Models in SQL: rows to nouns and back, within one transaction.

The one file of this room that knows tables. Checks the seal of every row that bears one. Decides nothing: what belongs into one
transaction is said by who opens it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import ColumnElement, Row, Table, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.audit.trail import AuditTrail
from registry.audit.types import AuditNote
from registry.models.rows import alias_of, alias_row, model_of, move_of, signer_of, version_of
from registry.models.types import (
    AliasMove,
    AliasState,
    FilesMissing,
    Model,
    ModelExists,
    Signer,
    StoredVersion,
    VersionSummary,
)
from registry.notices.outbox import NoticeKind, tell
from registry.schema import alias_moves, aliases, file_owners, files, models, signers, tenants, version_files, versions
from registry.seals import RowAltered, Seals, insert_sealed, select_checked, update_sealed
from runtime.database import Database
from runtime.ids import Digest, ModelName, NodeId, TenantId

_AT_ONCE = 500
"""Names in one statement: databases bound its parameters."""


Altered = list[RowAltered]
"""Where a list puts what it leaves out, for the trail."""


class ModelTables:
    """Transactions on the tables of models."""

    def __init__(self, database: Database, seals: Seals, trail: AuditTrail) -> None:
        self._database, self._seals, self._trail = database, seals, trail

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[ModelRows]:
        async with self._database.reading() as connection:
            yield ModelRows(connection, self._seals, self._trail)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[ModelRows]:
        """Committed on leaving, rolled back on an exception."""
        async with self._database.writing() as connection:
            yield ModelRows(connection, self._seals, self._trail)


class ModelRows:
    """The rows of one transaction. Whatever reads a row with a seal raises RowAltered."""

    def __init__(self, connection: AsyncConnection, seals: Seals, trail: AuditTrail) -> None:
        self._connection, self._seals, self._trail = connection, seals, trail

    async def note(self, note: AuditNote) -> None:
        await self._trail.write(self._connection, note)

    def _sound(self, table: Table, row: Row[Any], altered: Altered) -> Row[Any] | None:
        """For lists: one altered row keeps nobody from the others."""
        try:
            return self._seals.check(table, row)
        except RowAltered as error:
            altered.append(error)
            return None

    async def has_tenant(self, tenant: TenantId) -> bool:
        return await select_checked(self._connection, self._seals, tenants, tenants.c.tenant == tenant) is not None

    # Models

    async def model(self, model: ModelName) -> Model | None:
        row = await select_checked(self._connection, self._seals, models, models.c.model == model)
        return None if row is None else model_of(row)

    async def locked(self, model: ModelName) -> Model | None:
        """The model, which nobody else changes (nor its versions and aliases) until the transaction ends."""
        row = (await self._connection.execute(select(models).where(models.c.model == model).with_for_update())).first()
        return None if row is None else model_of(self._seals.check(models, row))

    async def models(self, tenant: TenantId | None, altered: Altered) -> list[Model]:
        """Of one tenant or all, by name; altered ones are left out."""
        wanted = select(models).order_by(models.c.model)
        if tenant is not None:
            wanted = wanted.where(models.c.tenant == tenant)
        rows = [self._sound(models, row, altered) for row in await self._connection.execute(wanted)]
        return [model_of(row) for row in rows if row is not None]

    async def add_model(self, model: Model) -> None:
        """Raises ModelExists; the transaction is of no use afterwards."""
        row = {
            "model": model.model,
            "tenant": model.tenant,
            "description": model.description,
            "shared_with": sorted(model.shared_with),
            "created_at_ms": model.created_at_ms,
            "generation": model.generation,
        }
        try:
            await insert_sealed(self._connection, self._seals, models, row)
        except IntegrityError as error:
            raise ModelExists(f"model {model.model} exists already; publish a version of it") from error

    async def share(self, model: ModelName, shared_with: Iterable[str]) -> None:
        changes = {"shared_with": sorted(shared_with)}
        await update_sealed(self._connection, self._seals, models, changes, models.c.model == model)

    async def changed(self, model: ModelName) -> None:
        """Count the model's generation up, and have the mesh told."""
        grown = update(models).where(models.c.model == model).values(generation=models.c.generation + 1)
        await self._connection.execute(grown)
        await tell(self._connection, NoticeKind.MODEL, model)

    async def changed_all(self, tenant: TenantId) -> None:
        """As `changed`, of every model of a tenant. Locked in one order, so that two who do this do not wait for each other."""
        wanted = select(models.c.model).where(models.c.tenant == tenant).order_by(models.c.model).with_for_update()
        for (model,) in (await self._connection.execute(wanted)).all():
            await self.changed(ModelName(model))

    # Versions

    async def version(self, model: ModelName, number: int) -> StoredVersion | None:
        return await self._version(versions.c.model == model, versions.c.number == number)

    async def version_by_digest(self, digest: Digest) -> StoredVersion | None:
        return await self._version(versions.c.digest == digest)

    async def newest_version(self, model: ModelName) -> StoredVersion | None:
        """The one with the highest number that is not withdrawn."""
        live = (versions.c.model == model, versions.c.withdrawn_at_ms == 0)
        highest = select(func.max(versions.c.number)).where(*live).scalar_subquery()
        return await self._version(*live, versions.c.number == highest)

    async def summaries(self, names: Sequence[ModelName], altered: Altered) -> dict[ModelName, list[VersionSummary]]:
        """What was published of these models, lowest number first; altered ones are left out.

        Reads row by row: manifests may be large.
        """
        found: dict[ModelName, list[VersionSummary]] = {name: [] for name in names}
        for some in _portions(names):
            wanted = select(versions).where(versions.c.model.in_(some)).order_by(versions.c.number)
            async with self._connection.stream(wanted.execution_options(yield_per=100)) as rows:
                async for row in rows:
                    if (sound := self._sound(versions, row, altered)) is not None:
                        summary = version_of(sound).summary
                        found[summary.model].append(summary)
        return found

    async def versions(self, model: ModelName, numbers: Iterable[int]) -> dict[int, VersionSummary]:
        """Those of the numbers that there are."""
        found = {}
        for number in sorted(set(numbers) - {0}):
            if (version := await self.version(model, number)) is not None:
                found[number] = version.summary
        return found

    async def add_version(self, version: StoredVersion, sha256s: Iterable[Digest]) -> None:
        """Raises FilesMissing where a file went away meanwhile; the transaction is of no use then."""
        summary, signed = version.summary, version.signed
        row = {
            "digest": summary.digest,
            "model": summary.model,
            "number": summary.number,
            "engine": summary.engine,
            "task": summary.task,
            "size_bytes": summary.size_bytes,
            "published_at_ms": summary.published_at_ms,
            "signer_id": summary.signer_id,
            "manifest": signed.manifest,
            "signature": signed.signature,
            "ed25519_public_key": signed.ed25519_public_key,
            "withdrawn_at_ms": 0,
            "withdrawn_because": "",
        }
        await insert_sealed(self._connection, self._seals, versions, row)
        named = [{"digest": summary.digest, "sha256": sha256} for sha256 in sorted(set(sha256s))]
        try:
            await self._connection.execute(insert(version_files), named)
        except IntegrityError as error:
            raise FilesMissing("files of the version were collected as garbage meanwhile; upload them again") from error

    async def withdraw_version(self, model: ModelName, number: int, at_ms: int, because: str) -> None:
        changes = {"withdrawn_at_ms": at_ms, "withdrawn_because": because}
        where = (versions.c.model == model, versions.c.number == number)
        await update_sealed(self._connection, self._seals, versions, changes, *where)

    async def file_sizes(self, sha256s: Iterable[Digest], owner: TenantId | None) -> dict[Digest, int]:
        """Sizes in bytes of those that are stored; of one tenant's, or anybody's."""
        wanted = select(files.c.sha256, files.c.size_bytes)
        if owner is not None:
            wanted = wanted.join(file_owners, file_owners.c.sha256 == files.c.sha256).where(file_owners.c.tenant == owner)
        found: dict[Digest, int] = {}
        for some in _portions(sorted(set(sha256s))):
            rows = await self._connection.execute(wanted.where(files.c.sha256.in_(some)))
            found |= {Digest(row.sha256): row.size_bytes for row in rows}
        return found

    # Aliases

    async def aliases(
        self, names: Sequence[ModelName], altered: Altered | None = None
    ) -> dict[ModelName, dict[str, AliasState]]:
        """Of each model, by name; with a list for them, altered ones are left out. Raises RowAltered without."""
        found: dict[ModelName, dict[str, AliasState]] = {name: {} for name in names}
        for some in _portions(names):
            wanted = select(aliases).where(aliases.c.model.in_(some)).order_by(aliases.c.model, aliases.c.alias)
            for row in await self._connection.execute(wanted):
                sound = self._seals.check(aliases, row) if altered is None else self._sound(aliases, row, altered)
                if sound is not None:
                    found[ModelName(sound.model)][sound.alias] = alias_of(sound)
        return found

    async def alias(self, model: ModelName, alias: str) -> AliasState | None:
        where = (aliases.c.model == model, aliases.c.alias == alias)
        row = await select_checked(self._connection, self._seals, aliases, *where)
        return None if row is None else alias_of(row)

    async def put_aliases(self, model: ModelName, states: Mapping[str, AliasState | None]) -> None:
        """Write them as they are now; None: it is gone."""
        for alias, state in states.items():
            await self._connection.execute(delete(aliases).where(aliases.c.model == model, aliases.c.alias == alias))
            if state is not None:
                await insert_sealed(self._connection, self._seals, aliases, alias_row(model, state))

    async def moves(self, model: ModelName, alias: str, limit: int) -> list[AliasMove]:
        """The newest ones, newest first; of all aliases where `alias` is empty."""
        wanted = select(alias_moves).where(alias_moves.c.model == model).order_by(alias_moves.c.move.desc()).limit(limit)
        if alias:
            wanted = wanted.where(alias_moves.c.alias == alias)
        return [move_of(self._seals.check(alias_moves, row)) for row in await self._connection.execute(wanted)]

    async def add_moves(self, model: ModelName, moves: Iterable[AliasMove]) -> None:
        for move in moves:
            row = {name: getattr(move, name) for name in AliasMove.__slots__} | {"model": model, "kind": move.kind.value}
            await insert_sealed(self._connection, self._seals, alias_moves, row)

    # Signers

    async def signer(self, signer_id: NodeId, tenant: TenantId, *, hold: bool = False) -> Signer | None:
        """`hold`: it is neither revoked nor endorsed anew until the transaction ends."""
        wanted = select(signers).where(signers.c.signer_id == signer_id, signers.c.tenant == tenant)
        row = (await self._connection.execute(wanted.with_for_update(read=True) if hold else wanted)).first()
        return None if row is None else signer_of(self._seals.check(signers, row))

    async def signers(self, tenant: TenantId | None) -> list[Signer]:
        """Of one tenant or all."""
        wanted = select(signers).order_by(signers.c.tenant, signers.c.endorsed_at_ms, signers.c.signer_id)
        if tenant is not None:
            wanted = wanted.where(signers.c.tenant == tenant)
        return [signer_of(self._seals.check(signers, row)) for row in await self._connection.execute(wanted)]

    async def put_signer(self, signer: Signer) -> None:
        row = {name: getattr(signer, name) for name in Signer.__slots__}
        where: tuple[ColumnElement[bool], ...] = (
            signers.c.signer_id == signer.signer_id,
            signers.c.tenant == signer.tenant,
        )
        if await update_sealed(self._connection, self._seals, signers, row, *where) is None:
            await insert_sealed(self._connection, self._seals, signers, row)

    async def _version(self, *where: ColumnElement[bool]) -> StoredVersion | None:
        row = await select_checked(self._connection, self._seals, versions, *where)
        return None if row is None else version_of(row)


def _portions(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE))
