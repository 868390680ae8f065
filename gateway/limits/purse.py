"""All that this gateway holds of allowances, and what is to be said of it to the leader.

Pure: time is an argument. Only what moved since it was last spoken of is looked at. Bounded: where there is too much, what is
idle is forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from gateway.limits.holding import Holding
from gateway.limits.types import Limit
from placement.limits.types import AllowanceId, Ask, Grant, Terms

MAX_HOLDINGS = 50_000
MAX_ASKS = 1_000
"""In one message; what is left is said in the next."""


class Purse:
    """Belongs to one event loop."""

    def __init__(self, max_holdings: int = MAX_HOLDINGS) -> None:
        self._holdings: dict[AllowanceId, Holding] = {}
        self._stirred: deque[Holding] = deque()
        self._max_holdings = self._full_at = max_holdings
        self.holders = 1
        """Gateways that shared anything with this one, as the leader last said: the most of any allowance."""
        self.on_forgotten: list[Callable[[], None]] = []
        """Called when holdings were forgotten: whoever kept one is to find it anew."""

    def __len__(self) -> int:
        return len(self._holdings)

    def holding(self, limit: Limit, terms: Terms, subject: str) -> Holding:
        """The one of this limit, kind and subject; as these terms have it, unless newer ones are known."""
        allowance = AllowanceId(f"{limit.limit_id}/{terms.kind.value}/{subject}")
        found = self._holdings.get(allowance)
        if found is None:
            if len(self._holdings) >= self._full_at:
                self._forget_idle()
            found = self._holdings[allowance] = Holding(allowance, limit, terms, subject)
        found.renew(limit, terms)
        return found

    def stir(self, holding: Holding) -> None:
        """Something moved: look at it when asks are made."""
        if not holding.stirred:
            holding.stirred = True
            self._stirred.append(holding)

    def asks(self, now_s: float, way_s: float = 0.0) -> list[Ask]:
        """What to say now, of all that moved."""
        asks: list[Ask] = []
        for _ in range(len(self._stirred)):
            if len(asks) >= MAX_ASKS:
                break
            holding = self._stirred.popleft()
            ask = holding.ask(now_s, way_s)
            if ask is not None:
                asks.append(ask)
            if ask is not None or holding.held > 0 or holding.waiting:
                self._stirred.append(holding)
            else:
                holding.stirred = False
        return asks

    def take(self, grants: Iterable[Grant], now_s: float) -> list[Holding]:
        """The leader's answers; which holdings they are of."""
        told = []
        for grant in grants:
            holding = self._holdings.get(grant.allowance)
            if holding is None:
                continue
            holding.grant(grant, now_s)
            told.append(holding)
        self.holders = max((each.holders for each in told), default=self.holders)
        return told

    def lost(self) -> None:
        """The stream has ended: on the next one everything is introduced again."""
        for holding in self._holdings.values():
            holding.introduced = False
            self.stir(holding)

    def _forget_idle(self) -> None:
        self._holdings = {name: each for name, each in self._holdings.items() if not each.is_idle}
        self._full_at = max(self._max_holdings, 2 * len(self._holdings))
        for forgotten in self.on_forgotten:
            forgotten()
