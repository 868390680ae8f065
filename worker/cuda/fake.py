"""A GPU that is not there: `worker.cuda.driver.Driver` over numpy memory, for machines without one.

Its worth is what it refuses: use after free, double free, sizes beyond an allocation, memory that is not pinned, waiting or
allocating during a capture, a thread without a device. Queued work runs when somebody waits for it and not before, so code
that reads too early reads poison, and code that overwrites a source too early sends the wrong bytes. Never fast.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runtime.errors import Code
from worker.cuda.driver import CudaFailed, Device, DeviceMemoryFull

DEFAULT_DEVICE = Device(0, "a GPU that is not there", "8.0", 1 << 30)
_FIRST_DEVICE_ADDRESS = 0x7_0000_0000_0000
_ALIGNMENT_BYTES = 256
_FRESH, _IN_FLIGHT = 0xFF, 0xA5
"""What memory holds that nobody wrote to, which is NaN as a float, and what a copy under way will overwrite."""

_GRAVES = 256

Bytes = NDArray[np.uint8]


class CudaMisused(CudaFailed, code=Code.INTERNAL, reason="CUDA_MISUSED"):
    """What a real GPU would answer with wrong numbers or a dead process."""


@dataclass(frozen=True, slots=True)
class Live:
    """What was made and not freed."""

    device_bytes: int
    pinned_bytes: int
    streams: int
    events: int
    graphs: int


@dataclass(frozen=True, slots=True)
class _Work:
    run: Callable[[], None]
    started: Callable[[], None]
    """When it is queued to run; not when it is captured."""


@dataclass(slots=True)
class _Stream:
    queue: list[_Work] = field(default_factory=list)
    done: int = 0
    """Works that have run since the stream was made."""
    captured: list[_Work] | None = None
    capturing_thread: int = 0


@dataclass(slots=True)
class _Event:
    stream: int = 0
    position: int = 0


class FakeDriver:
    """One machine's GPUs. Slots may call from several threads at once."""

    def __init__(self, devices: Sequence[Device] = (DEFAULT_DEVICE,)) -> None:
        self._devices = tuple(devices)
        self._guard = threading.RLock()
        self._thread = threading.local()
        self._device_memory: dict[int, Bytes] = {}
        self._pinned_memory: dict[int, Bytes] = {}
        self._streams: dict[int, _Stream] = {}
        self._events: dict[int, _Event] = {}
        self._graphs: dict[int, list[_Work]] = {}
        self._handles = itertools.count(1)
        self._next_address = _FIRST_DEVICE_ADDRESS
        self._graves: deque[Bytes] = deque(maxlen=_GRAVES)
        """Pinned memory freed last, kept so that a view of it reads poison and not somebody else's memory."""
        self.launches = 0

    @property
    def live(self) -> Live:
        with self._guard:
            return Live(
                sum(memory.size for memory in self._device_memory.values()),
                sum(memory.size for memory in self._pinned_memory.values()),
                len(self._streams),
                len(self._events),
                len(self._graphs),
            )

    def devices(self) -> tuple[Device, ...]:
        return self._devices

    def use(self, device: int) -> None:
        if not 0 <= device < len(self._devices):
            raise CudaMisused(f"there is no device {device}; there are {len(self._devices)}")
        self._thread.device = device

    def allocate(self, size_bytes: int) -> int:
        with self._guard:
            self._ready_to_allocate(size_bytes)
            free_bytes = self._devices[self._thread.device].memory_bytes - self.live.device_bytes
            if size_bytes > free_bytes:
                raise DeviceMemoryFull(
                    f"{size_bytes} bytes of device memory are asked, {free_bytes} are free", retry_after_s=1.0
                )
            address = self._next_address
            # A gap behind every allocation: what is beyond its end belongs to nobody.
            self._next_address += -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES + 4 * _ALIGNMENT_BYTES
            self._device_memory[address] = np.full(size_bytes, _FRESH, np.uint8)
            return address

    def free(self, address: int) -> None:
        with self._guard:
            self._not_capturing("freeing")
            if self._device_memory.pop(address, None) is None:
                raise CudaMisused(f"device address {address:#x} is freed, and nothing is allocated there")

    def allocate_pinned(self, size_bytes: int) -> int:
        with self._guard:
            self._ready_to_allocate(size_bytes)
            memory = np.full(size_bytes, _FRESH, np.uint8)
            address = memory.ctypes.data
            self._pinned_memory[address] = memory
            return address

    def free_pinned(self, address: int) -> None:
        with self._guard:
            self._not_capturing("freeing")
            memory = self._pinned_memory.pop(address, None)
            if memory is None:
                raise CudaMisused(f"host address {address:#x} is freed, and nothing is pinned there")
            memory[:] = _FRESH  # a view kept too long shows it
            self._graves.append(memory)

    def copy_to_device(self, device_address: int, host_address: int, size_bytes: int, stream: int) -> None:
        def copy() -> None:
            self.device_bytes(device_address, size_bytes)[:] = self._pinned(host_address, size_bytes)

        self._pinned(host_address, size_bytes)
        self.device_bytes(device_address, size_bytes)
        self.enqueue(stream, copy)

    def copy_to_host(self, host_address: int, device_address: int, size_bytes: int, stream: int) -> None:
        def copy() -> None:
            self._pinned(host_address, size_bytes)[:] = self.device_bytes(device_address, size_bytes)

        def poison() -> None:
            self._pinned(host_address, size_bytes)[:] = _IN_FLIGHT

        self._pinned(host_address, size_bytes)
        self.device_bytes(device_address, size_bytes)
        self.enqueue(stream, copy, poison)

    def create_stream(self) -> int:
        with self._guard:
            self._has_device()
            stream = next(self._handles)
            self._streams[stream] = _Stream()
            return stream

    def destroy_stream(self, stream: int) -> None:
        with self._guard:
            if self._stream(stream).queue:
                raise CudaMisused(f"stream {stream} is destroyed with work queued on it")
            del self._streams[stream]

    def synchronise(self, stream: int) -> None:
        with self._guard:
            self._not_capturing("waiting")
            found = self._stream(stream)
            self._run(found, found.done + len(found.queue))

    def create_event(self) -> int:
        with self._guard:
            self._has_device()
            event = next(self._handles)
            self._events[event] = _Event()
            return event

    def destroy_event(self, event: int) -> None:
        with self._guard:
            self._event(event)
            del self._events[event]

    def record(self, event: int, stream: int) -> None:
        with self._guard:
            found, queue = self._event(event), self._stream(stream)
            found.stream, found.position = stream, queue.done + len(queue.queue)

    def wait(self, event: int) -> None:
        with self._guard:
            self._not_capturing("waiting")
            found = self._event(event)
            if found.stream in self._streams:
                self._run(self._streams[found.stream], found.position)

    def begin_capture(self, stream: int) -> None:
        with self._guard:
            found = self._stream(stream)
            if found.captured is not None:
                raise CudaMisused(f"stream {stream} is being captured already")
            found.captured, found.capturing_thread = [], threading.get_ident()

    def end_capture(self, stream: int) -> int:
        with self._guard:
            found = self._stream(stream)
            if found.captured is None:
                raise CudaMisused(f"stream {stream} is not being captured")
            captured, found.captured = found.captured, None
            graph = next(self._handles)
            self._graphs[graph] = captured
            return graph

    def launch(self, graph: int, stream: int) -> None:
        with self._guard:
            if graph not in self._graphs:
                raise CudaMisused(f"graph {graph} is launched, and there is none")
            self.launches += 1
            for work in self._graphs[graph]:
                self._queue(stream, work)

    def destroy_graph(self, graph: int) -> None:
        with self._guard:
            if self._graphs.pop(graph, None) is None:
                raise CudaMisused(f"graph {graph} is destroyed, and there is none")

    def enqueue(self, stream: int, run: Callable[[], None], started: Callable[[], None] = lambda: None) -> None:
        """Queue what a kernel would do; `started` is called when it is queued to run, and not when it is captured."""
        with self._guard:
            self._queue(stream, _Work(run, started))

    def capturing(self, stream: int) -> bool:
        with self._guard:
            return self._stream(stream).captured is not None

    def device_bytes(self, address: int, size_bytes: int) -> Bytes:
        """The memory itself, as a kernel sees it. Raises CudaMisused."""
        return self._within(self._device_memory, address, size_bytes, "device")

    def _pinned(self, address: int, size_bytes: int) -> Bytes:
        return self._within(self._pinned_memory, address, size_bytes, "pinned host")

    def _within(self, memories: dict[int, Bytes], address: int, size_bytes: int, kind: str) -> Bytes:
        with self._guard:
            for start, memory in memories.items():
                if start <= address < start + memory.size:
                    first, there_bytes = address - start, start + memory.size - address
                    if size_bytes > there_bytes:
                        raise CudaMisused(f"{size_bytes} bytes from {kind} address {address:#x}: only {there_bytes} are there")
                    return memory[first : first + size_bytes]
        raise CudaMisused(f"{kind} address {address:#x} is not allocated, or was freed")

    def _queue(self, stream: int, work: _Work) -> None:
        found = self._stream(stream)
        if found.captured is not None:
            found.captured.append(work)
            return
        work.started()
        found.queue.append(work)

    def _run(self, stream: _Stream, position: int) -> None:
        while stream.queue and stream.done < position:
            work = stream.queue.pop(0)
            stream.done += 1
            work.run()

    def _stream(self, stream: int) -> _Stream:
        if stream not in self._streams:
            raise CudaMisused(f"stream {stream} does not exist, or was destroyed")
        return self._streams[stream]

    def _event(self, event: int) -> _Event:
        if event not in self._events:
            raise CudaMisused(f"event {event} does not exist, or was destroyed")
        return self._events[event]

    def _has_device(self) -> None:
        if getattr(self._thread, "device", None) is None:
            raise CudaMisused("this thread has chosen no device; call use() first")

    def _ready_to_allocate(self, size_bytes: int) -> None:
        self._has_device()
        self._not_capturing("allocating")
        if size_bytes <= 0:
            raise CudaMisused(f"{size_bytes} bytes are asked for")

    def _not_capturing(self, what: str) -> None:
        me = threading.get_ident()
        if any(stream.captured is not None and stream.capturing_thread == me for stream in self._streams.values()):
            raise CudaMisused(f"{what} while this thread captures a stream")
