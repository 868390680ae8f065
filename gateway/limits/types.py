"""The nouns of limits as a gateway knows them: a limit, whom it is for, what it does while nobody can say what is left."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from placement.limits.types import Kind, Terms


class Scope(enum.Enum):
    """Who shares one allowance of all that a limit matches."""

    TOGETHER = "together"
    EACH_TENANT = "each_tenant"
    EACH_KEY = "each_key"


class WhenUnsure(enum.Enum):
    """What to do while it cannot be learnt how much others have used."""

    OPEN = "open"
    """Let in as much as if the gateways that were known last shared evenly."""
    REFUSE = "refuse"
    """Let nothing in beyond what was given."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What all requests of one subject together may use; 0 = not limited, for each amount."""

    limit_id: str
    tenant: str = ""
    key_id: str = ""
    model: str = ""
    """Empty, as with tenant and key: all."""
    scope: Scope = Scope.TOGETHER
    requests_per_s: float = 0.0
    burst: int = 0
    tokens_per_min: int = 0
    concurrent_requests: int = 0
    requests_per_day: int = 0
    tokens_per_day: int = 0
    when_unsure: WhenUnsure = WhenUnsure.OPEN
    generation: int = 0

    def terms(self) -> tuple[Terms, ...]:
        """What it allows, by kind."""
        amounts = (
            (Kind.REQUESTS, self.requests_per_s),
            (Kind.CONCURRENT, self.concurrent_requests),
            (Kind.TOKENS, self.tokens_per_min),
            (Kind.REQUESTS_PER_DAY, self.requests_per_day),
            (Kind.TOKENS_PER_DAY, self.tokens_per_day),
        )
        return tuple(
            Terms(kind, units, self.burst if kind is Kind.REQUESTS else 0, self.generation)
            for kind, units in amounts
            if units > 0
        )

    def subject(self, tenant: str, key_id: str) -> str | None:
        """Who of those that share an allowance this caller is one of; None: the limit is not for it."""
        if (self.tenant and self.tenant != tenant) or (self.key_id and self.key_id != key_id):
            return None
        return {Scope.TOGETHER: "", Scope.EACH_TENANT: tenant, Scope.EACH_KEY: key_id}[self.scope]
