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
    models: tuple[str, ...]
    requests_per_s: float
    burst: int
    lifetime_s: int


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
                rate_limit=accounts_pb2.RateLimit(requests_per_s=wanted.requests_per_s, burst=wanted.burst),
                lifetime_s=wanted.lifetime_s,
            )
        )
    Console().print(Text(answer.secret, style="bold"), soft_wrap=True)
    Console(stderr=True).print(f"key {answer.key.key_id}; this is the only time it is shown", style="dim")


async def show_keys(profile: Profile, tenant: str) -> None:
    """A row per key."""
    async with profile.registry_channel() as registry:
        stub = accounts_pb2_grpc.AccountServiceStub(registry)
        keys = (await stub.ListKeys(accounts_pb2.ListKeysRequest(tenant=tenant))).keys
    rows = table("key", "tenant", "name", "role", "models", "requests/s", "created", "state")
    for key in keys:
        rows.add_row(
            key.key_id,
            key.tenant,
            key.name,
            key.role,
            ", ".join(key.allowed_models) or "all",
            f"{key.rate_limit.requests_per_s:g}" if key.rate_limit.requests_per_s else "no limit",
            _day(key.created_at_ms),
            _state(key),
        )
    console().print(rows if keys else "there are no keys")


async def revoke_key(profile: Profile, key_id: str) -> None:
    """End a key."""
    async with profile.registry_channel() as registry:
        stub = accounts_pb2_grpc.AccountServiceStub(registry)
        key = (await stub.RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=key_id))).key
    Console().print(f"revoked {key.key_id} ({key.name}) of tenant {key.tenant}")


def _state(key: accounts_pb2.ApiKey) -> str:
    if key.revoked_at_ms:
        return f"revoked {_day(key.revoked_at_ms)}"
    if not key.expires_at_ms:
        return "live"
    expired = key.expires_at_ms <= datetime.now(UTC).timestamp() * 1000
    return f"{'expired' if expired else 'until'} {_day(key.expires_at_ms)}"


def _day(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}"
