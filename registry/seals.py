"""Seals on rows: a keyed hash over what a row says, so that a database that was edited behind the registry's back is noticed.

A seal covers every column of its table but those marked UNSEALED, under the table's name. The key comes from the master keys
and is not in the database; the seal begins with that master key's id. Decides whether a row is as the registry wrote it; a row
that was deleted, or put back from a backup, it cannot tell.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Float, Row, Table, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.master_keys import ID_BYTES, KeySource
from runtime.errors import Code, PenstockError

_SEAL_BYTES = 32


class RowAltered(PenstockError, code=Code.DATA_LOSS, reason="ROW_ALTERED"):
    """A row of the database is not as the registry wrote it."""


class Seals:
    """Makes and checks seals."""

    def __init__(self, keys: KeySource) -> None:
        self._keys = keys
        self._derived: dict[bytes, bytes] = {}
        """Sealing keys by master key; as many as there ever were in the file."""

    @property
    def newest_prefix(self) -> bytes:
        """What a seal that is made now begins with."""
        return seal_prefix(self._keys.latest().newest)

    def sealed(self, table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
        """The row with its seal; every column that has no default has to be there."""
        row = {column.name: _value(values, column) for column in table.columns if _covered(column)}
        rest = {name: value for name, value in values.items() if name not in row and name != "seal"}
        return {**row, **rest, "seal": self._seal(table, row)}

    def check(self, table: Table, row: Row[Any]) -> Row[Any]:
        """The row, which has to hold every column. Raises RowAltered."""
        self._checked(table, row)
        return row

    def sealed_anew(self, table: Table, row: Row[Any]) -> bytes:
        """The row's seal under the newest master key. Raises RowAltered: nothing is sealed that was not before."""
        return self._seal(table, self._checked(table, row))

    def _checked(self, table: Table, row: Row[Any]) -> dict[str, Any]:
        values = row._mapping
        covered = {column.name: values[column.name] for column in table.columns if _covered(column)}
        seal = bytes(values["seal"])
        key_id = seal[:ID_BYTES].rstrip(b"\0").decode(errors="replace")
        master = self._keys.knowing(key_id).keys.get(key_id)
        if master is None:
            raise RowAltered(
                f"{_named(table, row)} is not as the registry wrote it: it is sealed under master key {key_id!r}, which is not"
                " among this registry's; give it the file that holds that key, or restore the row"
            )
        if not hmac.compare_digest(seal[ID_BYTES:], self._mac(master, table, covered)):
            raise RowAltered(f"{_named(table, row)} is not as the registry wrote it; restore it from a backup, or make it anew")
        return covered

    def _seal(self, table: Table, row: Mapping[str, Any]) -> bytes:
        keys = self._keys.latest()
        return seal_prefix(keys.newest) + self._mac(keys.current, table, row)

    def _mac(self, master: bytes, table: Table, row: Mapping[str, Any]) -> bytes:
        derived = self._derived.get(master)
        if derived is None:
            derived = self._derived[master] = hashlib.blake2b(b"penstock-row-seal-v1", key=master).digest()[:32]
        canonical = json.dumps(
            [table.name, {name: _plain(row[name]) for name in sorted(row)}], sort_keys=True, separators=(",", ":")
        )
        return hashlib.blake2b(canonical.encode(), key=derived, digest_size=_SEAL_BYTES).digest()


def seal_prefix(key_id: str) -> bytes:
    return key_id.encode().ljust(ID_BYTES, b"\0")


async def insert_sealed(connection: AsyncConnection, seals: Seals, table: Table, values: Mapping[str, Any]) -> None:
    await connection.execute(insert(table).values(seals.sealed(table, values)))


async def select_checked(
    connection: AsyncConnection, seals: Seals, table: Table, *where: ColumnElement[bool]
) -> Row[Any] | None:
    """The one row there is, checked. Raises RowAltered."""
    row = (await connection.execute(select(table).where(*where))).first()
    return None if row is None else seals.check(table, row)


async def update_sealed(
    connection: AsyncConnection, seals: Seals, table: Table, changes: Mapping[str, Any], *where: ColumnElement[bool]
) -> Row[Any] | None:
    """Change the one row there is, in a writing transaction; as it is then, or None: there is none. Raises RowAltered."""
    row = (await connection.execute(select(table).where(*where).with_for_update())).first()
    if row is None:
        return None
    values = {**seals.check(table, row)._mapping, **changes}
    await connection.execute(update(table).where(*where).values(seals.sealed(table, values)))
    return (await connection.execute(select(table).where(*where))).first()


def _named(table: Table, row: Row[Any]) -> str:
    names = "/".join(_shown(row._mapping[column.name])[:64] for column in table.primary_key.columns)
    return f"row {names} of {table.name}"


def _shown(value: Any) -> str:
    return bytes(value).hex() if isinstance(value, bytes | memoryview) else str(value)


def _covered(column: Any) -> bool:
    return column.name != "seal" and not column.info.get("unsealed", False)


def _value(values: Mapping[str, Any], column: Any) -> Any:
    if column.name in values:
        value = values[column.name]
        return float(value) if isinstance(column.type, Float) else value  # 1 is read back as 1.0
    if column.default is None:
        raise KeyError(f"column {column.name} of {column.table.name} has no value")
    return column.default.arg


def _plain(value: Any) -> Any:
    return bytes(value).hex() if isinstance(value, bytes | memoryview) else value
