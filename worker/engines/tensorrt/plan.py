"""What a TensorRT plan takes and gives: its tensors, its optimisation profiles, and which of them fits a request.

Values and pure decisions, and the one function that reads them off an engine. Never executes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from worker.datatypes import DATATYPES
from worker.engine import ModelRefused
from worker.engines.described import Found, check_tensors
from worker.types import ModelSpec

Shape = tuple[int, ...]

DATATYPE_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "FLOAT": "FP32",
        "HALF": "FP16",
        "BF16": "BF16",
        "INT8": "INT8",
        "UINT8": "UINT8",
        "INT32": "INT32",
        "INT64": "INT64",
        "BOOL": "BOOL",
    }
)
"""TensorRT's DataType by name → KServe's. The others (FP8, INT4, FP4) are not for inputs and outputs."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a plan. -1 in `shape` = it varies."""

    name: str
    datatype: str
    shape: Shape
    on_host: bool = False
    """TensorRT reads or writes it in host memory: its values decide about shapes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """BF16 lies as uint16 bits."""
        return DATATYPES[self.datatype].dtype

    def size_bytes(self, shape: Shape) -> int:
        return volume(shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """What one profile takes of one input; it was tuned for `optimum`."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def holds(self, shape: Shape) -> bool:
        return len(shape) == len(self.minimum) and all(
            low <= size <= high for low, size, high in zip(self.minimum, shape, self.maximum, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Profile:
    index: int
    ranges: Mapping[str, ShapeRange]
    """By input."""

    def holds(self, shapes: Mapping[str, Shape]) -> bool:
        return all(wanted.holds(shapes[name]) for name, wanted in self.ranges.items())


@dataclass(frozen=True, slots=True)
class Plan:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    profiles: tuple[Profile, ...]
    activation_bytes: int
    """Device memory that one execution works in."""
    weights_bytes: int

    def largest(self, tensor: Tensor) -> int:
        """Bytes of this input at the most that any profile takes."""
        return max((tensor.size_bytes(profile.ranges[tensor.name].maximum) for profile in self.profiles), default=0)


def volume(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def choose_profile(plan: Plan, shapes: Mapping[str, Shape]) -> Profile | None:
    """The narrowest profile that takes these shapes, the first of equals; None where none does.

    A narrow profile was tuned for fewer shapes, so it was tuned better for these.
    """
    fitting = [profile for profile in plan.profiles if profile.holds(shapes)]
    return min(fitting, key=lambda profile: (_width(profile), profile.index), default=None)


def refusal(plan: Plan, shapes: Mapping[str, Shape]) -> str:
    """Why no profile takes these shapes, with the ranges they would take."""
    for tensor in plan.inputs:
        wanted = [profile.ranges[tensor.name] for profile in plan.profiles]
        if not any(range_.holds(shapes[tensor.name]) for range_ in wanted):
            return f"input {tensor.name!r} has shape {list(shapes[tensor.name])}; the plan takes {_ranges(wanted)}"
    every = "; or ".join(
        " with ".join(f"{name!r} {_ranges([wanted])}" for name, wanted in profile.ranges.items()) for profile in plan.profiles
    )
    seen = ", ".join(f"{name!r} {list(shape)}" for name, shape in shapes.items())
    return f"no optimisation profile of the plan takes {seen} together; it takes {every}"


def read_plan(module: Any, engine: Any, size_bytes: int) -> Plan:
    """The plan that an open engine was made of; `size_bytes` is its file's. Raises ModelRefused for what we cannot feed."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    ours = [name for name in names if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT]
    inputs = tuple(_tensor(module, engine, name) for name in ours)
    profiles = tuple(
        Profile(index, {tensor.name: _range(engine, tensor, index) for tensor in inputs})
        for index in range(engine.num_optimization_profiles)
    )
    return Plan(
        inputs,
        tuple(_tensor(module, engine, name) for name in names if name not in ours),
        profiles,
        int(engine.device_memory_size_v2),
        _weights_bytes(module, engine, size_bytes),
    )


def check_spec(spec: ModelSpec, plan: Plan) -> None:
    """The plan's tensors are those of the manifest. Raises ModelRefused."""
    check_tensors(
        spec,
        [Found(tensor.name, tensor.datatype, tensor.shape) for tensor in plan.inputs],
        [Found(tensor.name, tensor.datatype, tensor.shape) for tensor in plan.outputs],
    )


def _tensor(module: Any, engine: Any, name: str) -> Tensor:
    kind = engine.get_tensor_dtype(name).name
    if kind not in DATATYPE_NAMES:
        raise ModelRefused(f"tensor {name!r} of the plan is {kind}, which no request can carry; build it with another type")
    if engine.get_tensor_format(name) != module.TensorFormat.LINEAR:
        raise ModelRefused(
            f"tensor {name!r} of the plan has the vectorised format {engine.get_tensor_format(name).name}; build it with linear"
            " inputs and outputs"
        )
    on_host = engine.get_tensor_location(name) == module.TensorLocation.HOST
    return Tensor(name, DATATYPE_NAMES[kind], tuple(engine.get_tensor_shape(name)), on_host)


def _range(engine: Any, tensor: Tensor, profile: int) -> ShapeRange:
    if -1 not in tensor.shape:
        return ShapeRange(tensor.shape, tensor.shape, tensor.shape)
    minimum, optimum, maximum = (tuple(shape) for shape in engine.get_tensor_profile_shape(tensor.name, profile))
    return ShapeRange(minimum, optimum, maximum)


def _weights_bytes(module: Any, engine: Any, size_bytes: int) -> int:
    """As the engine counts them, where it does (10.7); else what the file takes."""
    if not hasattr(module, "EngineStat"):
        return size_bytes
    return max(0, int(engine.get_engine_stat(module.EngineStat.TOTAL_WEIGHTS_SIZE)))


def _width(profile: Profile) -> int:
    """How many shapes it takes, as a number to compare by."""
    width = 1
    for wanted in profile.ranges.values():
        for low, high in zip(wanted.minimum, wanted.maximum, strict=True):
            width *= high - low + 1
    return width


def _ranges(wanted: Sequence[ShapeRange]) -> str:
    seen = dict.fromkeys(f"{list(range_.minimum)} to {list(range_.maximum)}" for range_ in wanted)
    return " or ".join(seen)
