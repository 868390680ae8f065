"""Which allowances a key's requests are taken from: found once for each key, looked up for each request.

Pure. A request for a model falls under the limits of all models and under that model's own. A call that asks nothing of a model
counts as a request and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.admission import KeyFacts
from gateway.limits.holding import Holding
from gateway.limits.types import Limit
from placement.limits.types import Kind, Terms

_OF_ANY_CALL = (Kind.REQUESTS, Kind.REQUESTS_PER_DAY)


class Holdings(Protocol):
    """Where they are kept: gateway.limits.purse.Purse."""

    def holding(self, limit: Limit, terms: Terms, subject: str) -> Holding: ...


@dataclass(frozen=True, slots=True)
class Due:
    """What one request is taken from."""

    all: tuple[Holding, ...] = ()
    single: tuple[Holding, ...] = ()
    """One unit of each: requests and permits."""
    tokens: tuple[Holding, ...] = ()
    permits: tuple[Holding, ...] = ()
    """Those of `single` that come back."""


@dataclass(frozen=True, slots=True)
class Dues:
    """Of one key."""

    limits: tuple[Limit, ...]
    call: Due
    """For a call that asks nothing of a model."""
    general: Due
    """For a model that no limit names."""
    by_model: Mapping[str, Due]

    def of(self, model: str) -> Due:
        return self.by_model.get(model, self.general) if model else self.call


def dues_of(key: KeyFacts, holdings: Holdings) -> Dues:
    """Everything that the key falls under."""
    general: list[Holding] = []
    named: dict[str, list[Holding]] = {}
    for limit in key.limits:
        subject = limit.subject(key.tenant, key.key_id)
        if subject is not None:
            found = [holdings.holding(limit, terms, subject) for terms in limit.terms()]
            (named.setdefault(limit.model, []) if limit.model else general).extend(found)
    call = [each for each in general if each.terms.kind in _OF_ANY_CALL]
    by_model = {model: _due([*general, *own]) for model, own in named.items()}
    return Dues(key.limits, _due(call), _due(general), by_model)


def _due(holdings: list[Holding]) -> Due:
    return Due(
        tuple(holdings),
        tuple(each for each in holdings if not each.terms.kind.counts_tokens),
        tuple(each for each in holdings if each.terms.kind.counts_tokens),
        tuple(each for each in holdings if each.is_permit),
    )
