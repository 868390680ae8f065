"""What `penstock limits …` does, against the registry."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.registry.v1 import limits_pb2, limits_pb2_grpc
from rich.text import Text

from cli.profile import Profile
from cli.tables import console, table

_EACH = {
    limits_pb2.LIMIT_SCOPE_EACH_TENANT: "each tenant",
    limits_pb2.LIMIT_SCOPE_EACH_KEY: "each key",
}
_UNITS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


@dataclass(frozen=True, slots=True)
class NewLimit:
    """Whom it is for, empty: all; and how much, 0: not limited."""

    tenant: str = ""
    key_id: str = ""
    model: str = ""
    each_tenant: bool = False
    each_key: bool = False
    requests_per_s: float = 0.0
    burst: int = 0
    tokens_per_min: int = 0
    concurrent: int = 0
    requests_per_day: int = 0
    tokens_per_day: int = 0
    refuse: bool = False
    """Where a gateway cannot learn what others have used."""


async def set_limit(profile: Profile, wanted: NewLimit) -> None:
    """Create it, or replace the one for the same."""
    async with profile.registry_channel() as registry:
        stub = limits_pb2_grpc.LimitServiceStub(registry)
        limit = (await stub.SetLimit(limits_pb2.SetLimitRequest(limit=_message(wanted)))).limit
    _say(f"limit {limit.limit_id}: {subject_in_words(limit)} may have {amounts_in_words(limit)}")


async def show_limits(profile: Profile, tenant: str) -> None:
    """A row per limit."""
    async with profile.registry_channel() as registry:
        stub = limits_pb2_grpc.LimitServiceStub(registry)
        limits = (await stub.ListLimits(limits_pb2.ListLimitsRequest(tenant=tenant))).limits
    rows = table("limit", "whom", "model", "how much", "when unsure", "set by")
    for limit in limits:
        unsure = "refuse" if limit.when_unsure == limits_pb2.WHEN_UNSURE_REFUSE else "share"
        who = "operator" if limit.by_operator else "owner"
        model = limit.model or "all together"
        cells = (limit.limit_id, whom_in_words(limit), model, amounts_in_words(limit), unsure, who)
        rows.add_row(*map(Text, cells))
    console().print(rows if limits else "there are no limits")


async def remove_limit(profile: Profile, limit_id: str) -> None:
    async with profile.registry_channel() as registry:
        stub = limits_pb2_grpc.LimitServiceStub(registry)
        await stub.DeleteLimit(limits_pb2.DeleteLimitRequest(limit_id=limit_id))
    _say(f"removed limit {limit_id}")


def subject_in_words(limit: limits_pb2.Limit) -> str:
    """Whom it is for and for what, such as "each key of tenant acme, of model sums,"."""
    return f"{whom_in_words(limit)}, of model {limit.model}," if limit.model else whom_in_words(limit)


def whom_in_words(limit: limits_pb2.Limit) -> str:
    """Such as "each key of tenant acme"."""
    if limit.key_id:
        return f"key {limit.key_id} of tenant {limit.tenant}"
    each = _EACH.get(limit.scope, "")
    if limit.tenant:
        return f"{each} of tenant {limit.tenant}" if each else f"tenant {limit.tenant}"
    return each or "everybody together"


def amounts_in_words(limit: limits_pb2.Limit) -> str:
    """Such as "50 requests/s (100 at once), 5M tokens/day"."""
    parts: list[str] = []
    if limit.requests_per_s:
        at_once = f" ({short(limit.burst)} at once)" if limit.burst else ""
        parts.append(f"{short(limit.requests_per_s)} requests/s{at_once}")
    named = {
        "tokens/min": limit.tokens_per_min,
        "running": limit.concurrent_requests,
        "requests/day": limit.requests_per_day,
        "tokens/day": limit.tokens_per_day,
    }
    return ", ".join([*parts, *(f"{short(amount)} {unit}" for unit, amount in named.items() if amount)])


def short(amount: float) -> str:
    """A number as people say it, and never another number: 5M and 1.5k, but 1,234,567."""
    for size, unit in _UNITS:
        if amount >= size and (amount * 10) % size == 0:
            return f"{amount / size:g}{unit}"
    return f"{amount:,g}" if amount % 1 else f"{int(amount):,}"


def _message(wanted: NewLimit) -> limits_pb2.Limit:
    scope = limits_pb2.LIMIT_SCOPE_EACH_TENANT if wanted.each_tenant else limits_pb2.LIMIT_SCOPE_UNSPECIFIED
    return limits_pb2.Limit(
        tenant=wanted.tenant,
        key_id=wanted.key_id,
        model=wanted.model,
        scope=limits_pb2.LIMIT_SCOPE_EACH_KEY if wanted.each_key else scope,
        requests_per_s=wanted.requests_per_s,
        burst=wanted.burst,
        tokens_per_min=wanted.tokens_per_min,
        concurrent_requests=wanted.concurrent,
        requests_per_day=wanted.requests_per_day,
        tokens_per_day=wanted.tokens_per_day,
        when_unsure=limits_pb2.WHEN_UNSURE_REFUSE if wanted.refuse else limits_pb2.WHEN_UNSURE_UNSPECIFIED,
    )


def _say(sentence: str) -> None:
    console().print(Text(sentence), soft_wrap=True)
