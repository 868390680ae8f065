"""Who asks for which tenant's. Operators may leave the tenant out and get anybody's; gateways speak for one."""

from __future__ import annotations

from typing import Any

import grpc.aio

from runtime.errors import InvalidArgument
from runtime.identity import Peer, Role
from runtime.ids import TenantId
from runtime.serving import inner_peer

Context = grpc.aio.ServicerContext[Any, Any]


def plain(name: str) -> str:
    """A name as any database takes it: PostgreSQL stores no NUL. What cannot be printed names nothing, before and after."""
    return name if name.isprintable() else "?"


def caller(context: Context) -> Peer:
    """Raises RoleRequired."""
    return inner_peer(context, Role.GATEWAY, Role.OPERATOR)


def tenant_asked(context: Context, tenant: str) -> TenantId | None:
    """None: any. Raises RoleRequired, InvalidArgument."""
    peer = caller(context)
    if tenant:
        return TenantId(plain(tenant))
    if peer.role is not Role.OPERATOR:
        raise InvalidArgument("the request names no tenant; only operators may leave it out")
    return None
