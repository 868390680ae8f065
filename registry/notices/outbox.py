"""What the mesh is to be told, written in the transaction that changes it: told at least once, whichever replica dies when."""

from __future__ import annotations

import enum

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.schema import outbox


class NoticeKind(enum.Enum):
    MODEL = "model"
    """The subject is a model's name: something about it, its versions, aliases or signers is another."""
    KEY = "key"
    """The subject is a key's id."""
    NODE = "node"
    """The subject is a node's id: it was revoked."""
    LIMITS = "limit"
    """No subject: there is one notice for all limits."""


async def tell(connection: AsyncConnection, kind: NoticeKind, subject: str) -> None:
    """To be told once the transaction is committed."""
    await connection.execute(insert(outbox).values(kind=kind.value, subject=subject, at_ms=0))
