"""Embeddings as an upstream gives them, as one array. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import numpy as np

from worker.engine import Array
from worker.engines.upstream.json import Malformed, items_of


def decimals_of(value: object) -> Array:
    """float32 [width] of numbers in JSON. Raises Malformed; what float32 cannot hold becomes infinite."""
    try:
        with np.errstate(over="ignore"):
            array = np.array(items_of(value), np.float64).astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise Malformed("an embedding of something else than numbers") from error
    if array.ndim != 1:
        raise Malformed(f"an embedding of {array.ndim} dimensions")
    return array


def base64_of(text: str) -> Array:
    """float32 [width] of little-endian bytes in base64. Raises Malformed."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise Malformed("an embedding that is no base64") from error
    if len(raw) % 4:
        raise Malformed(f"an embedding of {len(raw)} bytes")
    return np.frombuffer(raw, "<f4")


def stacked(vectors: Sequence[Array]) -> Array:
    """float32 [rows, width]. Raises Malformed for vectors that are empty or of several widths, or hold no finite numbers."""
    widths = {len(vector) for vector in vectors}
    if len(widths) != 1 or widths == {0}:
        raise Malformed(f"embeddings of {sorted(widths)} numbers")
    array = np.stack(vectors).astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise Malformed("an embedding with numbers that are not finite")
    return array
