"""CUDA, as far as an engine of ours needs it: memory, copies, streams, events, captured graphs.

The only module that knows NVIDIA's bindings. Addresses and handles are plain integers, as TensorRT takes them; sizes are in
bytes. Never decides what to copy or when. `fake.py` keeps the same contract without a GPU.

Calls are made from the thread that called `use`: the current device belongs to a thread. Those that wait release the GIL.
Source: CUDA Runtime API, modules Memory, Stream, Event and Graph Management.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

from runtime.errors import Code, PenstockError
from worker.engine import EngineUnavailable


class CudaFailed(PenstockError, code=Code.INTERNAL, reason="CUDA_FAILED"):
    """A CUDA call failed, or an earlier one did whose work ran later."""


class DeviceMemoryFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="DEVICE_MEMORY_FULL"):
    """The device, or the host's pinned memory, has no room for what was asked."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU."""

    index: int
    name: str
    compute_capability: str
    """Such as 8.0."""
    memory_bytes: int


class Driver(Protocol):
    """What the engine asks of CUDA. Every call may raise CudaFailed."""

    def devices(self) -> tuple[Device, ...]: ...

    def use(self, device: int) -> None:
        """Make it the calling thread's device."""
        ...

    def allocate(self, size_bytes: int) -> int:
        """Device memory, aligned to 256 bytes, its content undefined. Raises DeviceMemoryFull."""
        ...

    def free(self, address: int) -> None: ...

    def allocate_pinned(self, size_bytes: int) -> int:
        """Page-locked host memory, its content undefined. Raises DeviceMemoryFull."""
        ...

    def free_pinned(self, address: int) -> None: ...

    def copy_to_device(self, device_address: int, host_address: int, size_bytes: int, stream: int) -> None:
        """Queued; the host memory is pinned, and left alone until the stream has come so far."""
        ...

    def copy_to_host(self, host_address: int, device_address: int, size_bytes: int, stream: int) -> None:
        """Queued; the host memory is pinned, and not read before the stream has come so far."""
        ...

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def synchronise(self, stream: int) -> None:
        """Wait for all that is queued on it."""
        ...

    def create_event(self) -> int:
        """An event whose waiting thread sleeps instead of spinning."""
        ...

    def destroy_event(self, event: int) -> None: ...

    def record(self, event: int, stream: int) -> None: ...

    def wait(self, event: int) -> None:
        """Until the stream has come to where the event was recorded."""
        ...

    def begin_capture(self, stream: int) -> None:
        """What the calling thread queues on it from now on is kept instead of run; the thread may not allocate or wait."""
        ...

    def end_capture(self, stream: int) -> int:
        """What was kept, ready to launch. Raises CudaFailed where it cannot be replayed; the capture has ended even so."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...


def open_driver() -> Driver:
    """The machine's own. Raises EngineUnavailable naming what is missing."""
    try:
        bindings = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise EngineUnavailable(
            "engine 'tensorrt' needs the package cuda-bindings: pip install 'penstock[tensorrt]'"
        ) from error
    driver = CudaDriver(bindings)
    devices = driver.devices()
    if not devices:
        raise EngineUnavailable("engine 'tensorrt' needs an NVIDIA GPU; the driver is there and shows none")
    return driver


class CudaDriver:
    """`Driver` over cuda-bindings. Handles travel as integers both ways."""

    def __init__(self, bindings: Any) -> None:
        self._cuda = bindings

    def devices(self) -> tuple[Device, ...]:
        """Raises EngineUnavailable where there is no driver, or one too old for the bindings."""
        code, count = self._cuda.cudaGetDeviceCount()
        if code == self._cuda.cudaError_t.cudaErrorNoDevice:
            return ()
        if code != self._cuda.cudaError_t.cudaSuccess:
            raise EngineUnavailable(
                f"engine 'tensorrt' needs an NVIDIA driver for CUDA {self._runtime_major()} or newer; this machine has"
                f" {self._driver_version()} ({self._name(code)})"
            )
        return tuple(self._device(index) for index in range(count))

    def use(self, device: int) -> None:
        self._call("cudaSetDevice", device)

    def allocate(self, size_bytes: int) -> int:
        return int(self._call("cudaMalloc", size_bytes))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_pinned(self, size_bytes: int) -> int:
        return int(self._call("cudaHostAlloc", size_bytes, self._cuda.cudaHostAllocDefault))

    def free_pinned(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def copy_to_device(self, device_address: int, host_address: int, size_bytes: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", device_address, host_address, size_bytes, kind, stream)

    def copy_to_host(self, host_address: int, device_address: int, size_bytes: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host_address, device_address, size_bytes, kind, stream)

    def create_stream(self) -> int:
        # Non-blocking: it does not wait for the default stream, which other slots' libraries may use.
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronise(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def create_event(self) -> int:
        flags = self._cuda.cudaEventBlockingSync | self._cuda.cudaEventDisableTiming
        return int(self._call("cudaEventCreateWithFlags", flags))

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait(self, event: int) -> None:
        self._call("cudaEventSynchronize", event)

    def begin_capture(self, stream: int) -> None:
        # Thread-local: other slots go on allocating and waiting meanwhile.
        self._call("cudaStreamBeginCapture", stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)

    def end_capture(self, stream: int) -> int:
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _device(self, index: int) -> Device:
        properties = self._call("cudaGetDeviceProperties", index)
        name = properties.name.decode(errors="replace") if isinstance(properties.name, bytes) else str(properties.name)
        return Device(index, name.rstrip("\0"), f"{properties.major}.{properties.minor}", int(properties.totalGlobalMem))

    def _call(self, function: str, *arguments: Any) -> Any:
        """The call's one result, or None."""
        code, *results = getattr(self._cuda, function)(*arguments)
        if code == self._cuda.cudaError_t.cudaSuccess:
            return results[0] if results else None
        self._cuda.cudaGetLastError()  # what is not sticky must not be found by TensorRT's own next check
        if code == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            raise DeviceMemoryFull(
                f"{function} of {arguments[0]} bytes: the GPU has no room; unload a model, or give this one fewer instances",
                retry_after_s=1.0,
            )
        raise CudaFailed(f"{function} failed: {self._name(code)}; the worker may have to be restarted")

    def _name(self, code: Any) -> str:
        _, name = self._cuda.cudaGetErrorName(code)
        _, sentence = self._cuda.cudaGetErrorString(code)
        return f"{_text(name)}, {_text(sentence)}"

    def _driver_version(self) -> str:
        code, version = self._cuda.cudaDriverGetVersion()
        return f"one for CUDA {_version(version)}" if code == self._cuda.cudaError_t.cudaSuccess and version else "none"

    def _runtime_major(self) -> int:
        """Drivers serve every minor version of their major one."""
        _, version = self._cuda.cudaRuntimeGetVersion()
        return int(version) // 1000


def _version(number: int) -> str:
    """13050 → 13.5, CUDA's way to write versions."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
