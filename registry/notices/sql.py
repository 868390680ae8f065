"""What there is to tell, read from the tables of every room, each row's seal checked. The one file of this room with SQL.

Every version of a model is read, not only those that are withdrawn: a row that somebody brought back to life behind the
registry's back is noticed only where its seal is checked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Table, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.notices.outbox import NoticeKind
from registry.notices.types import Subject, Truth, Waiting
from registry.schema import aliases, limit_changes, models, nodes, outbox, signers, versions
from registry.seals import RowAltered, Seals, select_checked
from registry.threads import in_thread
from runtime.database import Database
from runtime.ids import Digest, ModelName, ModelVersion, NodeId, TenantId
from runtime.notice_records import (
    AliasTarget,
    LimitsNotice,
    ModelNotice,
    NodeNotice,
    PendingTarget,
    limits_payload,
    model_payload,
    node_payload,
)

Rows = Sequence[Row[Any]]
_KINDS = {kind.value: kind for kind in NoticeKind}


class NoticeSource:
    """Reads the truth, and takes what was told out of the outbox."""

    def __init__(self, database: Database, seals: Seals) -> None:
        self._database, self._seals = database, seals

    async def waiting(self, after: int, limit: int) -> list[Waiting]:
        """What is still to be told, oldest first."""
        rows = select(outbox).where(outbox.c.notice > after).order_by(outbox.c.notice).limit(limit)
        async with self._database.reading() as connection:
            return [_waiting(row) for row in await connection.execute(rows)]

    async def told(self, notices: Collection[int]) -> None:
        """These are told. Whoever committed others meanwhile, under a lower number too, keeps theirs."""
        async with self._database.writing() as connection:
            await connection.execute(delete(outbox).where(outbox.c.notice.in_(sorted(notices))))

    async def model(self, model: str) -> Truth | None:
        """None: no such model. Raises RowAltered."""
        found = (await self._truths(models.c.model == model, 1)).get(model)
        if isinstance(found, RowAltered):
            raise found
        return found

    async def models(self, after: str, limit: int) -> Mapping[str, Truth | RowAltered]:
        """A page of all models by name; of a model with an altered row, what is wrong."""
        return await self._truths(models.c.model > after, limit)

    async def node(self, node_id: str) -> Truth | None:
        """None: the node is not revoked, or there is none. Raises RowAltered."""
        async with self._database.reading() as connection:
            row = await select_checked(connection, self._seals, nodes, nodes.c.node_id == node_id)
        return None if row is None or not row.revoked_at_ms else _node_truth(row)

    async def revoked_nodes(self) -> Mapping[str, Truth | RowAltered]:
        """By id. All nodes are read, for the same reason as all versions are."""
        async with self._database.reading() as connection:
            rows = (await connection.execute(select(nodes))).all()
        return await in_thread(self._node_truths, rows)

    async def limits(self) -> Truth | None:
        """None: there never was one. What they are is asked for with each key, and checked there."""
        async with self._database.reading() as connection:
            generation = (await connection.execute(select(limit_changes.c.generation))).scalar()
        return None if generation is None else Truth(limits_payload(LimitsNotice(generation)), generation)

    async def _truths(self, where: Any, limit: int) -> Mapping[str, Truth | RowAltered]:
        async with self._database.reading() as connection:
            # The model's own row first: if something changes in between, the notice says too low a generation, and the change
            # has its own row in the outbox.
            rows = (await connection.execute(select(models).where(where).order_by(models.c.model).limit(limit))).all()
            names, owners = [row.model for row in rows], sorted({row.tenant for row in rows})
            found_versions = await _under(connection, versions, versions.c.model, names)
            found_aliases = await _under(connection, aliases, aliases.c.model, names)
            found_signers = await _under(connection, signers, signers.c.tenant, owners)
        # Thousands of hashes: not while others wait for the loop.
        return await in_thread(self._model_truths, rows, found_versions, found_aliases, found_signers)

    def _model_truths(
        self, rows: Rows, found_versions: _Found, found_aliases: _Found, found_signers: _Found
    ) -> dict[str, Truth | RowAltered]:
        truths: dict[str, Truth | RowAltered] = {}
        for row in rows:
            try:
                notice = self._notice(row, found_versions[row.model], found_aliases[row.model], found_signers[row.tenant])
                truths[row.model] = Truth(model_payload(notice), notice.generation)
            except RowAltered as error:
                truths[row.model] = error
        return truths

    def _node_truths(self, rows: Rows) -> dict[str, Truth | RowAltered]:
        truths: dict[str, Truth | RowAltered] = {}
        for row in rows:
            try:
                if self._seals.check(nodes, row).revoked_at_ms:
                    truths[row.node_id] = _node_truth(row)
            except RowAltered as error:
                truths[row.node_id] = error
        return truths

    def _notice(self, row: Row[Any], its_versions: Rows, its_aliases: Rows, its_signers: Rows) -> ModelNotice:
        self._seals.check(models, row)
        for table, checked in ((versions, its_versions), (aliases, its_aliases), (signers, its_signers)):
            for each in checked:
                self._seals.check(table, each)
        withdrawn = [version for version in its_versions if version.withdrawn_at_ms]
        digests = {version.number: Digest(version.digest) for version in its_versions}
        return ModelNotice(
            ModelName(row.model),
            TenantId(row.tenant),
            frozenset(row.shared_with),
            tuple(_target(alias, digests) for alias in its_aliases),
            frozenset(Digest(version.digest) for version in withdrawn),
            frozenset(ModelVersion(str(version.number)) for version in withdrawn),
            frozenset(signer.signer_id for signer in its_signers if signer.revoked_at_ms),
            row.generation,
        )


_Found = Mapping[str, list[Row[Any]]]


async def _under(connection: AsyncConnection, table: Table, column: Any, names: Sequence[str]) -> _Found:
    """The table's rows by what this column says, for these names."""
    found: defaultdict[str, list[Row[Any]]] = defaultdict(list)
    for row in await connection.execute(select(table).where(column.in_(names))) if names else ():
        found[row._mapping[column]].append(row)
    return found


def _waiting(row: Row[Any]) -> Waiting:
    kind = _KINDS.get(row.kind)
    return Waiting(row.notice, None if kind is None else Subject(kind, row.subject))


def _node_truth(row: Row[Any]) -> Truth:
    payload = node_payload(NodeNotice(NodeId(row.node_id), row.revoked_at_ms))
    return Truth(payload, until_ms=row.certificate_expires_at_ms)


def _target(row: Row[Any], digests: Mapping[int, Digest]) -> AliasTarget:
    pending = None
    if row.pending_number:
        pending = PendingTarget(
            ModelVersion(str(row.pending_number)),
            digests.get(row.pending_number, Digest("")),
            row.pending_weight,
            row.pending_since_ms,
            row.pending_promotes,
        )
    version = ModelVersion(str(row.number)) if row.number else ModelVersion("")
    return AliasTarget(row.alias, version, digests.get(row.number, Digest("")), row.weight, row.generation, pending)
