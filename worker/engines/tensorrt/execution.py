"""One TensorRT execution context: told its profile, shapes and addresses, and enqueued.

Owns the context and remembers what it was told, so that it is told again only what changed. Which memory it works in is its
slot's; it copies nothing and waits for nothing. Source: TensorRT developer guide, "Working with Dynamic Shapes".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from runtime.errors import InvalidArgument, PenstockError
from worker.cuda.memory import DeviceBuffer
from worker.engine import EngineFailed
from worker.engines.tensorrt.plan import Plan, Shape
from worker.engines.tensorrt.runtime import TensorRt

_log = structlog.get_logger("penstock.engine.tensorrt")


class Execution:
    """Used by one thread at a time. `activations` is the device memory it works in, which outlives it."""

    def __init__(self, tensorrt: TensorRt, context: Any, plan: Plan, activations: DeviceBuffer) -> None:
        self._tensorrt, self._context, self._plan = tensorrt, context, plan
        self._profile: int | None = None  # told always: only a plan's first context starts with one
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        context.set_device_memory(activations.address, activations.capacity_bytes)

    def shape(self, profile: int, shapes: Mapping[str, Shape], stream: int) -> None:
        """Tell it the inputs' shapes, and which profile they are of. The stream has nothing queued."""
        if profile != self._profile:
            self._checked(self._context.set_optimization_profile_async(profile, stream), "optimisation profile")
            self._profile = profile
            self._shapes.clear()  # they were the other profile's
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                self._checked(self._context.set_input_shape(name, shape), f"shape {list(shape)} of input {name!r}")
                self._shapes[name] = shape

    def output_shapes(self) -> dict[str, Shape | None]:
        """What the inputs' shapes make of the outputs; None where only their values tell. Raises InvalidArgument.

        The addresses of inputs on the host are set, and their values written.
        """
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            _log.warning("shapes_refused", reason=self._tensorrt.messages.last())
            raise InvalidArgument(
                "the model refuses inputs of these shapes together; the worker's log has the reason"
            ) from error
        if missing:
            raise EngineFailed(f"TensorRT lacks the shapes of {sorted(missing)}: a bug of the engine")
        shapes = {tensor.name: tuple(self._context.get_tensor_shape(tensor.name)) for tensor in self._plan.outputs}
        return {name: None if any(size < 0 for size in shape) else shape for name, shape in shapes.items()}

    def most_bytes(self, output: str) -> int:
        """Upper bound of an output's size under the current profile; 0 = unknown."""
        return max(0, int(self._context.get_max_output_size(output)))

    def bind(self, name: str, address: int) -> None:
        if self._addresses.get(name) != address:
            self._checked(self._context.set_tensor_address(name, address), f"address of {name!r}")
            self._addresses[name] = address

    def bind_growing(self, name: str, buffer: DeviceBuffer) -> OutputGrowth:
        """An output whose size comes out while it is computed: `buffer` grows under it."""
        if name not in self._allocators:
            growth = OutputGrowth(buffer)
            self._allocators[name] = (growth, _allocator(self._tensorrt, growth))
            self._checked(self._context.set_output_allocator(name, self._allocators[name][1]), f"allocator of {name!r}")
        found: OutputGrowth = self._allocators[name][0]
        found.shape, found.failure = None, None
        return found

    def capturable(self, stream: int) -> bool:
        """Whether this plan, with these shapes, can be captured as a graph. Asked where the runtime knows."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return bool(ask(stream)) if ask is not None else True

    def enqueue(self, stream: int) -> None:
        """Raises EngineFailed, or what stopped an output from growing."""
        if self._context.execute_async_v3(stream):
            return
        for growth, _ in self._allocators.values():
            if growth.failure is not None:
                raise growth.failure
        _log.error("execution_failed", reason=self._tensorrt.messages.last())
        raise EngineFailed("TensorRT failed on this request; the worker's log has the reason")

    def close(self) -> None:
        self._allocators.clear()
        self._context = None

    def _checked(self, accepted: bool, what: str) -> None:
        if not accepted:
            _log.error("context_refused", what=what, reason=self._tensorrt.messages.last())
            raise EngineFailed(f"TensorRT does not take the {what}; the worker's log has the reason")


class OutputGrowth:
    """One output of unknown size, during one execution."""

    def __init__(self, buffer: DeviceBuffer) -> None:
        self._buffer = buffer
        self.shape: Shape | None = None
        self.failure: PenstockError | None = None

    def reallocate(self, size_bytes: int) -> int | None:
        """The address to write to. None tells TensorRT that there is none: nothing may be raised through it."""
        try:
            self._buffer.reserve(size_bytes)
        except PenstockError as error:
            self.failure = error
            return None
        return self._buffer.address


def _allocator(tensorrt: TensorRt, growth: OutputGrowth) -> Any:
    """TensorRT's own class, which exists only where the package does."""
    parent: Any = tensorrt.module.IOutputAllocator

    class Allocator(parent):  # type: ignore[misc]
        def __init__(self) -> None:
            parent.__init__(self)

        def reallocate_output(self, _name: str, _memory: int, size: int, _alignment: int) -> int | None:
            return growth.reallocate(size)

        def reallocate_output_async(self, _name: str, _memory: int, size: int, _alignment: int, _stream: int) -> int | None:
            return growth.reallocate(size)

        def notify_shape(self, _name: str, shape: Any) -> None:
            growth.shape = tuple(shape)

    return Allocator()
