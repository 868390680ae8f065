"""All the allowances that one leader gives out, and the gateways that share them.

Pure: time is an argument. A leader that has just begun knows nothing. It answers nobody until it had time to hear everybody. Of
what gateways say that they were given before, nothing is left then, so that no burst is given twice; permits under way are what
they say that they hold; days are what was written down.

Bounded: what nobody uses and is whole again is forgotten, and where there is too much besides, more is not taken on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from placement.limits.pots import Pot
from placement.limits.stocks import Budget, stock_of
from placement.limits.types import AllowanceId, Ask, Grant, HolderId, Moment

MAX_POTS = 100_000

SETTLING_S = 2.0
"""So long a new leader hears everybody before it answers anybody: longer than gateways take to find it."""

GRACE_S = 5.0
"""What a gateway holds whose stream has ended stays its own for so long: it may be on its way back."""

_SWEPT = 2_000
_FULL_S = 1.0


@dataclass(frozen=True, slots=True)
class Spending:
    """Of an allowance of a day, as it is written down."""

    allowance: AllowanceId
    day: int
    units: int


@dataclass(slots=True)
class Presence:
    """One gateway process."""

    since_s: float
    """When its stream began, or ended."""
    connected: bool = True
    settled: bool = False
    """What it did not speak of since its stream began was dropped."""


@dataclass(slots=True)
class Book:
    """Of one leadership."""

    begun_s: float
    spent: Mapping[AllowanceId, Spending] = field(default_factory=dict)
    """What was written down before it began."""
    max_pots: int = MAX_POTS
    pots: dict[AllowanceId, Pot] = field(default_factory=dict)
    holders: dict[HolderId, Presence] = field(default_factory=dict)
    _to_sweep: list[AllowanceId] = field(default_factory=list)
    _full_until_s: float = 0.0

    def settling_s(self, now_s: float) -> float:
        """For how much longer nobody is answered; 0: everybody is."""
        return max(0.0, self._settled_s - now_s)

    def joined(self, holder: HolderId, now_s: float) -> None:
        """A stream of this one began. What it had before stays its own until it says otherwise, or nothing for a while."""
        self.holders[holder] = Presence(now_s)

    def left(self, holder: HolderId, now_s: float) -> None:
        """Its stream ended."""
        self.holders[holder] = Presence(now_s, connected=False)

    def hear(self, holder: HolderId, asks: Iterable[Ask], moment: Moment) -> None:
        """Take over what it says; nothing of what it did not introduce, or of what is too much."""
        for ask in asks:
            pot = self.pots.get(ask.allowance) or self._made(ask, moment)
            if pot is not None and (ask.terms is not None or holder in pot.hands):
                pot.hear(holder, ask, moment)

    def due(self, asks: Iterable[Ask]) -> list[Spending]:
        """What has to be written down before these can be answered in full."""
        found = []
        for ask in asks:
            pot = self.pots.get(ask.allowance)
            if pot is not None and isinstance(pot.stock, Budget) and (units := pot.stock.due(ask.wanted)):
                found.append(Spending(ask.allowance, pot.stock.day, units))
        return found

    def wrote(self, written: Iterable[Spending]) -> None:
        """This is written down now."""
        for each in written:
            pot = self.pots.get(each.allowance)
            if pot is not None and isinstance(pot.stock, Budget) and pot.stock.day == each.day:
                pot.stock.written = max(pot.stock.written, each.units)

    def answer(self, holder: HolderId, asks: Iterable[Ask], moment: Moment) -> list[Grant]:
        """What it gets. Of what it did not introduce, nothing, and 0 holders: it is to introduce it."""
        grants = []
        for ask in asks:
            pot = self.pots.get(ask.allowance)
            if pot is None or holder not in pot.hands:
                grants.append(Grant(ask.allowance, 0, 0, _FULL_S, 0))
            else:
                grants.append(pot.answer(holder, ask, moment))
        return grants

    def tidy(self, moment: Moment) -> None:
        """Drop what belongs to nobody any more. Call it about once a second; a call looks at a bounded part of all pots."""
        for who, presence in list(self.holders.items()):
            if not presence.settled and moment.now_s - presence.since_s > GRACE_S:
                self._settle(who, presence)
        if not self._to_sweep:
            self._to_sweep = list(self.pots)
        swept, self._to_sweep = self._to_sweep[:_SWEPT], self._to_sweep[_SWEPT:]
        self._sweep(swept, moment)

    @property
    def _settled_s(self) -> float:
        return self.begun_s + SETTLING_S

    def _settle(self, who: HolderId, presence: Presence) -> None:
        """Take what it did not speak of since its stream began; where that has ended, all of it."""
        for pot in self.pots.values():
            hand = pot.hands.get(who)
            if hand is not None and not (presence.connected and hand.heard_s >= presence.since_s):
                pot.drop(who)
        presence.settled = True
        if not presence.connected:
            del self.holders[who]

    def _sweep(self, allowances: Iterable[AllowanceId], moment: Moment) -> None:
        for allowance in allowances:
            pot = self.pots.get(allowance)
            if pot is not None and pot.forget_idle(moment):
                del self.pots[allowance]

    def _made(self, ask: Ask, moment: Moment) -> Pot | None:
        """A pot for what is asked for the first time; None: there are too many, or nobody said how much there is."""
        if ask.terms is None or not self._has_room(moment):
            return None
        empty_at_s = self._settled_s if ask.resumed else None
        pot = self.pots[ask.allowance] = Pot(stock_of(ask.terms, moment, empty_at_s))
        spent = self.spent.get(ask.allowance)
        if spent is not None and isinstance(pot.stock, Budget):
            pot.stock.day, pot.stock.spent, pot.stock.written = spent.day, spent.units, spent.units
            pot.stock.refresh(moment, 0)
        return pot

    def _has_room(self, moment: Moment) -> bool:
        if len(self.pots) < self.max_pots:
            return True
        if moment.now_s < self._full_until_s:
            return False
        self._full_until_s = moment.now_s + _FULL_S
        self._sweep(list(self.pots), moment)
        return len(self.pots) < self.max_pots
