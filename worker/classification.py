"""Triton's classification extension: an output's highest values as "value:index[:label]" strings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.engine import Array
from worker.tensors import object_array


def top_classes(array: Array, count: int, labels: Sequence[str], *, batched: bool) -> Array:
    """BYTES [rows, classes], or [classes] without a batch dimension; highest first, ties by index, never more than there are."""
    rows = array.reshape(array.shape[0] if batched else 1, -1)
    taken = min(count, rows.shape[1])
    # A stable sort of the negated values keeps the smaller index first; float64 holds what orders them.
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :taken]
    elements = [_element(row[index], int(index), labels) for row, indices in zip(rows, order, strict=True) for index in indices]
    return object_array(elements).reshape((len(rows), taken) if batched else (taken,))


def _element(value: object, index: int, labels: Sequence[str]) -> bytes:
    number = str(int(value)) if isinstance(value, np.integer) else f"{float(value):f}"  # type: ignore[arg-type]
    text = f"{number}:{index}"
    return (f"{text}:{labels[index]}" if index < len(labels) else text).encode()
