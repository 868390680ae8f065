"""TensorRT: plans compiled for a GPU, run from pinned memory, with CUDA graphs for shapes that keep coming.

Owns the open plan and its slots, one execution context and stream for each of the manifest's instances. Runs on whichever of
the three packages the plan was made for: full, RTX or lean. Never falls back: a plan for another GPU or another runtime is
refused. Parameters of a manifest it reads: `device` (cuda, cuda:<n>), `file` (model.plan), `cuda_graphs` (auto, off, or how
many shapes may have one), `wait` (sleep, spin), `kernel_specialization` (lazy, eager, none; TensorRT-RTX).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from worker.cuda.driver import Device, Driver, open_driver
from worker.cuda.memory import DeviceBuffer
from worker.engine import Array, EngineFailed, EngineUnavailable, ModelRefused
from worker.engines.described import choice, engine_inputs, engine_outputs, model_file
from worker.engines.tensorrt.contexts import SPECIALISATIONS, Contexts, compiles_here
from worker.engines.tensorrt.execution import Execution
from worker.engines.tensorrt.plan import Plan, check_spec, read_plan
from worker.engines.tensorrt.runtime import TensorRt, mismatch, open_plan, tensorrt_for
from worker.engines.tensorrt.slot import Slot, SlotOptions
from worker.types import ModelSpec

PLAN = "model.plan"
_GRAPH_SHAPES = 16
_MOST_GRAPH_SHAPES = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """What a manifest's parameters ask for."""

    device: int = 0
    graph_shapes: int = _GRAPH_SHAPES
    captured: bool = False
    """Graphs are captured by us also where the runtime would capture its own."""
    spin: bool = False
    specialisation: str = "lazy"


class TensorRtEngine:
    """One plan. Implements `TensorEngine` and `StagingEngine`."""

    utf8_bytes = True

    def __init__(self, spec: ModelSpec, plan: Plan, slots: Sequence[Slot], contexts: Contexts, kept: Any) -> None:
        self.slots = len(slots)
        self._datatypes = {tensor.name: tensor.datatype for tensor in engine_inputs(spec)}
        self._weights_bytes = plan.weights_bytes
        self._slots = list(slots)
        self._contexts = contexts
        self._kept = kept  # the runtime and the engine, which live as long as their contexts

    @property
    def device_bytes(self) -> int:
        """GPU memory held: weights, activations, buffers. What TensorRT and CUDA keep for themselves is not counted."""
        return self._weights_bytes + sum(slot.device_bytes for slot in self._slots) if self._slots else 0

    @property
    def pinned_bytes(self) -> int:
        """Page-locked host memory held."""
        return sum(slot.pinned_bytes for slot in self._slots)

    def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
        """One execution; releases the GIL while it waits. Raises InvalidArgument for shapes outside of the plan's profiles."""
        return self._slot(slot).run(inputs)

    def staging(self, shapes: Mapping[str, tuple[tuple[int, ...], str]], slot: int = 0) -> Mapping[str, Array] | None:
        """The slot's pinned memory, so that gathering a batch is the only copy before the device's own."""
        if any(self._datatypes.get(name) != datatype for name, (_, datatype) in shapes.items()):
            return None
        return self._slot(slot).stage({name: shape for name, (shape, _) in shapes.items()})

    def _slot(self, slot: int) -> Slot:
        if not self._slots:
            raise EngineFailed("the model was closed")
        return self._slots[slot]

    def close(self) -> None:
        """Safe to call twice."""
        slots, self._slots = self._slots, []
        for slot in slots:
            slot.close()
        if slots:
            self._contexts.close()
        self._kept = None


def open_tensorrt(spec: ModelSpec, folder: Path) -> TensorRtEngine:
    """Open the plan on the GPU and check it against the spec. Raises EngineUnavailable naming what is missing, ModelRefused."""
    settings = read_settings(spec)
    file = model_file(spec, folder, PLAN)
    tensorrt, driver, device = machine_for(spec, settings)
    return assemble(spec, file.read_bytes(), tensorrt, driver, device, settings)


def machine_for(spec: ModelSpec, settings: Settings) -> tuple[TensorRt, Driver, Device]:
    """The runtime, the driver and the GPU that the model asks for. Raises EngineUnavailable naming what is missing."""
    tensorrt = tensorrt_for(spec)
    driver = open_driver()
    return tensorrt, driver, _device(spec, settings, driver.devices())


def assemble(
    spec: ModelSpec, plan_bytes: bytes, tensorrt: TensorRt, driver: Driver, device: Device, settings: Settings
) -> TensorRtEngine:
    """The engine over this runtime and this driver. Raises ModelRefused, DeviceMemoryFull."""
    opened = open_checked(spec, plan_bytes, tensorrt, driver, device, settings)
    check_spec(spec, opened.plan)
    options = SlotOptions(graphs=0 if opened.built_in_graphs else settings.graph_shapes, spin=settings.spin)
    outputs = [output.name for output in engine_outputs(spec)]
    slots: list[Slot] = []
    try:
        for _ in range(spec.instances):
            slots.append(Slot(opened.plan, opened.make_execution, driver, device.index, outputs, options))  # noqa: PERF401
    except BaseException:
        for slot in slots:
            slot.close()
        raise
    return TensorRtEngine(spec, opened.plan, slots, opened.contexts, opened)


@dataclass(frozen=True, slots=True)
class Opened:
    """A plan of any kind on this machine's GPU. The runtime and the engine outlive all contexts."""

    plan: Plan
    contexts: Contexts
    make_execution: Callable[[DeviceBuffer], Execution]
    built_in_graphs: bool
    """The runtime captures graphs by itself."""
    engine: Any
    runtime: Any


def open_checked(
    spec: ModelSpec, plan_bytes: bytes, tensorrt: TensorRt, driver: Driver, device: Device, settings: Settings
) -> Opened:
    """Deserialise what was made for this runtime and this GPU. Raises ModelRefused."""
    if spec.compiled_for is not None:
        reason = mismatch(spec.compiled_for, tensorrt.name, tensorrt.version, device)
        if reason is not None:
            raise ModelRefused(f"the plan of model {spec.model!r} does not run here: {reason}")
    driver.use(device.index)
    runtime = tensorrt.module.Runtime(tensorrt.logger)
    engine = open_plan(tensorrt, runtime, plan_bytes, spec)
    plan = read_plan(tensorrt.module, engine, len(plan_bytes))
    built_in = compiles_here(tensorrt) and not settings.captured and settings.graph_shapes > 0
    contexts = Contexts(
        tensorrt,
        engine,
        built_in_graphs=built_in,
        specialisation=settings.specialisation,
        cache_name=f"{spec.digest}-{tensorrt.name}-{tensorrt.version}-{device.compute_capability}",
    )
    return Opened(plan, contexts, partial(_execution, tensorrt, contexts, plan), built_in, engine, runtime)


def read_settings(spec: ModelSpec) -> Settings:
    """Raises ModelRefused naming the parameter, what it says and what it may say."""
    graphs = spec.parameters.get("cuda_graphs", "") or "auto"
    number = int(graphs) if graphs.isascii() and graphs.isdecimal() and len(graphs) <= 3 else 0
    if graphs not in ("auto", "off") and not 1 <= number <= _MOST_GRAPH_SHAPES:
        raise ModelRefused(
            f"parameter 'cuda_graphs' of model {spec.model!r} is {graphs!r}; allowed: auto, off, or a number of shapes from 1"
            f" to {_MOST_GRAPH_SHAPES}"
        )
    specialisation = choice(spec, "kernel_specialization", "eager" if number else "lazy", SPECIALISATIONS)
    if number and specialisation == "lazy":
        raise ModelRefused(
            f"parameter 'kernel_specialization' of model {spec.model!r} is 'lazy' beside a number of 'cuda_graphs'; a captured"
            " graph would keep the first, slower kernels: take eager or none, or cuda_graphs auto"
        )
    return Settings(
        device=_device_number(spec),
        graph_shapes=0 if graphs == "off" else number or _GRAPH_SHAPES,
        captured=number > 0,
        spin=choice(spec, "wait", "sleep", ("sleep", "spin")) == "spin",
        specialisation=specialisation,
    )


def _execution(tensorrt: TensorRt, contexts: Contexts, plan: Plan, activations: DeviceBuffer) -> Execution:
    return Execution(tensorrt, contexts.make(), plan, activations)


def _device_number(spec: ModelSpec) -> int:
    device = spec.parameters.get("device", "") or "cuda"
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not (number.isascii() and number.isdecimal())):
        raise ModelRefused(f"parameter 'device' of model {spec.model!r} is {device!r}; allowed: cuda, cuda:<number>")
    return int(number or 0)


def _device(spec: ModelSpec, settings: Settings, devices: Sequence[Device]) -> Device:
    if settings.device >= len(devices):
        names = ", ".join(device.name for device in devices)
        raise EngineUnavailable(
            f"model {spec.model!r} asks for device cuda:{settings.device}; this machine has {len(devices)}: {names}"
        )
    return devices[settings.device]
