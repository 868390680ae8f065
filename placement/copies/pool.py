"""The workers of one region as places for copies: who is of which kind, how many copies each has, how much memory is left.

Columns, because a region may have ten thousand workers and a round hundreds of wishes. Positions are in the order of worker
ids, so that the lowest position is the lowest id. Never decides what goes where: `placement.copies.assign` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from placement.types import Worker
from runtime.ids import WorkerId

Mask = NDArray[np.bool_]


class Pool:
    """One region's workers and what is left of them in this round."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self.workers: Sequence[Worker] = sorted(workers, key=lambda worker: worker.worker_id)
        self.positions: dict[WorkerId, int] = {worker.worker_id: at for at, worker in enumerate(self.workers)}
        budgets = np.array([worker.memory_budget_bytes or np.inf for worker in self.workers], dtype=np.float64)
        self.free_bytes = budgets
        """What is not taken; infinite where the worker does not say."""
        self.counts = np.zeros(len(self.workers), dtype=np.int64)
        """Copies that each is to have."""
        known = budgets[np.isfinite(budgets)]
        self._largest_bytes = float(known.max()) if len(known) else 1.0
        self._kinds: dict[tuple[str, frozenset[str], frozenset[str] | None], Mask] = {}
        self._is_divided = any(worker.tenants for worker in self.workers)

    def __len__(self) -> int:
        return len(self.workers)

    def suiting(self, tier: str, labels: frozenset[str], callers: frozenset[str] | None) -> Mask:
        """Who is of the tier, has the labels, and is for one of the callers (None: whoever they are)."""
        callers = callers if self._is_divided else None
        kind = (tier, labels, callers)
        if kind not in self._kinds:
            allowed = np.ones(len(self.workers), dtype=np.bool_)
            if tier or labels or callers is not None:
                allowed[:] = [
                    (not tier or tier in worker.tiers)
                    and labels <= worker.labels
                    and (callers is None or worker.may_load(callers))
                    for worker in self.workers
                ]
            self._kinds[kind] = allowed
        return self._kinds[kind]

    def says_memory(self, at: int) -> bool:
        return bool(self.free_bytes[at] != np.inf)

    def fits(self, at: int, need_bytes: int) -> bool:
        """Whether there is room; what needs nothing that is known fits anywhere."""
        return not need_bytes or bool(self.free_bytes[at] >= need_bytes)

    def add(self, at: int, need_bytes: int) -> None:
        self.counts[at] += 1
        self.free_bytes[at] -= need_bytes

    def remove(self, at: int, need_bytes: int) -> None:
        self.counts[at] -= 1
        self.free_bytes[at] += need_bytes

    def emptiest(self, allowed: Mask, need_bytes: int, many: int) -> list[int]:
        """Of those allowed and with room: the fewest copies first, of these the most memory left, of these the lowest id."""
        there = np.flatnonzero(allowed & (self.free_bytes >= need_bytes) if need_bytes else allowed)
        if len(there) > many:
            left = np.where(np.isinf(self.free_bytes[there]), 0.0, self.free_bytes[there]) / self._largest_bytes
            fullness = self.counts[there] - np.clip(left, 0.0, 1.0) / 2
            bound = np.partition(fullness, many - 1)[many - 1]
            sure, equal = there[fullness < bound], there[fullness == bound]
            there = np.concatenate((sure, equal[: many - len(sure)]))
        chosen: list[int] = there.tolist()
        return chosen
