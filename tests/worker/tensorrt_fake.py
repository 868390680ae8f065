"""TensorRT's Python API, as far as the engine uses it, over the GPU that is not there: computes with numpy, keeps the rules.

Enforced: a profile before shapes, shapes inside of the profile, every address set and of live device memory that is large
enough, memory to work in, one enqueue outside of a capture before one inside, and that nobody touches a context whose graph
is still launched. A plan is JSON, see `plan_bytes`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np

from worker.cuda.fake import CudaMisused, FakeDriver

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Arrays = Mapping[str, Any]

ACTIVATION_BYTES = 4096
WEIGHTS_BYTES = 1000


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT8, UINT8, INT32, INT64, BOOL, FP8 = range(9)


NUMPY = {
    DataType.FLOAT: "<f4",
    DataType.HALF: "<f2",
    DataType.BF16: "<u2",
    DataType.INT8: "i1",
    DataType.UINT8: "u1",
    DataType.INT32: "<i4",
    DataType.INT64: "<i8",
    DataType.BOOL: "?",
    DataType.FP8: "u1",
}


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorFormat(enum.Enum):
    LINEAR, CHW32 = range(2)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class EngineStat(enum.Enum):
    TOTAL_WEIGHTS_SIZE = 0


class EngineInvalidityDiagnostics(enum.IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    MALFORMED_ENGINE = 32


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class IOutputAllocator:
    pass


@dataclass(frozen=True, slots=True)
class Operation:
    """What a plan computes. `shapes` gives -1 for a size that only the values tell."""

    shapes: Callable[[Shapes], Shapes]
    compute: Callable[[Arrays], Arrays]


def _same_shape(shapes: Shapes) -> Shapes:
    if shapes["a"] != shapes["b"]:
        raise RuntimeError("a and b do not broadcast")
    return {"y": shapes["a"]}


OPERATIONS: dict[str, Operation] = {
    "copy": Operation(lambda shapes: {"y": shapes["x"]}, lambda inputs: {"y": inputs["x"]}),
    "affine": Operation(lambda shapes: {"y": shapes["x"]}, lambda inputs: {"y": 2 * inputs["x"] + 1}),
    "double": Operation(lambda shapes: {"y": shapes["x"]}, lambda inputs: {"y": inputs["x"] * 2}),
    "add": Operation(_same_shape, lambda inputs: {"y": inputs["a"] + inputs["b"]}),
    "widths": Operation(
        lambda shapes: {"y": (shapes["x"][0], 1), "z": shapes["x"]},
        lambda inputs: {"y": inputs["x"].sum(axis=1, keepdims=True), "z": -inputs["x"]},
    ),
    "positive": Operation(lambda shapes: {"y": (-1,)}, lambda inputs: {"y": inputs["x"][inputs["x"] > 0]}),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    mode: TensorIOMode
    dtype: DataType
    shape: Shape
    format: TensorFormat = TensorFormat.LINEAR
    location: TensorLocation = TensorLocation.DEVICE


Ranges = Mapping[str, Sequence[Sequence[int]]]


def plan_bytes(
    operation: str,
    tensors: Sequence[Tensor],
    profiles: Sequence[Ranges],
    *,
    version: str = "1.7.1",
    capturable: bool = True,
    aliases: Mapping[str, str] | None = None,
) -> bytes:
    """A plan; each profile maps an input to its smallest, best and largest shape. `aliases`: outputs in an input's memory."""
    described = [
        [tensor.name, tensor.mode.name, tensor.dtype.name, tensor.shape, tensor.format.name, tensor.location.name]
        for tensor in tensors
    ]
    content = {
        "operation": operation,
        "tensors": described,
        "profiles": list(profiles),
        "version": version,
        "capturable": capturable,
        "aliases": dict(aliases or {}),
    }
    return json.dumps(content).encode()


KINDS = MappingProxyType({"FP32": DataType.FLOAT, "FP16": DataType.HALF})
"""KServe's names where TensorRT's differ."""


def plan_folder(folder: Path, operation: str, datatype: str, most_rows: int = 1024) -> Path:
    """A model folder with a plan of one input and one output, both [rows, 2]."""
    kind = KINDS.get(datatype) or DataType[datatype]
    tensors = [Tensor("x", TensorIOMode.INPUT, kind, (-1, 2)), Tensor("y", TensorIOMode.OUTPUT, kind, (-1, 2))]
    ranges = {"x": [[1, 2], [1, 2], [most_rows, 2]]}
    (folder / "model.plan").write_bytes(plan_bytes(operation, tensors, [ranges]))
    return folder


class FakeTensorRt(SimpleNamespace):
    """Stands where the module `tensorrt` or `tensorrt_rtx` would."""

    def __init__(self, driver: FakeDriver, *, rtx: bool = False, version: str = "1.7.1.116") -> None:
        super().__init__()
        self.driver = driver
        self.__version__ = version
        self.contexts: list[ExecutionContext] = []
        self.configurations: list[RuntimeConfig] = []
        self.breaks = False
        """Executions fail."""
        for kind in (DataType, TensorIOMode, TensorFormat, TensorLocation, ExecutionContextAllocationStrategy, EngineStat):
            setattr(self, kind.__name__, kind)
        self.ILogger, self.IOutputAllocator = ILogger, IOutputAllocator
        self.Runtime = lambda logger: Runtime(self, logger, rtx=rtx)
        if rtx:
            self.CudaGraphStrategy = CudaGraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
            self.EngineInvalidityDiagnostics = EngineInvalidityDiagnostics


class Runtime:
    def __init__(self, api: FakeTensorRt, logger: Any, *, rtx: bool) -> None:
        self._api, self._logger = api, logger
        if rtx:
            self.get_engine_validity = self._validity

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        try:
            content = json.loads(plan)
        except ValueError:
            self._logger.log(ILogger.ERROR, "magic tag does not match")
            return None
        if not self._api.__version__.startswith(content["version"]):
            self._logger.log(ILogger.ERROR, f"the plan was made by version {content['version']}")
            return None
        return Engine(self._api, self._logger, content)

    def _validity(self, plan: bytes) -> tuple[str, int]:
        found = EngineInvalidityDiagnostics.VERSION_MISMATCH
        return "INVALID", int(found if plan.startswith(b"{") else EngineInvalidityDiagnostics.MALFORMED_ENGINE)


class Engine:
    device_memory_size_v2 = ACTIVATION_BYTES

    def __init__(self, api: FakeTensorRt, logger: Any, content: Mapping[str, Any]) -> None:
        self.api, self.logger = api, logger
        self.operation = OPERATIONS[content["operation"]]
        self.capturable: bool = content["capturable"]
        self.aliases: dict[str, str] = content["aliases"]
        self.tensors = {
            name: Tensor(name, TensorIOMode[mode], DataType[dtype], tuple(shape), TensorFormat[form], TensorLocation[place])
            for name, mode, dtype, shape, form, place in content["tensors"]
        }
        self.profiles: list[dict[str, list[Shape]]] = [
            {name: [tuple(shape) for shape in shapes] for name, shapes in profile.items()} for profile in content["profiles"]
        ]
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        names: list[str] = list(self.tensors)
        return names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.tensors[name].mode

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name].dtype

    def get_tensor_format(self, name: str) -> TensorFormat:
        return self.tensors[name].format

    def get_tensor_location(self, name: str) -> TensorLocation:
        return self.tensors[name].location

    def get_tensor_shape(self, name: str) -> Shape:
        return self.tensors[name].shape

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Shape]:
        return self.profiles[profile][name]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.aliases.get(name)

    def get_engine_stat(self, _: EngineStat) -> int:
        return WEIGHTS_BYTES

    def create_runtime_config(self) -> RuntimeConfig:
        configuration = RuntimeConfig()
        self.api.configurations.append(configuration)
        return configuration

    def create_execution_context(self, asked: object) -> ExecutionContext:
        strategy = asked.allocation if isinstance(asked, RuntimeConfig) else asked
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            raise AssertionError("a context with memory of its own is not counted in the slot's")
        context = ExecutionContext(self)
        self.api.contexts.append(context)
        return context

    @property
    def inputs(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors.values() if tensor.mode is TensorIOMode.INPUT]

    @property
    def outputs(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors.values() if tensor.mode is TensorIOMode.OUTPUT]


class RuntimeCache:
    def __init__(self) -> None:
        self.kernels = b""

    def serialize(self) -> bytes:
        return self.kernels

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"kernels"):
            return False
        self.kernels = bytes(blob)
        return True


class RuntimeConfig:
    def __init__(self) -> None:
        self.allocation = ExecutionContextAllocationStrategy.STATIC
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> None:
        self.cache = cache


@dataclass
class State:
    """What a context was told; a graph is good for as long as it stays."""

    profile: int | None = None
    shapes: dict[str, Shape] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    memory: tuple[int, int] = (0, 0)

    def copy(self) -> State:
        return State(self.profile, dict(self.shapes), dict(self.addresses), self.memory)


class ExecutionContext:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._state = State()
        self._allocators: dict[str, Any] = {}
        self._enqueued: State | None = None
        self.executions = 0

    def set_device_memory(self, address: int, size_bytes: int) -> None:
        self._state.memory = (address, size_bytes)

    def set_optimization_profile_async(self, profile: int, _stream: int) -> bool:
        self._state.profile = profile
        self._state.shapes = {}
        return 0 <= profile < len(self._engine.profiles)

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        if self._state.profile is None:
            return self._refuse("no optimization profile is set")
        low, _, high = self._engine.profiles[self._state.profile][name]
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self._refuse(f"shape {shape} of {name} is outside of the profile")
        self._state.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        missing = [tensor.name for tensor in self._engine.inputs if tensor.name not in self._state.shapes]
        if not missing:
            self._engine.operation.shapes(self._state.shapes)
        return missing

    def get_tensor_shape(self, name: str) -> Shape:
        return self._engine.operation.shapes(self._state.shapes)[name]

    def get_max_output_size(self, _name: str) -> int:
        return -1

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._state.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self._allocators[name] = allocator
        return True

    def is_stream_capturable(self, _stream: int) -> bool:
        return self._engine.capturable

    def execute_async_v3(self, stream: int) -> bool:
        engine, driver = self._engine, self._engine.api.driver
        if engine.api.breaks:
            return self._refuse("this was told to fail")
        if self._state.memory[1] < engine.device_memory_size_v2:
            return self._refuse("the context has too little memory to work in")
        needed = {tensor.name for tensor in engine.tensors.values()} - self._allocators.keys()
        for output, source in engine.aliases.items():
            if self._state.addresses.get(output) != self._state.addresses.get(source):
                return self._refuse(f"{output} has to be in the memory of {source}")
        if absent := {name for name in needed if not self._state.addresses.get(name)}:
            return self._refuse(f"no address is set for {absent}")
        if self.infer_shapes():
            return self._refuse("shapes are missing")
        grown = {name: self._grow(name, allocator, stream) for name, allocator in self._allocators.items()}
        if None in grown.values():
            return self._refuse("an output could not be allocated")
        state, settled = self._state.copy(), self._enqueued == self._state
        captured = driver.capturing(stream)
        if captured and not settled:
            return self._refuse("what the context was told is not settled yet; enqueue once before capturing")
        self._enqueued = state
        driver.enqueue(stream, lambda: self._compute(state, grown, held=captured))
        return True

    def _compute(self, state: State, grown: Mapping[str, int | None], *, held: bool) -> None:
        """What the device does when its turn comes."""
        engine, driver = self._engine, self._engine.api.driver
        if held and state != self._state:
            raise CudaMisused("the context of a captured graph was told something else since")
        self.executions += 1
        driver.device_bytes(*state.memory)[:] = 0xEE
        inputs = {}
        for tensor in engine.inputs:
            dtype, shape = np.dtype(NUMPY[tensor.dtype]), state.shapes[tensor.name]
            size_bytes = int(np.prod(shape)) * dtype.itemsize
            raw = driver.device_bytes(state.addresses[tensor.name], size_bytes)
            inputs[tensor.name] = np.frombuffer(raw.tobytes(), dtype).reshape(shape)
        for name, array in engine.operation.compute(inputs).items():
            exact = np.ascontiguousarray(array, NUMPY[engine.tensors[name].dtype])
            address = grown.get(name) or state.addresses[name]
            driver.device_bytes(address, exact.nbytes)[:] = np.frombuffer(exact.tobytes(), np.uint8)
            if name in self._allocators:
                self._allocators[name].notify_shape(name, exact.shape)

    def _grow(self, name: str, allocator: Any, stream: int) -> int | None:
        """TensorRT asks for the most that may come."""
        size_bytes = max(1, max(int(np.prod(shape)) for shape in self._state.shapes.values()) * 8)
        address: int | None = allocator.reallocate_output_async(name, 0, size_bytes, 256, stream)
        return address

    def _refuse(self, reason: str) -> bool:
        self._engine.logger.log(ILogger.ERROR, reason)
        return False
