"""The cache of keys and values of a language model's sequences, as memory that a graph works on in place.

Owns the arrays, and which row of them is whose. A step runs over the first rows, without gaps: `gather` puts the sequences of a
step there. Rows grow together, by doubling, and shrink back when none is in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from worker.engine import Array

_FIRST_TOKENS = 256


class Place(NamedTuple):
    """Rows of the cache that follow each other."""

    first: int
    rows: int


class KeyValues:
    """Arrays [slots, heads, tokens, head size], two for each layer. Memory that was never written takes no room."""

    def __init__(
        self, names: Sequence[tuple[str, str]], shape: tuple[int, int], dtype: Any, *, slots: int, context_length: int
    ) -> None:
        self._names = tuple(names)
        self._shape = shape
        self._dtype = dtype
        self._slots = slots
        self._context_length = context_length
        self._tokens = 0
        self._arrays: list[Array] = []
        self._rows = list(range(slots))
        self._owners = list(range(slots))
        self._allocate(min(_FIRST_TOKENS, context_length))

    @property
    def tokens(self) -> int:
        """What fits into a row now."""
        return self._tokens

    def row(self, slot: int) -> int:
        return self._rows[slot]

    def views(self, place: Place) -> Iterator[tuple[str, str, Array]]:
        """Past's name, present's name and the memory of both."""
        for (past, present), array in zip(self._names, self._arrays, strict=True):
            yield past, present, array[place.first : place.first + place.rows]

    def grow(self, tokens: int, lengths: Sequence[int]) -> bool:
        """Make room for sequences of so many tokens; `lengths` of the slots are kept. True: the memory is another one now."""
        if tokens <= self._tokens:
            return False
        wanted = self._tokens
        while wanted < tokens:
            wanted *= 2
        old = self._arrays
        self._allocate(min(wanted, self._context_length))
        for slot, length in enumerate(lengths):
            row = self._rows[slot]
            for source, target in zip(old, self._arrays, strict=True):
                target[row, :, :length] = source[row, :, :length]
        return True

    def shrink(self) -> bool:
        """Give back what `grow` took; every row is forgotten. True: the memory is another one now."""
        first = min(_FIRST_TOKENS, self._context_length)
        if self._tokens == first:
            return False
        self._allocate(first)
        return True

    def gather(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Have these slots own the first rows, in any order."""
        wanted = set(slots)
        targets = [row for row in range(len(slots)) if self._owners[row] not in wanted]
        for slot in slots:
            if self._rows[slot] >= len(slots):
                self._swap(slot, self._owners[targets.pop()], lengths)

    def free(self) -> None:
        self._arrays = []

    def _swap(self, slot: int, other: int, lengths: Sequence[int]) -> None:
        row, target = self._rows[slot], self._rows[other]
        length, evicted = lengths[slot], lengths[other]
        for array in self._arrays:
            kept = array[target, :, :evicted].copy()
            array[target, :, :length] = array[row, :, :length]
            array[row, :, :evicted] = kept
        self._rows[slot], self._rows[other] = target, row
        self._owners[row], self._owners[target] = other, slot

    def _allocate(self, tokens: int) -> None:
        heads, size = self._shape
        self._arrays = [np.zeros((self._slots, heads, tokens, size), self._dtype) for _ in self._names]
        self._tokens = tokens
