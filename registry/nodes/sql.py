"""Join tokens and nodes in the database. The one file of this room with SQL.

Each change and what the trail and the mesh are told of it are one transaction. What is decided within it is `policy.py`'s,
handed in as a function of the rows as they are then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.audit.trail import AuditTrail
from registry.audit.types import AuditNote
from registry.nodes.policy import TOKEN_KEPT_MS, revoked
from registry.nodes.types import JoinToken, JoinTokensTooMany, Node
from registry.notices.outbox import NoticeKind, tell
from registry.schema import join_tokens, nodes, tenants
from registry.seals import Seals, insert_sealed, select_checked
from runtime.database import Database
from runtime.errors import NotFound, PenstockError
from runtime.identity import Role
from runtime.ids import NodeId, TenantId

P = ParamSpec("P")
T = TypeVar("T")
MAX_OPEN_TOKENS = 1000
MAX_LISTED = 10_000


def _again_if_raced(method: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Of two who write the first row of one node at the same time, the second decides anew, with the row that is there then."""

    @wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(*args, **kwargs)
        except IntegrityError:
            return await method(*args, **kwargs)

    return call


class SqlNodes:
    def __init__(self, database: Database, seals: Seals, trail: AuditTrail) -> None:
        self._database, self._seals, self._trail = database, seals, trail

    async def add_token(self, token: JoinToken, note: AuditNote) -> None:
        """Raises NotFound for a tenant that there is not, JoinTokensTooMany."""
        async with self._database.writing() as connection:
            await self._check_tenants(connection, token.tenants)
            await connection.execute(
                delete(join_tokens).where(join_tokens.c.expires_at_ms < token.created_at_ms - TOKEN_KEPT_MS)
            )
            kept = (await connection.execute(select(func.count()).select_from(join_tokens))).scalar_one()
            if kept >= MAX_OPEN_TOKENS:
                raise JoinTokensTooMany(f"{kept} join tokens are kept already; those expired are dropped after 30 days")
            await insert_sealed(connection, self._seals, join_tokens, _token_row(token))
            await self._trail.write(connection, note)

    async def token(self, token_id: str) -> JoinToken | None:
        async with self._database.reading() as connection:
            row = await select_checked(connection, self._seals, join_tokens, join_tokens.c.token_id == token_id)
        return None if row is None else _token(row)

    async def tokens(self) -> list[JoinToken]:
        """Newest first."""
        newest = select(join_tokens).order_by(join_tokens.c.created_at_ms.desc(), join_tokens.c.token_id).limit(MAX_LISTED)
        async with self._database.reading() as connection:
            rows = (await connection.execute(newest)).all()
        return [_token(self._seals.check(join_tokens, row)) for row in rows]

    async def change_token(self, token_id: str, change: Callable[[JoinToken], JoinToken], note: AuditNote) -> JoinToken:
        """Raises NotFound."""
        async with self._database.writing() as connection:
            token = await self._token_for_update(connection, token_id)
            if token is None:
                raise NotFound(f"there is no join token {token_id}; `penstock nodes list --tokens` shows them")
            changed = change(token)
            if changed != token:
                await self._put_token(connection, changed)
                await self._trail.write(connection, note)
        return changed

    @_again_if_raced
    async def admit(
        self,
        token_id: str,
        node_id: NodeId,
        decide: Callable[[JoinToken | None, Node | None], tuple[JoinToken, Node] | PenstockError],
        note: AuditNote,
    ) -> Node:
        """Let a node in: its token is used and its row written, both or neither. Raises what `decide` answered."""
        async with self._database.writing() as connection:
            token = await self._token_for_update(connection, token_id)
            known = await self._node_for_update(connection, node_id)
            decided = decide(token, known)
            if isinstance(decided, PenstockError):
                raise decided
            await self._put_token(connection, decided[0])
            await self._put_node(connection, decided[1], known)
            await self._trail.write(connection, note)
        return decided[1]

    @_again_if_raced
    async def change_node(
        self, node_id: NodeId, decide: Callable[[Node | None], Node | PenstockError], note: AuditNote
    ) -> Node:
        """Raises what `decide` answered."""
        async with self._database.writing() as connection:
            known = await self._node_for_update(connection, node_id)
            decided = decide(known)
            if isinstance(decided, PenstockError):
                raise decided
            await self._put_node(connection, decided, known)
            await self._trail.write(connection, note)
        return decided

    async def see(self, node: Node) -> None:
        """Write down a node that was certified elsewhere, if it is not known yet."""
        try:
            async with self._database.writing() as connection:
                if await self._node_for_update(connection, node.node_id) is None:
                    await self._put_node(connection, node, None)
        except IntegrityError:
            return  # somebody else just did

    @_again_if_raced
    async def revoke(
        self,
        node_id: NodeId,
        caller: NodeId | None,
        refusal: Callable[[Node | None], PenstockError | None],
        because: str,
        now_ms: int,
        note: AuditNote,
    ) -> Node:
        """Put a node out, and tell the mesh. `refusal` is asked with the caller's row, which is locked with the node's.

        Two operators that revoke each other at once: the second is found to be out already. That needs both rows to be there
        (`see`). Raises what `refusal` answered.
        """
        async with self._database.writing() as connection:
            known: dict[str, Node | None] = {}
            for locked in sorted({node_id, caller or node_id}):
                known[locked] = await self._node_for_update(connection, NodeId(locked))
            if (refused := refusal(known[caller] if caller else None)) is not None:
                raise refused
            node = known[node_id]
            if node is not None and node.revoked_at_ms:
                return node
            gone = revoked(node, node_id, because, now_ms)
            await self._put_node(connection, gone, node)
            await tell(connection, NoticeKind.NODE, node_id)
            await self._trail.write(connection, note)
        return gone

    async def node(self, node_id: NodeId) -> Node | None:
        async with self._database.reading() as connection:
            row = await select_checked(connection, self._seals, nodes, nodes.c.node_id == node_id)
        return None if row is None else _node(row)

    async def nodes(self) -> list[Node]:
        """By role and id."""
        async with self._database.reading() as connection:
            rows = (await connection.execute(select(nodes).order_by(nodes.c.role, nodes.c.node_id).limit(MAX_LISTED))).all()
        return [_node(self._seals.check(nodes, row)) for row in rows]

    async def revoked_ids(self) -> list[NodeId]:
        """Whoever is out, whatever the seal says: a row that somebody altered is not to bring anybody back."""
        async with self._database.reading() as connection:
            rows = (await connection.execute(select(nodes))).all()
        return [NodeId(row.node_id) for row in rows if row.revoked_at_ms]

    async def _check_tenants(self, connection: AsyncConnection, names: Iterable[TenantId]) -> None:
        for name in sorted(names):
            if await select_checked(connection, self._seals, tenants, tenants.c.tenant == name) is None:
                raise NotFound(f"there is no tenant {name}; make it first, or name another")

    async def _token_for_update(self, connection: AsyncConnection, token_id: str) -> JoinToken | None:
        row = (
            await connection.execute(select(join_tokens).where(join_tokens.c.token_id == token_id).with_for_update())
        ).first()
        return None if row is None else _token(self._seals.check(join_tokens, row))

    async def _node_for_update(self, connection: AsyncConnection, node_id: NodeId) -> Node | None:
        row = (await connection.execute(select(nodes).where(nodes.c.node_id == node_id).with_for_update())).first()
        return None if row is None else _node(self._seals.check(nodes, row))

    async def _put_token(self, connection: AsyncConnection, token: JoinToken) -> None:
        row = self._seals.sealed(join_tokens, _token_row(token))
        await connection.execute(update(join_tokens).where(join_tokens.c.token_id == token.token_id).values(row))

    async def _put_node(self, connection: AsyncConnection, node: Node, known: Node | None) -> None:
        row = self._seals.sealed(nodes, _node_row(node))
        if known is None:
            await connection.execute(insert(nodes).values(row))
        else:
            await connection.execute(update(nodes).where(nodes.c.node_id == node.node_id).values(row))


def _token_row(token: JoinToken) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "secret_sha256": token.secret_sha256,
        "role": token.role.value,
        "tenants": sorted(token.tenants),
        "created_at_ms": token.created_at_ms,
        "expires_at_ms": token.expires_at_ms,
        "used_at_ms": token.used_at_ms,
        "node_id": token.node_id,
        "revoked_at_ms": token.revoked_at_ms,
    }


def _token(row: Row[Any]) -> JoinToken:
    return JoinToken(
        row.token_id,
        bytes(row.secret_sha256),
        Role(row.role),
        frozenset(TenantId(name) for name in row.tenants),
        row.created_at_ms,
        row.expires_at_ms,
        row.used_at_ms,
        row.node_id,
        row.revoked_at_ms,
    )


def _node_row(node: Node) -> dict[str, Any]:
    return {
        "node_id": node.node_id,
        "role": "" if node.role is None else node.role.value,
        "tenants": sorted(node.tenants),
        "hosts": list(node.hosts),
        "ed25519_public_key": node.ed25519_public_key,
        "hardware_fingerprint": node.hardware_fingerprint,
        "enrolled_at_ms": node.enrolled_at_ms,
        "certificate_expires_at_ms": node.certificate_expires_at_ms,
        "renewed_at_ms": node.renewed_at_ms,
        "revoked_at_ms": node.revoked_at_ms,
        "revoked_because": node.revoked_because,
    }


def _node(row: Row[Any]) -> Node:
    return Node(
        NodeId(row.node_id),
        Role(row.role) if row.role else None,
        frozenset(TenantId(name) for name in row.tenants),
        tuple(row.hosts),
        bytes(row.ed25519_public_key),
        row.hardware_fingerprint,
        row.enrolled_at_ms,
        row.certificate_expires_at_ms,
        row.renewed_at_ms,
        row.revoked_at_ms,
        row.revoked_because,
    )
