"""What may be hoped for by a request whose model answers nowhere yet: a copy that comes, or nothing.

Pure: the fleet and the wishes go in. A model is on its way while somebody wishes for it, or while a copy is being loaded; it is
given up where every copy failed. Never decides for how long to wait.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from placement.copies.wishes import Placement
from placement.types import CandidateKey, Copy, CopyState, Worker
from placement.view import FleetView

_COMES = frozenset({CopyState.READY, CopyState.LOADING, CopyState.UNAVAILABLE})


class Hope(enum.Enum):
    """What there is to wait for."""

    COMING = "coming"
    FAILED = "failed"
    """Every copy failed; a worker that has not tried is there still."""
    FAILED_EVERYWHERE = "failed everywhere"
    NOT_PLACED = "not placed"


@dataclass(frozen=True, slots=True)
class Prospect:
    """And a sentence for the person."""

    hope: Hope
    detail: str


def prospect_of(
    view: FleetView, wishes: Iterable[Placement], key: CandidateKey, *, abroad: bool, shortage: str = ""
) -> Prospect:
    """For one line. `abroad`: other regions will do. `shortage`: why fewer copies are placed than wished for."""
    named = f"model {key.model!r}" + (f" version {key.version}" if key.version else "")
    there = "in any region" if abroad else f"in region {key.region!r}"
    copies = [
        (worker, copy)
        for worker, copy in view.copies_of(key.model)
        if key.version in ("", copy.version) and (abroad or worker.region == key.region)
    ]
    wished = any(
        wish.model == key.model
        and key.version in ("", wish.version)
        and (abroad or wish.region == key.region)
        and max(wish.copies, wish.max_copies) > 0
        for wish in wishes
    )
    if not wished and not any(copy.state in _COMES for _, copy in copies):
        return Prospect(Hope.NOT_PLACED, f"no copy of {named} is {there}, and nobody wishes for one; place it first")
    states = _states(copies)
    if copies and all(copy.state is CopyState.FAILED for _, copy in copies):
        reason = next((copy.reason for _, copy in copies if copy.reason), "no reason told")
        holders = {worker.worker_id for worker, _ in copies}
        others = any(abroad or worker.region == key.region for who, worker in view.workers.items() if who not in holders)
        hope = Hope.FAILED if others else Hope.FAILED_EVERYWHERE
        return Prospect(hope, f"every copy of {named} {there} failed to load ({states}): {reason}")
    doing = states or shortage or "no worker has begun to load it"
    return Prospect(Hope.COMING, f"no copy of {named} {there} answers yet ({doing})")


def _states(copies: Iterable[tuple[Worker, Copy]]) -> str:
    counts: dict[str, int] = {}
    for _, copy in copies:
        counts[copy.state.value] = counts.get(copy.state.value, 0) + 1
    return ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
