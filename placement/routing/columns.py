"""Numbers by slot, read two ways: one at a time by plain Python, and all at once by numpy. The same memory for both."""

from __future__ import annotations

from array import array

import numpy as np

from placement.candidates import Floats


class Column:
    """`values` reads one number in nanoseconds; `array` is the same memory for numpy."""

    __slots__ = ("array", "empty", "values")

    def __init__(self, empty: float = 0.0) -> None:
        """`empty`: what a slot holds of which nothing is known."""
        self.empty = empty
        self.values: array[float] = array("d")
        self.array: Floats = np.zeros(0, dtype=np.float64)

    def grow(self, size: int) -> None:
        if size > len(self.values):
            self.values = array("d", [*self.values, *([self.empty] * (size - len(self.values)))])
            self.array = np.frombuffer(self.values, dtype=np.float64)
