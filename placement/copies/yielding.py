"""Decides which copies give way where one more does not fit.

Least recently used first, and only copies beyond what was wished for at least. For a copy of that least anybody's may go; for
one that demand asks for only what was asked for at least YIELD_S longer ago, so that two models in use that do not both fit do
not take turns. Never decides who needs room, nor where those go that gave way.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from placement.copies.board import Board, Stand
from placement.copies.pool import Pool

YIELD_S = 30.0

LOOKS_AT_MOST = 300_000
"""Copies looked at in one round; a fleet that is short everywhere goes on in the next."""


class Yielding:
    """Who may have to go in one round."""

    def __init__(self, board: Board) -> None:
        self._board, self._looks_left = board, LOOKS_AT_MOST
        self._by_use: dict[Pool, list[Stand]] = {}
        for stand in sorted(board.stands.values(), key=lambda stand: (stand.used_s, stand.order)):
            self._by_use.setdefault(stand.pool, []).append(stand)
        self._in_vain: dict[Pool, list[tuple[float, int, Stand]]] = {}

    def begin(self) -> None:
        """Another pass: what was placed since may have to go as well."""
        self._in_vain.clear()

    def make_room(self, stand: Stand, before_s: float) -> bool:
        """Have copies asked for no later than `before_s` give way so that one more fits somewhere, and give it."""
        if before_s == -inf or not stand.bytes or self._board.is_exhausted(stand) or self._is_in_vain(stand, before_s):
            return False
        taken, pool, need_bytes = self._board.taken_mask(stand), stand.pool, stand.bytes
        gathered: dict[int, list[Stand]] = {}
        for other, at in self._spare(stand, before_s):
            if taken[at] or not other.need_bytes(at):
                continue
            going = gathered.setdefault(at, [])
            going.append(other)
            missing_bytes = need_bytes - pool.free_bytes[at]
            if sum(each.need_bytes(at) for each in going) >= missing_bytes:
                for each in _needed(going, at, missing_bytes):
                    self._board.take(each, at)
                self._board.give(stand, at)
                self._in_vain.pop(pool, None)
                return True
        if not stand.placed and not stand.failed:
            self._in_vain.setdefault(pool, []).append((before_s, need_bytes, stand))
        return False

    def _spare(self, stand: Stand, before_s: float) -> Iterator[tuple[Stand, int]]:
        """Copies that may go, with their places; those asked for longest ago first."""
        for other in self._by_use[stand.pool]:
            if other.used_s > before_s or self._looks_left <= 0:
                return
            if other is not stand and len(other.placed) > other.wish.copies:
                self._looks_left -= len(other.placed)
                for at in sorted(other.placed):
                    yield other, at

    def _is_in_vain(self, stand: Stand, before_s: float) -> bool:
        """Whether one that needed no more, and for which more might have gone, found none of the same workers."""
        return any(
            before_s <= their_s and stand.bytes >= their_bytes and stand.suiting is other.suiting
            for their_s, their_bytes, other in self._in_vain.get(stand.pool, ())
        )


def _needed(going: list[Stand], at: int, missing_bytes: float) -> list[Stand]:
    """Without those that need not go, because a later and larger one makes room enough."""
    needed = list(going)
    for each in going:
        if sum(other.need_bytes(at) for other in needed) - each.need_bytes(at) >= missing_bytes:
            needed.remove(each)
    return needed
