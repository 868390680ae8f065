"""One tensor's two places in a slot: on the device, and in pinned host memory.

Owns both until `close`. Knows how the tensor travels between them; when it does is the slot's question.
"""

from __future__ import annotations

import numpy as np

from worker.cuda.driver import Driver
from worker.cuda.memory import DeviceBuffer, PinnedBuffer
from worker.engine import Array
from worker.engines.tensorrt.plan import Shape, Tensor


class TensorBuffers:
    """Of one input or output. One that TensorRT wants on the host has no device memory."""

    def __init__(self, tensor: Tensor, driver: Driver, largest_bytes: int = 0) -> None:
        self.tensor = tensor
        self._driver = driver
        self._largest_bytes = largest_bytes
        self.device = DeviceBuffer(driver)
        self.pinned = PinnedBuffer(driver)

    @property
    def address(self) -> int:
        """Where TensorRT finds it."""
        return self.pinned.address if self.tensor.on_host else self.device.address

    def holds(self, shape: Shape) -> bool:
        """Whether it has the room without moving."""
        kept_bytes = self.pinned.capacity_bytes
        if not self.tensor.on_host:
            kept_bytes = min(kept_bytes, self.device.capacity_bytes)
        return 0 < kept_bytes >= self.tensor.size_bytes(shape)

    def reserve(self, shape: Shape, largest_bytes: int = 0) -> None:
        """Room for this shape; both places may move. `largest_bytes` is the most that will come, where that is known."""
        size_bytes, largest_bytes = self.tensor.size_bytes(shape), largest_bytes or self._largest_bytes
        self.pinned.reserve(size_bytes, largest_bytes)
        if not self.tensor.on_host:
            self.device.reserve(size_bytes, largest_bytes)

    def view(self, shape: Shape) -> Array:
        """Its pinned memory; valid until it moves."""
        return self.pinned.view(shape, self.tensor.dtype)

    def write(self, array: Array) -> None:
        """Put a request's input into pinned memory, unless it was gathered there."""
        target = self.view(array.shape)
        if array.__array_interface__["data"][0] != target.__array_interface__["data"][0]:
            np.copyto(target, array, casting="no")

    def read(self, shape: Shape) -> Array:
        """An output as the caller's own array."""
        return self.view(shape).copy()

    def send(self, shape: Shape, stream: int) -> None:
        """Queue the copy to the device."""
        size_bytes = self.tensor.size_bytes(shape)
        if size_bytes and not self.tensor.on_host:
            self._driver.copy_to_device(self.device.address, self.pinned.address, size_bytes, stream)

    def fetch(self, shape: Shape, stream: int) -> None:
        """Queue the copy from the device."""
        size_bytes = self.tensor.size_bytes(shape)
        if size_bytes and not self.tensor.on_host:
            self._driver.copy_to_host(self.pinned.address, self.device.address, size_bytes, stream)
