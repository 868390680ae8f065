"""Bytes as a row of choices: the same bytes always make the same ones, and when they run out, the rest are zeros.

So that one body serves hypothesis, which makes up the bytes, and a coverage-guided fuzzer, which mutates them. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_EDGES = (0, 1, 2, 3, 7, 8, 9, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
"""Whole numbers where something tends to end."""


class Choices:
    """Reads its bytes from the front, once."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """Up to that many of the next bytes."""
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        return self.take(self.left)

    def below(self, bound: int) -> int:
        """A whole number from 0; by one byte where that is enough."""
        size = 1 if bound <= 256 else 2 if bound <= 65_536 else 8
        return int.from_bytes(self.take(size), "little") % bound

    def flag(self, one_in: int = 2) -> bool:
        """True once in so many; False when the bytes have run out."""
        return self.below(one_in) == one_in - 1

    def one_of(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def whole(self, *, signed: bool = False, bits: int = 64) -> int:
        """A whole number of so many bits, rather often a small one or one at an edge."""
        kind = self.below(4)
        if kind < 2:
            number = self.below(10)
        elif kind == 2:
            number = self.one_of(_EDGES)
        else:
            number = int.from_bytes(self.take(8), "little")
        if not signed:
            return number & ((1 << bits) - 1)
        limit = 1 << (bits - 1)
        return max(-limit, min(limit - 1, -number if self.flag(4) else number))

    def blob(self, longest: int = 64) -> bytes:
        return self.take(self.below(longest + 1))

    def text(self, longest: int = 12) -> str:
        """Any characters that UTF-8 can carry."""
        return self.blob(longest).decode("utf-8", "replace")
