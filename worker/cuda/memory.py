"""Buffers that an execution slot keeps: device memory and pinned host memory, reused, and grown up to a limit.

Owns what it allocated until `close`. A buffer that grows moves, so whoever noted its address has to ask again; what it held is
lost. Never copies.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.cuda.driver import CudaFailed, Driver

_GRAIN_BYTES = 512
"""Sizes are multiples of it: shapes that differ by a little share an allocation."""


class _Buffer:
    """Memory of one kind."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.address = 0
        self.capacity_bytes = 0

    def reserve(self, size_bytes: int, limit_bytes: int = 0) -> bool:
        """Room for this much; True where the buffer moved. Raises DeviceMemoryFull, and then holds nothing.

        `limit_bytes` is the most that will ever be asked, where that is known: it does not grow ahead beyond it.
        """
        if 0 < self.capacity_bytes >= size_bytes:
            return False
        wanted_bytes = max(size_bytes, 2 * self.capacity_bytes, 1)
        if limit_bytes > 0:
            wanted_bytes = max(size_bytes, min(wanted_bytes, limit_bytes), 1)
        wanted_bytes = -(-wanted_bytes // _GRAIN_BYTES) * _GRAIN_BYTES
        self.close()  # first, so that old and new need not fit together
        self.address = self._allocate(wanted_bytes)
        self.capacity_bytes = wanted_bytes
        return True

    def close(self) -> None:
        """Free it. Safe to call twice."""
        address, self.address, self.capacity_bytes = self.address, 0, 0
        if address:
            self._free(address)

    def _allocate(self, size_bytes: int) -> int:
        raise NotImplementedError

    def _free(self, address: int) -> None:
        raise NotImplementedError


class DeviceBuffer(_Buffer):
    """Memory of the GPU."""

    def _allocate(self, size_bytes: int) -> int:
        return self._driver.allocate(size_bytes)

    def _free(self, address: int) -> None:
        self._driver.free(address)


class PinnedBuffer(_Buffer):
    """Page-locked host memory, which copies run from and to beside the CPU's work."""

    def _allocate(self, size_bytes: int) -> int:
        return self._driver.allocate_pinned(size_bytes)

    def _free(self, address: int) -> None:
        self._driver.free_pinned(address)

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Its first bytes as an array; valid until it grows or is closed. Needs the room reserved."""
        size_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size_bytes > self.capacity_bytes:
            raise CudaFailed(f"{size_bytes} bytes are viewed in a buffer of {self.capacity_bytes}: a bug of the engine")
        if not size_bytes:
            return np.zeros(shape, dtype)
        raw = (ctypes.c_uint8 * size_bytes).from_address(self.address)
        return np.frombuffer(memoryview(raw), dtype).reshape(shape)
