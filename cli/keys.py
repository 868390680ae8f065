"""What `penstock keys …` does, against the registry's accounts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import grpc.aio
from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc
from rich.console import Console
from rich.text import Text

from cli.profile import Profile
from cli.tables import console, table
from runtime.errors import AlreadyExists
from runtime.status import error_of


@dataclass(frozen=True, slots=True)
class NewKey:
    name: str
    tenant: str
    role: str
    models: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    requests_per_s: float = 0.0
    burst: int = 0
    lifetime_s: int = 0


async def create_key(profile: Profile, wanted: NewKey) -> None:
    """Make the tenant if need be, and the key; show its secret once."""
    async with profile.registry_channel() as registry:
        stub = accounts_pb2_grpc.AccountServiceStub(registry)
        try:
            await stub.CreateTenant(accounts_pb2.CreateTenantRequest(tenant=wanted.tenant))
        except grpc.aio.AioRpcError as failure:
            if not isinstance(error_of(failure), AlreadyExists):
                raise
        answer = await stub.CreateKey(
            accounts_pb2.CreateKeyRequest(
                tenant=wanted.tenant,
                name=wanted.name,
                role=wanted.role,
                allowed_models=wanted.models,
                scopes=wanted.scopes,
                rate_limit=accounts_pb2.RateLimit(requests_per_s=wanted.requests_per_s, burst=wanted.burst),
                lifetime_s=wanted.lifetime_s,
            )
        )
    _show_once(answer.secret, f"key {answer.key.key_id}; this is the only time it is shown")


async def show_keys(profile: Profile, tenant: str) -> None:
    """A row per key."""
    async with profile.registry_channel() as registry:
        stub = accounts_pb2_grpc.AccountServiceStub(registry)
        keys = (await stub.ListKeys(accounts_pb2.ListKeysRequest(tenant=tenant))).keys
    rows = table("key", "tenant", "name", "role", "scopes", "models", "requests/s", "created", "last used", "state")
    now_ms = datetime.now(UTC).timestamp() * 1000
    for key in keys:
        limit = f"{key.rate_limit.requests_per_s:g}" if key.rate_limit.requests_per_s else "no limit"
        models = ", ".join(key.allowed_models) or "all"
        cells = (key.key_id, key.tenant, key.name, key.role, ", ".join(key.scopes), models, limit)
        times = (shown_time(key.created_at_ms), shown_time(key.last_used_at_ms), key_state(key, now_ms))
        rows.add_row(*map(Text, (*cells, *times)))  # as they are: a name is no markup
    console().print(rows if keys else "there are no keys")


async def rotate_key(profile: Profile, key_id: str, overlap_s: int) -> None:
    """Another key takes over; its secret is shown once."""
    async with profile.registry_channel() as registry:
        stub = accounts_pb2_grpc.AccountServiceStub(registry)
        answer = await stub.RotateKey(accounts_pb2.RotateKeyRequest(key_id=key_id, overlap_s=overlap_s))
    ends = (
        f"key {answer.old_key.key_id} works until {shown_time(answer.old_key.expires_at_ms)} UTC"
        if overlap_s
        else "the old key ended"
    )
    _show_once(answer.secret, f"key {answer.key.key_id}; this is the only time it is shown; {ends}")


async def revoke_key(profile: Profile, key_id: str) -> None:
    """End a key."""
    async with profile.registry_channel() as registry:
        stub = accounts_pb2_grpc.AccountServiceStub(registry)
        key = (await stub.RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=key_id))).key
    Console().print(Text(f"revoked {key.key_id} ({key.name}) of tenant {key.tenant}"), soft_wrap=True)


def key_state(key: accounts_pb2.ApiKey, now_ms: float) -> str:
    """Whether it works, until when, and what took over."""
    if key.revoked_at_ms:
        return f"revoked {shown_time(key.revoked_at_ms)}"
    if not key.expires_at_ms:
        return "live"
    state = f"{'expired' if key.expires_at_ms <= now_ms else 'until'} {shown_time(key.expires_at_ms)}"
    return f"{state}, rotated to {key.rotated_to}" if key.rotated_to else state


def shown_time(at_ms: int) -> str:
    """UTC; 0 is never."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}" if at_ms else "never"


def _show_once(secret: str, remark: str) -> None:
    Console().print(Text(secret, style="bold"), soft_wrap=True)
    Console(stderr=True).print(Text(remark, style="dim"), soft_wrap=True)
