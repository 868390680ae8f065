"""Which boxes were opened: each is opened once, so that nobody who recorded one can have it done again.

Remembered for as long as its reservation is kept; after that the reservation itself is refused. Bounded: a reservation has so
many calls, and there are as many reservations as places. Owns the digests; pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from worker.sealed.types import ReservationWorn, SealedReplayed


class Boxes:
    """Digests by the reservation's hold. `is_kept` says whether a hold still is."""

    def __init__(self, is_kept: Callable[[str], bool], *, at_most: int) -> None:
        self._is_kept, self._at_most = is_kept, at_most
        self._opened: dict[str, set[bytes]] = {}

    def __len__(self) -> int:
        """Reservations of which something is remembered."""
        return len(self._opened)

    def note(self, hold_id: str, box: bytes) -> None:
        """This one is opened now. Raises SealedReplayed, ReservationWorn."""
        opened = self._opened.get(hold_id)
        if opened is None:
            self._forget_the_gone()
            opened = self._opened[hold_id] = set()
        digest = hashlib.blake2b(box, digest_size=16).digest()
        if digest in opened:
            raise SealedReplayed("this very box was sent before; seal each call anew")
        if len(opened) >= self._at_most:
            raise ReservationWorn(f"{len(opened)} calls were made on this reservation, as many as one has; reserve another")
        opened.add(digest)

    def _forget_the_gone(self) -> None:
        for hold_id in [each for each in self._opened if not self._is_kept(each)]:
            del self._opened[hold_id]
