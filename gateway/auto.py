"""Which model is meant by "auto": one that can do what is asked and can answer now, at the least cost.

Decides by what the copies in the fleet say of themselves, among the models that a key may have and that the routing policy
lists. Where a model was published under this name, that one is meant and nothing is chosen. Never chooses a worker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.admission import KeyFacts
from gateway.refusals import ModelCold
from runtime.errors import Code, PenstockError

AUTO = "auto"
_SHOWN = 8
"""Models that a refusal tells of."""

_COLD_RETRY_S = 1.0


class AutoUnmatched(PenstockError, code=Code.NOT_FOUND, reason="AUTO_UNMATCHED"):
    """No model that the key may have can do what is asked."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a request asks of a model."""

    tasks: tuple[str, ...]
    """One of them."""
    capabilities: frozenset[str] = frozenset()
    """All of them: "tools", "json", "json_schema", "logprobs", "penalties", "logit_bias"."""
    prompt_tokens: int = 0
    """As far as that is known beforehand."""
    answer_tokens: int = 0
    """0: as many as the model gives."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True, slots=True)
class Offer:
    """What one model says of itself, in the version that a request for it gets."""

    model: str
    task: str = ""
    """Empty: nobody holds a copy, so it is not known."""
    capabilities: frozenset[str] = frozenset()
    context_tokens: int = 0
    """0: unknown."""
    cost: float = 0.0
    """0: unknown."""
    in_flight: int = 0
    places: int = 0
    """Of all copies that are ready; 0: none is."""
    preference: int = 0
    """By which of the patterns it is listed."""
    withheld: str = ""
    """Why it cannot be had at all."""


def shortcoming(offer: Offer, needs: Needs) -> str:
    """Why this model will not do; empty: it will."""
    if offer.withheld:
        return offer.withheld
    if not offer.task:
        return "nobody holds a copy that says what it can do"
    if offer.task not in needs.tasks:
        return f"its task is {offer.task}"
    if missing := needs.capabilities - offer.capabilities:
        return f"it cannot do {', '.join(sorted(missing))}"
    if offer.context_tokens and offer.context_tokens < max(needs.tokens, needs.prompt_tokens + 1):
        return f"its context has {offer.context_tokens} tokens"
    return ""


def cheapest(offers: Iterable[Offer], needs: Needs) -> str | None:
    """The model to ask; None: none will do.

    Of the first pattern that lists any: with room before full, and full before not ready. Of those the cheapest, of equally
    cheap ones the least loaded, and of these the first by name.
    """
    best = min((offer for offer in offers if not shortcoming(offer, needs)), key=_order, default=None)
    return None if best is None else best.model


def _order(offer: Offer) -> tuple[int, int, float, float, str]:
    load = offer.in_flight / offer.places if offer.places else 0.0
    readiness = 2 if not offer.places else 1 if load >= 1.0 else 0
    return offer.preference, readiness, offer.cost or math.inf, load, offer.model


class Offers(Protocol):
    """What there is to choose from: gateway.offers.Offers."""

    @property
    def synced(self) -> bool: ...

    def is_published(self, key: KeyFacts, model: str) -> bool: ...

    def to(self, key: KeyFacts, name: str) -> list[Offer]: ...


class AutoModels:
    """Belongs to one event loop. Without offers every name is a model's own."""

    def __init__(self, offers: Offers | None = None) -> None:
        self._offers = offers

    def chosen(self, key: KeyFacts, model: str, needs: Needs) -> str:
        """The model's name; any other than AUTO stays as it is. Raises AutoUnmatched, ModelCold."""
        offers = self._offers
        if model != AUTO or offers is None or offers.is_published(key, AUTO):
            return model
        if not offers.synced:
            raise ModelCold("this gateway has not heard from the scheduler yet; try again", retry_after_s=_COLD_RETRY_S)
        found = offers.to(key, AUTO)
        chosen = cheapest(found, needs)
        if chosen is None:
            raise _unmatched(found, needs)
        return chosen


def _unmatched(offers: Sequence[Offer], needs: Needs) -> AutoUnmatched:
    """With why each of them would not do, of as many as are shown."""
    asked = " or ".join(needs.tasks) + "".join(f", {each}" for each in sorted(needs.capabilities))
    if not offers:
        return AutoUnmatched(
            f"'auto' has no model to choose from for {asked}: this key sees none that may be chosen; name a model"
        )
    nearest = sorted(offers, key=lambda offer: (offer.task not in needs.tasks, offer.model))
    seen = "; ".join(f"{offer.model[:80]}: {shortcoming(offer, needs)}" for offer in nearest[:_SHOWN])
    more = f"; and {len(offers) - _SHOWN} more" if len(offers) > _SHOWN else ""
    tokens = f", {needs.tokens} tokens" if needs.tokens else ""
    return AutoUnmatched(f"'auto' finds no model for {asked}{tokens}: {seen}{more}; name a model, or ask for less")
