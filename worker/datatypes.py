"""The tensor datatypes of the Open Inference Protocol, and how each lies in memory.

Owns the one table of names. BF16 has no numpy type: its bits travel as uint16. BYTES elements are Python bytes in object
arrays. Source: Triton's model_config.proto for the DataType numbers; the protocol's "Tensor Data Types" for the names and
sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype. `contents` is the field of InferTensorContents that carries it; empty where only raw bytes do."""

    name: str
    number: int
    dtype: np.dtype[Any]
    contents: str

    @property
    def size_bytes(self) -> int:
        """Bytes of one element; 0 where elements vary in length."""
        return 0 if self.name == "BYTES" else self.dtype.itemsize


def _datatype(name: str, number: int, dtype: str, contents: str) -> tuple[str, Datatype]:
    return name, Datatype(name, number, np.dtype(dtype), contents)


DATATYPES = MappingProxyType(
    dict(
        (
            _datatype("BOOL", 1, "?", "bool_contents"),
            _datatype("UINT8", 2, "u1", "uint_contents"),
            _datatype("UINT16", 3, "<u2", "uint_contents"),
            _datatype("UINT32", 4, "<u4", "uint_contents"),
            _datatype("UINT64", 5, "<u8", "uint64_contents"),
            _datatype("INT8", 6, "i1", "int_contents"),
            _datatype("INT16", 7, "<i2", "int_contents"),
            _datatype("INT32", 8, "<i4", "int_contents"),
            _datatype("INT64", 9, "<i8", "int64_contents"),
            _datatype("FP16", 10, "<f2", ""),
            _datatype("FP32", 11, "<f4", "fp32_contents"),
            _datatype("FP64", 12, "<f8", "fp64_contents"),
            _datatype("BYTES", 13, "O", "bytes_contents"),
            _datatype("BF16", 14, "<u2", ""),
        )
    )
)
