"""Wishes written down: how many copies of a model a region should hold, and on which workers.

Decides what a valid wish is and gives it its generation. Each write is conditional on the key being what was read, so of two
writers at once one is told to read again. Never decides who loads what: `placement.copies.assign` does.
"""

from __future__ import annotations

import dataclasses
import re

from placement.copies.wishes import Placement
from runtime.errors import Aborted, InvalidArgument, VersionWithdrawn
from runtime.ids import Region, placement_key
from runtime.keyvalue import KeyValueStore, Write, unchanged
from runtime.notices import NoticeBoard
from scheduler.codec import placement_bytes, placement_from
from scheduler.control import Control

MAX_COPIES = 10_000
MAX_IDLE_S = 7 * 24 * 3_600
MAX_MEMORY_BYTES = 1 << 50
MAX_LABELS = 32
_ATTEMPTS = 4

# As the registry takes them; a name is a part of a key.
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REGION = re.compile(r"[a-z0-9-]{1,32}")
# As workers tell them.
_TIER = re.compile(r"[A-Za-z0-9._-]{1,63}")
_LABEL = re.compile(r"(?=.{1,63}\Z)[A-Za-z0-9._/-]+(=[A-Za-z0-9._/-]+)?")


class Placements:
    """The place where wishes are made."""

    def __init__(self, store: KeyValueStore, control: Control, home: Region, board: NoticeBoard | None = None) -> None:
        self._store, self._control, self._home = store, control, home
        self._board = board or NoticeBoard()

    async def place(self, wish: Placement) -> Placement:
        """Write the wish with the next generation; an empty region is the scheduler's own.

        Raises InvalidArgument, VersionWithdrawn, Aborted.
        """
        wish = checked(dataclasses.replace(wish, region=wish.region or self._home))
        if wish.is_wanted and self._board.is_withdrawn(wish.model, wish.digest):
            raise VersionWithdrawn(
                f"version {wish.version} of model {wish.model!r} was withdrawn, and is loaded nowhere any more; place another"
            )
        key = placement_key(wish.region, wish.model, wish.version)
        for _ in range(_ATTEMPTS):
            stored = await self._store.get(key)
            known = [placement_from(stored.value)] if stored is not None else []
            if (remembered := self._control.wish_at(key)) is not None:
                known.append(remembered)
            wish = dataclasses.replace(wish, generation=1 + max((each.generation for each in known), default=0))
            condition = unchanged(key, stored.mod_revision if stored is not None else 0)
            if (await self._store.txn([condition], [Write(key, placement_bytes(wish))])).succeeded:
                return wish
        raise Aborted(f"others are placing model {wish.model!r} version {wish.version} in {wish.region!r} too; try again")


def checked(wish: Placement) -> Placement:
    """The wish, if it can be written. Raises InvalidArgument."""
    if not _MODEL.fullmatch(wish.model):
        raise InvalidArgument(f"{wish.model!r} is no model name; letters, digits, '.', '_' and '-' are, up to 128 of them")
    if not _VERSION.fullmatch(wish.version):
        raise InvalidArgument(f"{wish.version!r} is no version; give a positive decimal number, such as 1")
    if not _REGION.fullmatch(wish.region):
        raise InvalidArgument(f"{wish.region!r} is no region; lower-case letters, digits and '-' are, up to 32 of them")
    if not _DIGEST.fullmatch(wish.digest) and (wish.is_wanted or wish.digest):
        raise InvalidArgument(f"{wish.digest!r} is no digest; give the version's sha256 from the registry, 64 hex digits")
    _check_copies(wish)
    _check_constraints(wish)
    return wish


def _check_copies(wish: Placement) -> None:
    if max(wish.copies, wish.max_copies) > MAX_COPIES:
        most = max(wish.copies, wish.max_copies)
        raise InvalidArgument(f"{most} copies are too many; at most {MAX_COPIES} can be wished for")
    if wish.max_copies and wish.max_copies < wish.copies:
        raise InvalidArgument(
            f"max_copies is {wish.max_copies}, and copies {wish.copies}; give as many or more, or 0 for just {wish.copies}"
        )
    if wish.idle_s > MAX_IDLE_S:
        raise InvalidArgument(f"idle_s is {wish.idle_s}; a copy may be idle for {MAX_IDLE_S} s, seven days, at most")


def _check_constraints(wish: Placement) -> None:
    if wish.tier and not _TIER.fullmatch(wish.tier):
        raise InvalidArgument(f"{wish.tier[:80]!r} is no tier; letters, digits, '.', '_' and '-' are, up to 63 of them")
    if len(wish.labels) > MAX_LABELS:
        raise InvalidArgument(f"{len(wish.labels)} labels are too many; a worker has {MAX_LABELS} at most")
    for label in sorted(wish.labels):
        if not _LABEL.fullmatch(label):
            raise InvalidArgument(
                f"{label[:80]!r} is no label: a name or name=value of letters, digits and . _ / - is expected,"
                " up to 63 characters"
            )
    if wish.memory_bytes > MAX_MEMORY_BYTES:
        raise InvalidArgument(f"memory_bytes is {wish.memory_bytes}; at most {MAX_MEMORY_BYTES}, a pebibyte, is expected")
