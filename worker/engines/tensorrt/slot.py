"""One place where executions of a TensorRT plan run: a stream, buffers, a context, and graphs of the shapes that are hot.

Owns what it makes on the device and in pinned memory until `close`. One thread uses it at a time; slots run side by side, so
one's copies overlap another's computing. Which profile fits is `plan.py`'s question.

An execution is queued as a whole: inputs to the device, the plan, outputs back. A shape that keeps coming gets a graph of that
whole, launched at once instead of call by call. A graph holds addresses and is tied to the state of the context it was
captured from, so each has a context of its own, and all go when a buffer moves.
Source: TensorRT developer guide, "CUDA Graphs".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from runtime.errors import InvalidArgument, PenstockError
from worker.cuda.driver import CudaFailed, Driver
from worker.cuda.memory import DeviceBuffer
from worker.engine import Array, EngineFailed
from worker.engines.tensorrt.buffers import TensorBuffers
from worker.engines.tensorrt.execution import Execution, OutputGrowth
from worker.engines.tensorrt.plan import Plan, Profile, Shape, choose_profile, refusal

_HOT_RUNS = 3
"""Runs of a shape before it gets a graph while there is room for one."""
_HOT_RUNS_WHEN_FULL = 64
"""And when another shape's has to go: capturing costs as much as many launches save."""
_log = structlog.get_logger("penstock.engine.tensorrt")

Key = tuple[Shape, ...]
"""The inputs' shapes, in the plan's order."""


@dataclass(frozen=True, slots=True)
class SlotOptions:
    graphs: int = 0
    """Shapes that may have a graph; 0 = none are captured here."""
    spin: bool = False
    """Wait for the device with a busy core: some µs sooner."""


@dataclass(frozen=True, slots=True)
class _Graph:
    handle: int
    execution: Execution
    output_shapes: Mapping[str, Shape]


class Slot:
    """Made on one thread, used on its lane's. `outputs` are those to give back, in this order."""

    def __init__(
        self,
        plan: Plan,
        make_execution: Callable[[DeviceBuffer], Execution],
        driver: Driver,
        device: int,
        outputs: Sequence[str],
        options: SlotOptions,
    ) -> None:
        self._plan, self._make_execution, self._driver, self._device = plan, make_execution, driver, device
        self._options, self._wanted = options, tuple(outputs)
        self._capturable = options.graphs > 0 and not any(tensor.on_host for tensor in (*plan.inputs, *plan.outputs))
        self._graphs: OrderedDict[Key, _Graph] = OrderedDict()
        self._runs: OrderedDict[Key, int] = OrderedDict()
        self._inputs = {tensor.name: TensorBuffers(tensor, driver, plan.largest(tensor)) for tensor in plan.inputs}
        self._outputs = {tensor.name: TensorBuffers(tensor, driver) for tensor in plan.outputs}
        self._activations = DeviceBuffer(driver)
        self._execution: Execution | None = None
        self._stream = self._event = 0
        driver.use(device)
        try:
            self._stream, self._event = driver.create_stream(), driver.create_event()
            self._activations.reserve(plan.activation_bytes, plan.activation_bytes)
            self._execution = make_execution(self._activations)
        except BaseException:
            self.close()
            raise

    @property
    def device_bytes(self) -> int:
        """Activations and buffers; the weights are the plan's, shared by all slots."""
        return self._activations.capacity_bytes + sum(buffers.device.capacity_bytes for buffers in self._every())

    @property
    def pinned_bytes(self) -> int:
        return sum(buffers.pinned.capacity_bytes for buffers in self._every())

    @property
    def graphs(self) -> int:
        """Shapes that have a graph now."""
        return len(self._graphs)

    def stage(self, shapes: Mapping[str, Shape]) -> dict[str, Array] | None:
        """Pinned arrays to write the next run's inputs into; None where no profile takes the shapes, which the run says."""
        if shapes.keys() != self._inputs.keys() or choose_profile(self._plan, shapes) is None:
            return None
        self._driver.use(self._device)
        self._reserve_inputs(shapes)
        return {name: buffers.view(shapes[name]) for name, buffers in self._inputs.items()}

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """One execution; the outputs are the caller's. Raises InvalidArgument, EngineFailed, CudaFailed, DeviceMemoryFull."""
        execution = self._open()
        shapes = self._shapes(inputs)
        key = tuple(shapes.values())
        self._driver.use(self._device)
        try:
            graph = self._graphs.get(key)
            if graph is not None:
                return self._replay(key, graph, inputs)
            profile = choose_profile(self._plan, shapes)
            if profile is None:
                raise InvalidArgument(f"this model's TensorRT plan does not take the request: {refusal(self._plan, shapes)}")
            return self._execute(execution, key, profile, shapes, inputs)
        except BaseException:
            self._settle()
            raise

    def close(self) -> None:
        """Free everything. Safe to call twice, and after a failure."""
        self._driver.use(self._device)
        self._settle()
        self._forget_graphs()
        execution, self._execution = self._execution, None
        if execution is not None:
            execution.close()
        stream, self._stream = self._stream, 0
        event, self._event = self._event, 0
        _each([buffer.close for buffers in self._every() for buffer in (buffers.device, buffers.pinned)])
        _each([self._activations.close])
        _each([partial(self._driver.destroy_event, event)] if event else [])
        _each([partial(self._driver.destroy_stream, stream)] if stream else [])

    def _open(self) -> Execution:
        if self._execution is None:
            raise EngineFailed("the model was closed")
        return self._execution

    def _every(self) -> tuple[TensorBuffers, ...]:
        return (*self._inputs.values(), *self._outputs.values())

    def _shapes(self, inputs: Mapping[str, Array]) -> dict[str, Shape]:
        if missing := self._inputs.keys() - inputs.keys():
            raise InvalidArgument(f"the request lacks inputs {sorted(missing)}; a TensorRT plan needs all of its inputs")
        return {name: tuple(inputs[name].shape) for name in self._inputs}

    def _replay(self, key: Key, graph: _Graph, inputs: Mapping[str, Array]) -> list[Array]:
        self._graphs.move_to_end(key)
        self._write(inputs)
        self._driver.launch(graph.handle, self._stream)
        self._wait()
        return [self._outputs[name].read(graph.output_shapes[name]) for name in self._wanted]

    def _execute(
        self, execution: Execution, key: Key, profile: Profile, shapes: Mapping[str, Shape], inputs: Mapping[str, Array]
    ) -> list[Array]:
        self._reserve_inputs(shapes)
        self._write(inputs)
        known, growing = self._prepare(execution, profile, shapes)
        self._enqueue(execution, shapes, known)
        self._wait()
        if growing:
            known |= self._fetch_grown(growing)
        outputs = [self._outputs[name].read(known[name]) for name in self._wanted]
        self._capturable &= not growing
        if self._capturable and self._hot(key):
            self._capture(key, profile, shapes)
        return outputs

    def _prepare(
        self, execution: Execution, profile: Profile, shapes: Mapping[str, Shape]
    ) -> tuple[dict[str, Shape], dict[str, OutputGrowth]]:
        """The context knows shapes and addresses, and the outputs have room.

        Gives the outputs' shapes, and those outputs whose shapes come out of their values.
        """
        execution.shape(profile.index, shapes, self._stream)
        for name, buffers in self._inputs.items():
            execution.bind(name, buffers.address)
        known: dict[str, Shape] = {}
        growing: dict[str, OutputGrowth] = {}
        for name, shape in execution.output_shapes().items():
            buffers = self._outputs[name]
            if shape is None:
                growing[name] = execution.bind_growing(name, buffers.device)
                continue
            known[name] = shape
            self._reserve(buffers, shape, execution.most_bytes(name))
            execution.bind(name, buffers.address)
        return known, growing

    def _enqueue(self, execution: Execution, shapes: Mapping[str, Shape], known: Mapping[str, Shape]) -> None:
        for name, buffers in self._inputs.items():
            buffers.send(shapes[name], self._stream)
        execution.enqueue(self._stream)
        for name in self._wanted:
            if name in known:
                self._outputs[name].fetch(known[name], self._stream)

    def _fetch_grown(self, growing: Mapping[str, OutputGrowth]) -> dict[str, Shape]:
        """Copy back what only now has a size."""
        shapes: dict[str, Shape] = {}
        for name, growth in growing.items():
            if growth.shape is None:
                raise EngineFailed(f"TensorRT did not say how large output {name!r} became")
            shapes[name] = growth.shape
            self._outputs[name].pinned.reserve(self._outputs[name].tensor.size_bytes(growth.shape))
            self._outputs[name].fetch(growth.shape, self._stream)
        self._wait()
        return shapes

    def _capture(self, key: Key, profile: Profile, shapes: Mapping[str, Shape]) -> None:
        """Keep this shape's execution as a graph. The request has its answer already; a failure only turns graphs off."""
        while len(self._graphs) >= self._options.graphs:
            self._forget(self._graphs.popitem(last=False)[1])
        try:
            execution = self._make_execution(self._activations)
            known, _ = self._prepare(execution, profile, shapes)
            # Once outside of the capture: the context finishes what a new shape and new addresses left for later.
            self._enqueue(execution, shapes, known)
            self._driver.synchronise(self._stream)
            if not execution.capturable(self._stream):
                raise EngineFailed("this plan cannot be captured as a graph")
            self._graphs[key] = _Graph(self._captured(execution, shapes, known), execution, known)
        except PenstockError as error:
            self._capturable = False
            _log.warning("cuda_graphs_off", reason=error.message)
            self._settle()

    def _captured(self, execution: Execution, shapes: Mapping[str, Shape], known: Mapping[str, Shape]) -> int:
        self._driver.begin_capture(self._stream)
        try:
            self._enqueue(execution, shapes, known)
        except BaseException:
            _each([lambda: self._driver.destroy_graph(self._driver.end_capture(self._stream))])
            raise
        return self._driver.end_capture(self._stream)

    def _hot(self, key: Key) -> bool:
        """Whether this run of the shape is the one that earns it a graph. Remembers a bounded number of shapes."""
        runs = self._runs.pop(key, 0) + 1
        wanted = _HOT_RUNS if len(self._graphs) < self._options.graphs else _HOT_RUNS_WHEN_FULL
        if runs >= wanted:
            return True
        self._runs[key] = runs
        while len(self._runs) > 4 * self._options.graphs:
            self._runs.popitem(last=False)
        return False

    def _reserve_inputs(self, shapes: Mapping[str, Shape]) -> None:
        for name, buffers in self._inputs.items():
            self._reserve(buffers, shapes[name])

    def _reserve(self, buffers: TensorBuffers, shape: Shape, largest_bytes: int = 0) -> None:
        if not buffers.holds(shape):
            self._forget_graphs()  # before anything moves: no graph outlives an address that it holds
            buffers.reserve(shape, largest_bytes)

    def _write(self, inputs: Mapping[str, Array]) -> None:
        for name, buffers in self._inputs.items():
            buffers.write(inputs[name])

    def _wait(self) -> None:
        if self._options.spin:
            self._driver.synchronise(self._stream)
            return
        self._driver.record(self._event, self._stream)
        self._driver.wait(self._event)

    def _settle(self) -> None:
        """After a failure: nothing queued may write to a buffer that is used again, or freed."""
        if self._stream:
            _each([partial(self._driver.synchronise, self._stream)])

    def _forget_graphs(self) -> None:
        while self._graphs:
            self._forget(self._graphs.popitem()[1])

    def _forget(self, graph: _Graph) -> None:
        _each([partial(self._driver.destroy_graph, graph.handle)])
        graph.execution.close()


def _each(calls: Iterable[Callable[[], None]]) -> None:
    """Clean up, whatever fails: a device that failed once fails every call."""
    for call in calls:
        try:
            call()
        except CudaFailed as error:
            _log.warning("cuda_call_failed", reason=error.message)
