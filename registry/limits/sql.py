"""Limits in SQL. The one file with SQL of this room.

Each method is one statement or two inside the caller's transaction; rows are sealed when written and checked when read. Decides
nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, case, delete, exists, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.limits.policy import MAX_IN_ALL
from registry.limits.types import (
    EVERY_KEY,
    EVERYBODY,
    Amounts,
    Counted,
    Limit,
    LimitId,
    LimitScope,
    LimitSubject,
    Setter,
    WhenUnsure,
)
from registry.schema import keys, limit_changes, limits, models, tenants
from registry.seals import RowAltered, Seals, insert_sealed, select_checked, update_sealed
from registry.threads import in_thread
from runtime.database import DatabaseBusy
from runtime.ids import KeyId, ModelName, TenantId

_ONLY_ROW = 1


class LimitSql:
    def __init__(self, seals: Seals) -> None:
        self._seals = seals

    async def begin_change(self, connection: AsyncConnection, now_ms: int) -> int:
        """The generation that this transaction makes; no other changes limits until it ends. Raises DatabaseBusy.

        The time, or one more than before: so a database that was put back from a backup is ahead of what it told before.
        """
        known = limit_changes.c.generation
        grown = case((known >= now_ms, known + 1), else_=now_ms)
        stepped = update(limit_changes).where(limit_changes.c.one == _ONLY_ROW).values(generation=grown).returning(known)
        if (generation := (await connection.execute(stepped)).scalar()) is not None:
            return int(generation)
        try:
            await connection.execute(insert(limit_changes).values(one=_ONLY_ROW, generation=now_ms))
        except IntegrityError as error:
            raise DatabaseBusy("another registry set the first limit just now; try again", retry_after_s=0.1) from error
        return now_ms

    async def limit(self, connection: AsyncConnection, limit_id: str) -> Limit | None:
        row = await select_checked(connection, self._seals, limits, limits.c.limit_id == limit_id)
        return None if row is None else _limit(row)

    async def put(self, connection: AsyncConnection, limit: Limit) -> None:
        """In the place of the one with the same id."""
        values = _row(limit)
        if await update_sealed(connection, self._seals, limits, values, limits.c.limit_id == limit.limit_id) is None:
            await insert_sealed(connection, self._seals, limits, values)

    async def remove(self, connection: AsyncConnection, limit_id: LimitId) -> None:
        await connection.execute(delete(limits).where(limits.c.limit_id == limit_id))

    async def remove_useless(self, connection: AsyncConnection, now_ms: int) -> None:
        """Those on keys that have ended: nobody can ask anything by them again."""
        ended = (keys.c.revoked_at_ms != 0) | ((keys.c.expires_at_ms != 0) & (keys.c.expires_at_ms <= now_ms))
        of_ended = exists(select(keys.c.key_id).where(keys.c.key_id == limits.c.key_id, ended))
        await connection.execute(delete(limits).where(limits.c.key_id != EVERY_KEY, of_ended))

    async def counted(self, connection: AsyncConnection, subject: LimitSubject, besides: LimitId) -> Counted:
        """Those of the same hand: operators' or owners'."""
        of_tenant = limits.c.tenant == subject.tenant
        side_by_side = and_(of_tenant, limits.c.key_id == subject.key_id)
        counts = select(func.count(), _number_of(of_tenant), _number_of(side_by_side)).select_from(limits)
        mine = counts.where(limits.c.set_by == subject.set_by.value, limits.c.limit_id != besides)
        return Counted(*(int(number or 0) for number in (await connection.execute(mine)).one()))

    async def limits(self, connection: AsyncConnection, tenant: TenantId | None, *, mesh_wide: bool) -> tuple[Limit, ...]:
        """Of everybody and all tenants, or of one; `mesh_wide`: with those on everybody. By whom they are for."""
        wanted = select(limits).order_by(limits.c.tenant, limits.c.key_id, limits.c.model, limits.c.limit_id)
        if tenant is not None:
            wanted = wanted.where(limits.c.tenant.in_((EVERYBODY, tenant) if mesh_wide else (tenant,)))
        rows = (await connection.execute(wanted.limit(2 * MAX_IN_ALL))).all()
        return await in_thread(self._all, rows)  # thousands of hashes: not while others wait for the loop

    async def over_key(self, connection: AsyncConnection, tenant: TenantId, key_id: KeyId) -> tuple[Limit, ...]:
        """All that this key's requests may fall under."""
        may_match = (limits.c.tenant.in_((EVERYBODY, tenant)), limits.c.key_id.in_((EVERY_KEY, key_id)))
        return self._all(await connection.execute(select(limits).where(*may_match).order_by(limits.c.limit_id)))

    async def on_key(self, connection: AsyncConnection, tenant: TenantId, key_id: KeyId) -> tuple[Limit, ...]:
        """Those that name this key."""
        naming = (limits.c.tenant == tenant, limits.c.key_id == key_id)
        return self._all(await connection.execute(select(limits).where(*naming)))

    async def has_tenant(self, connection: AsyncConnection, tenant: TenantId) -> bool:
        return await select_checked(connection, self._seals, tenants, tenants.c.tenant == tenant) is not None

    async def key(self, connection: AsyncConnection, key_id: KeyId) -> tuple[TenantId, int, int] | None:
        """Whose key it is, and when it was revoked and expires."""
        row = await select_checked(connection, self._seals, keys, keys.c.key_id == key_id)
        return None if row is None else (TenantId(row.tenant), row.revoked_at_ms, row.expires_at_ms)

    async def model_owners(
        self, connection: AsyncConnection, names: Collection[ModelName]
    ) -> dict[ModelName, tuple[TenantId, frozenset[str]]]:
        """Of those that exist: whose they are, and with whom they are shared.

        Of an altered row nobody can say whose it is, nor name it to anybody: it is left out, as if there were no such model.
        """
        rows = await connection.execute(select(models).where(models.c.model.in_(sorted(names)))) if names else ()
        owners: dict[ModelName, tuple[TenantId, frozenset[str]]] = {}
        for row in rows:
            with suppress(RowAltered):
                self._seals.check(models, row)
                owners[ModelName(row.model)] = (TenantId(row.tenant), frozenset(row.shared_with))
        return owners

    def _all(self, rows: Any) -> tuple[Limit, ...]:
        return tuple(_limit(self._seals.check(limits, row)) for row in rows)


def _number_of(such: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((such, 1), else_=0))


def _row(limit: Limit) -> dict[str, Any]:
    subject, amounts = limit.subject, limit.amounts
    return {
        "limit_id": limit.limit_id,
        "tenant": subject.tenant,
        "key_id": subject.key_id,
        "model": subject.model,
        "scope": subject.scope.value,
        "set_by": subject.set_by.value,
        "requests_per_s": amounts.requests_per_s,
        "burst": amounts.burst,
        "tokens_per_min": amounts.tokens_per_min,
        "concurrent_requests": amounts.concurrent_requests,
        "requests_per_day": amounts.requests_per_day,
        "tokens_per_day": amounts.tokens_per_day,
        "when_unsure": limit.when_unsure.value,
        "generation": limit.generation,
    }


def _limit(row: Row[Any]) -> Limit:
    subject = LimitSubject(
        TenantId(row.tenant), KeyId(row.key_id), ModelName(row.model), LimitScope(row.scope), Setter(row.set_by)
    )
    amounts = Amounts(
        row.requests_per_s,
        row.burst,
        row.tokens_per_min,
        row.concurrent_requests,
        row.requests_per_day,
        row.tokens_per_day,
    )
    return Limit(LimitId(row.limit_id), subject, amounts, WhenUnsure(row.when_unsure), row.generation)
