"""What this gateway has of one allowance, how fast it goes, and what to ask the leader for next.

Pure: time is an argument. Units are taken from what is held, without asking anybody; below 0 it has used more than it was
given, which the leader is told and covers. Decides how much to ask ahead: what goes in the next moment, one unit besides where
there is plenty, nothing for show. While the leader cannot be reached it lends itself an even share, where the limit's policy
has it so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gateway.limits.types import Limit, WhenUnsure
from placement.limits.stocks import Bucket, Budget, Stock, stock_of
from placement.limits.types import AllowanceId, Ask, Grant, Kind, Moment, Terms

AHEAD_S = 0.5
"""So much of what goes is asked ahead, and the way to the leader besides."""

_DECAY_S = 0.5
"""How fast what went is forgotten."""

_KEEPS_S = 30.0
"""For so long after its last request a caller need not wait for a unit, where there is plenty."""

_LONG_S = 1.0
"""Who was told to stay away for longer asks now and then all the same: what others had in hand may have come back."""

_QUIET_S = 1.0
_FEWEST_TOKENS = 1
_LEARNS = 0.2


@dataclass(slots=True, eq=False)
class Holding:
    """Taking from it is `held -= n; used += n; asked += n`, done where requests are let in."""

    allowance: AllowanceId
    limit: Limit
    terms: Terms
    subject: str = ""
    held: int = 0
    used: int = 0
    """Since the last ask; of permits: under way now."""
    asked: int = 0
    """Units that requests wanted, let in or not, since the last look."""
    expected: float = _FEWEST_TOKENS
    """Tokens that a request comes to, by the last ones."""
    waiting: int = 0
    """Units that requests wait for."""
    stirred: bool = False
    """Whether it is to be looked at."""
    introduced: bool = False
    """Whether the leader was told of it on this stream."""
    introducing: bool = False
    """Whether the last ask told it."""
    returned: int = 0
    """What the last ask gave back."""
    told: bool = False
    """Whether any leader ever answered."""
    remaining: int = 0
    """For all, as the leader last said."""
    retry_at_s: float = 0.0
    """Before this there is nothing, as the leader last said."""
    holders: int = 1
    borrowed: int = 0
    """Lent by itself, and not paid back from what was given since."""
    forgives: bool = False
    """What it lent itself of a rate is not paid back: the leader does not give out again what came in meanwhile."""
    share: Stock | None = None
    """What it lends itself from."""
    demand_per_s: float = 0.0
    looked_s: float = field(default=-math.inf)
    moved_s: float = field(default=-math.inf)
    """When a request last wanted some."""

    @property
    def is_permit(self) -> bool:
        return self.terms.kind is Kind.CONCURRENT

    @property
    def one_request(self) -> int:
        """Units that one request is thought to come to."""
        return max(_FEWEST_TOKENS, int(self.expected)) if self.terms.kind.counts_tokens else 1

    @property
    def left(self) -> int:
        """For this gateway's callers, as far as it knows."""
        return max(0, self.remaining) + self.held

    @property
    def is_idle(self) -> bool:
        """Whether forgetting it would lose nothing."""
        return not (self.held or self.used or self.waiting or self.borrowed or self.stirred)

    def renew(self, limit: Limit, terms: Terms) -> None:
        """The limit is this now; one of an older generation is not."""
        if terms.generation < self.terms.generation:
            return
        if terms != self.terms:
            self.introduced, self.share, self.retry_at_s = False, None, 0.0
        self.limit, self.terms = limit, terms

    def tokens_used(self, charged: int, used: int) -> None:
        """A request that was charged so much came to that."""
        self.held += charged - used
        self.used += used - charged
        if used:
            self.expected += (used - self.expected) * (_LEARNS if self.expected > _FEWEST_TOKENS else 1.0)

    def ask(self, now_s: float, way_s: float = 0.0) -> Ask | None:
        """What to say of it; None: nothing. `way_s`: how long the leader's answer takes."""
        doubts = bool(self.asked) and self.retry_at_s - now_s > _LONG_S
        self._look(now_s)
        target = self._target(now_s, way_s)
        wanted = max(0, target + self.waiting - max(0, self.held))
        if not self.introduced:
            in_use = self.used if self.is_permit else 0
            return self._introduction(wanted) if wanted or self.held or in_use or self.borrowed else None
        returned, used = self._surplus(now_s, target), 0 if self.is_permit else self.used
        if not (wanted or returned or used or doubts):
            return None
        self.held -= returned
        self.used -= used
        self.introducing, self.returned = False, returned
        return Ask(self.allowance, used=used, returned=returned, wanted=wanted)

    def grant(self, grant: Grant, now_s: float) -> None:
        """The leader's answer."""
        if grant.holders == 0:
            self.introduced = False
            if not self.introducing:  # the leader has forgotten what nobody used: that says nothing of what is left
                self.held += self.returned
                return
        else:
            self.told, self.holders = True, grant.holders
        if self.forgives:
            self.held = self.used = self.borrowed = 0
        repaid = min(self.borrowed, grant.granted)
        self.borrowed -= repaid
        self.held += grant.granted - repaid
        self.share, self.forgives = None, False
        self.remaining = grant.remaining
        if grant.retry_after_s > 0:
            self.retry_at_s = now_s + grant.retry_after_s
        elif grant.granted or grant.remaining >= 1:
            self.retry_at_s = 0.0

    def lost(self) -> None:
        """The stream to the leader has ended."""
        self.introduced = False
        self.stirred = True

    def borrow(self, moment: Moment, holders: int) -> bool:
        """Lend itself units while the leader cannot be asked, if it may; whether there are any now."""
        if self.limit.when_unsure is WhenUnsure.REFUSE:
            return False
        if self.share is None:
            self.share = self._own_share(moment, max(self.holders if self.told else holders, 1))
        in_hand = self.held + self.used if self.is_permit else 0
        self.share.refresh(moment, in_hand)
        units = min(int(self.share.available(in_hand)), max(1, self.waiting, -self.held + 1))
        if units < 1:
            return False
        self.share.give(units)
        self.held += units
        self.borrowed += units
        return self.held >= 1

    def borrow_wait_s(self, moment: Moment) -> float:
        """Until it could lend itself one."""
        return 1.0 if self.share is None else max(0.001, self.share.wait_s(moment, 1))

    def _surplus(self, now_s: float, target: int) -> int:
        """What is in hand and will not go soon, where nobody used any for a while or others may need it."""
        surplus = self.held - target - self.waiting
        may_need = self.remaining < 1 or now_s - self.moved_s > _QUIET_S
        return surplus if may_need and surplus > target else 0

    def _own_share(self, moment: Moment, holders: int) -> Stock:
        terms = self.terms.divided(holders)
        share = stock_of(terms, moment)
        if isinstance(share, Bucket) and self.told:
            share.level = min(share.level, max(0.0, self.remaining / holders))
        elif isinstance(share, Budget):
            share.written = int(self.terms.units)
            if self.told:
                share.spent = max(0, int(terms.units) - max(0, self.remaining) // holders)
        return share

    def _introduction(self, wanted: int) -> Ask:
        """What is in hand, as the leader is to know it."""
        self.introduced = self.introducing = True
        self.returned = 0
        if self.is_permit:
            self.borrowed = 0
            return Ask(self.allowance, self.terms, self.held + self.used, self.told, wanted=wanted)
        self.used = 0
        if self.terms.kind.is_daily:
            return Ask(self.allowance, self.terms, self.held - self.borrowed, self.told, wanted=wanted)
        self.forgives = self.borrowed > 0
        return Ask(self.allowance, self.terms, 0 if self.forgives else self.held, self.told, wanted=wanted)

    def _look(self, now_s: float) -> None:
        """How much goes by now."""
        if self.asked:
            self.moved_s = now_s
        if self.looked_s == -math.inf:
            self.looked_s, self.demand_per_s = now_s, 0.0
        passed_s = now_s - self.looked_s
        if passed_s > 0:
            weight = 1.0 - math.exp(-passed_s / _DECAY_S)
            self.demand_per_s += (self.asked / passed_s - self.demand_per_s) * weight
            self.looked_s, self.asked = now_s, 0

    def _target(self, now_s: float, way_s: float) -> int:
        """How much to have in hand."""
        ahead = int(min(self.demand_per_s * (AHEAD_S + way_s), self.terms.capacity))
        if ahead > 1:
            return ahead
        # Of what is scarce, a single unit in each hand would be most of it: then a request waits for its own.
        is_plenty = self.told and self.left >= 2 * max(self.holders, 1)
        return self.one_request if is_plenty and (ahead or now_s - self.moved_s <= _KEEPS_S) else 0
