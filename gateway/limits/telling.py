"""What callers are told of limits: the sentence of a refusal, and headers that say what is left.

Pure. The headers are OpenAI's names, of the allowance of each kind that has the smallest part left; what is left is as this
gateway knows it: what the leader last said, and what is in hand here.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.limits.holding import Holding
from gateway.limits.types import Limit, Scope
from placement.limits.types import Kind, Moment

Headers = tuple[tuple[str, str], ...]

_AMOUNTS = {
    Kind.REQUESTS: "ask {} times a second",
    Kind.TOKENS: "use {} tokens a minute",
    Kind.CONCURRENT: "have {} requests under way at once",
    Kind.REQUESTS_PER_DAY: "ask {} times a day",
    Kind.TOKENS_PER_DAY: "use {} tokens a day",
}
_HEADED = {
    Kind.REQUESTS: "requests",
    Kind.REQUESTS_PER_DAY: "requests",
    Kind.TOKENS: "tokens",
    Kind.TOKENS_PER_DAY: "tokens",
}


def sentence_of(holding: Holding, wait_s: float, *, unsure: bool = False) -> str:
    """Which limit it is, and when to come again. `unsure`: what others have used cannot be learnt now."""
    units = holding.terms.units
    amount = _AMOUNTS[holding.terms.kind].format(int(units) if units == int(units) else f"{units:g}")
    told = f"{_subject(holding.limit)} may {amount}{_models(holding.limit)}"
    if unsure:
        told += "; how much of that is left cannot be learnt now"
    return f"{told}; wait {duration(wait_s)}"


def headers_of(holdings: Iterable[Holding], moment: Moment) -> Headers:
    """Limit, remaining and reset, of requests and of tokens, where there are such limits."""
    tightest: dict[str, Holding] = {}
    for holding in holdings:
        unit = _HEADED.get(holding.terms.kind)
        if unit is not None and (unit not in tightest or _part_left(holding) < _part_left(tightest[unit])):
            tightest[unit] = holding
    told: list[tuple[str, str]] = []
    for unit, holding in tightest.items():
        whole = int(holding.terms.capacity)
        left = max(0, min(holding.left if holding.told else whole - max(holding.used, 0), whole))
        told += (
            (f"x-ratelimit-limit-{unit}", str(whole)),
            (f"x-ratelimit-remaining-{unit}", str(left)),
            (f"x-ratelimit-reset-{unit}", duration(_whole_in_s(holding, whole - left, moment))),
        )
    return tuple(told)


def duration(seconds: float) -> str:
    """As OpenAI writes it: 12ms, 1.2s, 6m0s, 3h5m0s."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"


def _part_left(holding: Holding) -> float:
    return (holding.left if holding.told else holding.terms.capacity) / max(holding.terms.capacity, 1.0)


def _whole_in_s(holding: Holding, missing: int, moment: Moment) -> float:
    """Until all of it is there again, if nobody uses any."""
    if missing <= 0:
        return 0.0
    per_s = holding.terms.per_s
    return missing / per_s if per_s else moment.left_of_day_s


def _subject(limit: Limit) -> str:
    if limit.key_id or limit.scope is Scope.EACH_KEY:
        return "this key"
    if limit.tenant:
        return f"tenant {limit.tenant!r}"
    return "this tenant" if limit.scope is Scope.EACH_TENANT else "all callers together"


def _models(limit: Limit) -> str:
    return f" of model {limit.model[:80]!r}" if limit.model else ", all models together"
