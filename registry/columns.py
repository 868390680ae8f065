"""How columns of the registry's tables are declared, so that each kind is the same everywhere."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, String

UNSEALED = {"unsealed": True}
"""Of columns that change often and grant nothing."""

Serial = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows only in an INTEGER PRIMARY KEY."""


def moment(name: str, *, unsealed: bool = False) -> Column[int]:
    """Milliseconds since 1970; 0 = never."""
    return Column(name, BigInteger, nullable=False, default=0, info=UNSEALED if unsealed else {})


def seal() -> Column[bytes]:
    return Column("seal", LargeBinary, nullable=False)


def words(name: str, length: int, *arguments: Any, **options: Any) -> Column[str]:
    return Column(name, String(length), *arguments, nullable=False, **options)
