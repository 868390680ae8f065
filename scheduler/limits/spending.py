"""What was given out of budgets of a day, kept in etcd for the next leader: written before it is given.

Owns the records: one for each allowance, bounded in number, each about a hundredth of its budget ahead of the truth. Every
write is fenced by the leader's term. Never decides how much may be given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from placement.limits.book import Spending
from placement.limits.types import AllowanceId
from runtime.candidates import Term
from runtime.errors import NotLeader
from runtime.keyvalue import KeyValueStore, Remove, Step, Write
from scheduler.limits.codec import spending_bytes, spending_of

SPENDING_PREFIX = "/penstock/limits/days/"
MAX_RECORDS = 20_000
_STEPS = 100
"""In one transaction; etcd takes 128."""

_KEPT_DAYS = 1
"""Yesterday's are kept: what was overdrawn is taken from today."""


def spending_key(allowance: AllowanceId) -> str:
    """Allowances name tenants and keys as their owners do; their records' names are of one length."""
    return SPENDING_PREFIX + hashlib.sha256(allowance.encode()).hexdigest()[:40]


class Records:
    """Belongs to one event loop."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._days: dict[str, int] = {}

    async def read(self) -> Mapping[AllowanceId, Spending]:
        """All of them."""
        found, self._days = {}, {}
        for item in (await self._store.range(SPENDING_PREFIX)).items:
            spending = spending_of(item.value)
            if spending is not None:
                found[spending.allowance] = spending
            self._days[item.key] = spending.day if spending is not None else 0
        return found

    async def write(self, term: Term, spent: Sequence[Spending]) -> list[Spending]:
        """Write these down; which of them there was room for. Raises NotLeader where the term is over."""
        taken: list[Spending] = []
        for spending in spent:
            key = spending_key(spending.allowance)
            if key in self._days or len(self._days) < MAX_RECORDS:
                self._days[key] = spending.day
                taken.append(spending)
        steps: list[Step] = [Write(spending_key(each.allowance), spending_bytes(each)) for each in taken]
        await self._commit(term, steps)
        return taken

    async def prune(self, term: Term, today: int) -> int:
        """Remove what is of days that are over; how many there were. Raises NotLeader where the term is over."""
        old = [key for key, day in self._days.items() if day < today - _KEPT_DAYS]
        await self._commit(term, [Remove(key) for key in old])
        for key in old:
            self._days.pop(key, None)
        return len(old)

    async def _commit(self, term: Term, steps: Sequence[Step]) -> None:
        for start in range(0, len(steps), _STEPS):
            if not (await self._store.txn(term.fence(), steps[start : start + _STEPS])).succeeded:
                raise NotLeader("this scheduler does not lead the limits any more", retry_after_s=0.5)
