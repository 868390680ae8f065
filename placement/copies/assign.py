"""Decides which workers should hold which models.

Pure and level-triggered: wishes, workers and what is assigned now go in, what should be assigned comes out; applied again to
its own result it changes nothing. It moves as little as it can: who holds a copy keeps it while the wish lasts, a missing copy
goes to the worker with the fewest, and nobody is relieved merely because another would be a little better. A worker whose copy
FAILED keeps its assignment, so that it does not try again and again, and another worker stands in for it; when the wish's
generation grows, all may try again. A worker of some tenants alone is given nothing that none of them may call, and a wish may
name a tier and labels that its workers must have.

A copy goes only where it fits. What it takes is what a copy of the same digest says, else what the wish says; what nobody knows
fits anywhere, and so does everything on a worker that does not tell its budget. A copy that its worker let go of for want of
memory is none: where it does not fit again it goes elsewhere. First the copies that were wished for at least are placed, then
those that demand asks for, the most recently used first; where nothing fits, others may give way (`placement.copies.yielding`).

Never decides how many copies there should be: `placement.copies.scale` does.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from placement.copies.board import Board, Stand
from placement.copies.wishes import AS_WISHED, NO_BARS, AssignedModel, Assignments, Bars, Callers, Placement, Wanted
from placement.copies.yielding import YIELD_S, Yielding
from placement.types import Worker
from runtime.ids import WorkerId

__all__ = ["AssignedModel", "Assignments", "Callers", "Placement", "Plan", "Shortage", "Shortfall", "assign"]

_PASSES = 8
"""Who gave way may leave more room than was needed, and who came later may be one that gives way: those still short are looked
at again, so often in one round."""


class Shortage(enum.Enum):
    """Why there are fewer copies than wished."""

    NO_WORKERS = "no worker is in the region"
    OTHERS_WORKERS = "every worker in the region is for other tenants"
    NO_TIER = "no worker in the region is of the tier that it is to be"
    NO_LABEL = "no worker in the region has the labels that it is to have"
    FAILED = "workers failed to load it; wish for it again to have them retry"
    NO_MEMORY = "it does not fit on any worker beside what is there; add memory, or wish for fewer copies of something"
    TOO_FEW_WORKERS = "every worker in the region holds one"


@dataclass(frozen=True, slots=True)
class Shortfall:
    placement: Placement
    placed: int
    reason: Shortage
    wanted: int = 0
    """What the wish came to; more than its `copies` where demand asked for more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`assignments` has an entry for every worker there is, empty where it should hold nothing."""

    assignments: Mapping[WorkerId, tuple[AssignedModel, ...]]
    shortfalls: tuple[Shortfall, ...] = ()


def assign(
    placements: Iterable[Placement],
    workers: Iterable[Worker],
    current: Assignments,
    callers: Callers | None = None,
    *,
    wanted: Wanted = AS_WISHED,
    bars: Bars = NO_BARS,
) -> Plan:
    """Who should hold what. The order of what goes in makes no difference to what comes out."""
    board = Board(placements, workers, current, callers or {}, wanted, bars)
    stands = list(board.stands.values())
    for stand in stands:
        board.keep(stand)
    for stand in stands:
        board.restore(stand)
    _fill(board, stands)
    short = [stand for stand in stands if len(stand.placed) < stand.wanted]
    shortfalls = (Shortfall(each.wish, len(each.placed), _shortage(each, board), each.wanted) for each in short)
    return Plan(board.assignments(current), tuple(shortfalls))


def _fill(board: Board, stands: list[Stand]) -> None:
    """Place what is missing: first the least that was wished for, then what demand asks for."""
    yielding = Yielding(board)
    by_use = sorted(stands, key=lambda stand: (-stand.used_s, stand.order))
    for _ in range(_PASSES):
        moves = board.moves
        yielding.begin()
        for stand in stands:
            board.add(stand, stand.wish.copies)
            while len(stand.placed) < stand.wish.copies and yielding.make_room(stand, inf):
                pass
        for stand in by_use:
            board.add(stand, stand.wanted)
            while len(stand.placed) < stand.wanted and yielding.make_room(stand, stand.used_s - YIELD_S):
                pass
        if board.moves == moves:
            return


def _shortage(stand: Stand, board: Board) -> Shortage:
    wish, workers = stand.wish, stand.pool.workers
    if not workers:
        return Shortage.NO_WORKERS
    if not stand.suiting.any():
        if wish.tier and not any(wish.tier in worker.tiers for worker in workers):
            return Shortage.NO_TIER
        return Shortage.NO_LABEL if not any(wish.suits(worker) for worker in workers) else Shortage.OTHERS_WORKERS
    if board.is_exhausted(stand) or any(stand.has_failed(at) for at in stand.failed):
        return Shortage.FAILED
    return Shortage.TOO_FEW_WORKERS if board.taken_mask(stand).all() else Shortage.NO_MEMORY
