"""One allowance, and who has how much of it in hand.

Pure: time is an argument. Decides how much a gateway is given: all that it wants where there is enough for everybody, else a
part that is to the whole as its want is to all wants, so that requests are treated alike wherever they come in. What was used
beyond what was given is taken from what is left, at once: never forgotten, paid back before anybody gets more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from placement.limits.stocks import Stock, stock_of
from placement.limits.types import Ask, Grant, HolderId, Moment, Terms

FRESH_S = 1.5
"""A want that was not repeated within this is not one any more."""

LATELY_S = 30.0
"""Who said nothing of an allowance for so long and has none of it is not among its holders any more."""

_MAX_UNITS = 2**62


@dataclass(slots=True)
class Hand:
    """What one gateway process has of it."""

    units: int = 0
    wanted: int = 0
    heard_s: float = 0.0


@dataclass(slots=True)
class Pot:
    """Hear an ask, then answer it; in between whoever keeps it may write a budget down."""

    stock: Stock
    hands: dict[HolderId, Hand] = field(default_factory=dict)
    held: int = 0
    """In all hands."""

    def hear(self, holder: HolderId, ask: Ask, moment: Moment) -> None:
        """Take over what it says has happened."""
        hand = self.hands.get(holder)
        if hand is None:
            hand = self.hands[holder] = Hand()
        self.stock.refresh(moment, self.held)
        if ask.terms is not None:
            self._replace(ask.terms, moment)
            self._set(hand, _bounded(ask.held, -_MAX_UNITS))
        back = min(_bounded(ask.returned), max(hand.units, 0))
        self._set(hand, hand.units - _bounded(ask.used, -_MAX_UNITS) - back)
        self.stock.put_back(back)
        hand.wanted, hand.heard_s = _bounded(ask.wanted), moment.now_s

    def answer(self, holder: HolderId, ask: Ask, moment: Moment) -> Grant:
        """What this one gets. After `hear`."""
        hand, stock = self.hands[holder], self.stock
        debt = max(0, -hand.units)
        if debt:
            stock.give(debt)
            self._set(hand, 0)
        stock.refresh(moment, self.held)
        given = min(hand.wanted, self._part(hand, moment.now_s))
        if given:
            stock.give(given)
            self._set(hand, hand.units + given)
            hand.wanted -= given
        wait_s = max(0.001, stock.wait_s(moment, hand.wanted)) if hand.wanted else 0.0
        return Grant(ask.allowance, debt + given, int(stock.remaining(self.held) // 1), wait_s, len(self.hands))

    def drop(self, holder: HolderId) -> None:
        """It is gone, or does not speak of this any more: what it had counts as used; its permits are free."""
        hand = self.hands.pop(holder, None)
        if hand is not None:
            self.held -= max(0, hand.units)

    def forget_idle(self, moment: Moment) -> bool:
        """Let go of holders that have nothing and say nothing; whether it may be forgotten itself."""
        idle = [who for who, hand in self.hands.items() if not hand.units and moment.now_s - hand.heard_s > LATELY_S]
        for who in idle:
            del self.hands[who]
        self.stock.refresh(moment, self.held)
        return not self.hands and self.stock.is_whole(self.held)

    def _part(self, hand: Hand, now_s: float) -> int:
        """Of what is available, by its share of all wants that are fresh; one unit at least, where there is one."""
        available = int(self.stock.available(self.held) // 1)
        if available < 1 or not hand.wanted:
            return 0
        wants = sum(each.wanted for each in self.hands.values() if now_s - each.heard_s <= FRESH_S)
        if wants <= available:
            return hand.wanted
        return max(1, available * hand.wanted // wants)

    def _replace(self, terms: Terms, moment: Moment) -> None:
        """Take over terms that are not older than what is known: the last word counts among those of one generation."""
        known = self.stock.terms
        if terms == known or terms.generation < known.generation:
            return
        if terms.kind is known.kind:
            self.stock.terms = terms
        else:
            self.stock = stock_of(terms, moment)
        self.stock.refresh(moment, self.held)

    def _set(self, hand: Hand, units: int) -> None:
        self.held += max(0, units) - max(0, hand.units)
        hand.units = units


def _bounded(units: int, least: int = 0) -> int:
    return max(least, min(units, _MAX_UNITS))
