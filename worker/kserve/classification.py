"""Triton's classification extension: an output's highest values as "value:index[:label]" strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worker.engine import Array
from worker.tensors import object_array
from worker.types import TensorSpec


def top_classes(array: Array, spec: TensorSpec, count: int, *, batched: bool) -> Array:
    """BYTES [rows, classes], or [classes] without a batch dimension; highest first, ties by index, at most all."""
    if spec.datatype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    rows = array.reshape(array.shape[0], -1) if batched else array.reshape(1, -1)
    taken = min(count, rows.shape[1])
    # A stable sort of the negated values keeps the smaller index first; float64 holds what orders them.
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :taken]
    elements = [_element(row[index], int(index), spec.labels) for row, best in zip(rows, order, strict=True) for index in best]
    return object_array(elements).reshape((len(rows), taken) if batched else (taken,))


def _element(value: Any, index: int, labels: Sequence[str]) -> bytes:
    number = str(int(value)) if isinstance(value, np.integer) else f"{float(value):f}"
    text = f"{number}:{index}"
    return (f"{text}:{labels[index]}" if index < len(labels) else text).encode()
