"""What a Triton configuration tells its backend, as an engine's parameters here: device, file, threads, optimisation.

Pure. An engine's own parameters pass as they are, so that what a worker reports of a model can be given back to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from inference import model_config_pb2 as pb

from runtime.triton_engines import EngineChoice
from runtime.triton_scheduling import Reading

_EVERYWHERE = frozenset({"file", "pinned"})
_READ_BY: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "onnx": frozenset(
            {"device", "intra_op_threads", "inter_op_threads", "execution_mode", "graph_optimization", "process"}
        ),
        "torch": frozenset({"device", "intra_op_threads", "process"}),
        "litert": frozenset({"device", "intra_op_threads", "signature", "process"}),
        "tensorrt": frozenset({"device", "cuda_graphs", "wait", "kernel_specialization"}),
    }
)
"""By engine; others take any."""

_TRANSLATED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "onnx": {"intra_op_thread_count": "intra_op_threads", "inter_op_thread_count": "inter_op_threads"},
        "torch": {"INTRA_OP_THREAD_COUNT": "intra_op_threads"},
        "litert": {"tflite_num_threads": "intra_op_threads"},
    }
)
_EXECUTION_MODES = MappingProxyType({"0": "sequential", "1": "parallel"})
_GRAPH_LEVELS = MappingProxyType({-1: "basic", 1: "extended", 2: "none"})
_LEFT_OUT: Mapping[str, Callable[[pb.ModelOptimizationPolicy], bool]] = MappingProxyType(
    {
        "execution_accelerators": lambda given: given.HasField("execution_accelerators"),
        "priority": lambda given: bool(given.priority),
        "gather_kernel_buffer_threshold": lambda given: bool(given.gather_kernel_buffer_threshold),
        "eager_batching": lambda given: given.eager_batching,
    }
)
"""Of `optimization`: faster with Triton, the same answers without."""


def parameters_of(reading: Reading, config: pb.ModelConfig, choice: EngineChoice) -> dict[str, str]:
    """The manifest's parameters."""
    parameters: dict[str, str] = {}
    for name, value in sorted(config.parameters.items()):
        parameters.update(_translated(reading, choice.engine, name, value.string_value))
    parameters.pop("file", None)
    if choice.parameter:
        parameters["file"] = choice.parameter
    if "device" not in parameters and (device := _device(reading, config, choice.engine)):
        parameters["device"] = device
    _optimise(reading, config.optimization, choice.engine, parameters)
    return parameters


def _translated(reading: Reading, engine: str, name: str, value: str) -> dict[str, str]:
    own = _TRANSLATED.get(engine, {}).get(name)
    if own is not None:
        return {own: value} if value not in ("", "0") else {}  # 0 is Triton's word for the backend's default
    if engine == "onnx" and name == "execution_mode":
        return {name: _EXECUTION_MODES.get(value, value)}
    known = _READ_BY.get(engine)
    if known is not None and name not in known | _EVERYWHERE:
        reading.warn(f"parameter {name[:80]!r} is kept, but engine {engine!r} does not read it")
    return {name: value}


def _device(reading: Reading, config: pb.ModelConfig, engine: str) -> str:
    """Where the configuration insists on a kind of device; empty: the engine's default."""
    if engine not in ("onnx", "torch", "tensorrt"):
        return ""
    kinds = pb.ModelInstanceGroup
    asked = [group for group in config.instance_group if group.kind in (kinds.KIND_GPU, kinds.KIND_CPU)]
    if len({group.kind for group in asked}) > 1:
        raise reading.refused("instance_group asks for GPU and for CPU; here all copies of a model run alike: keep one of them")
    if not asked or asked[0].kind == kinds.KIND_CPU:
        return ""
    gpus = sorted({number for group in asked for number in group.gpus})
    if len(gpus) > 1:
        reading.warn(f"instance_group names GPUs {gpus}: a copy runs on one, {gpus[0]}; run a worker for each GPU")
    number = gpus[0] if gpus else 0
    if engine == "tensorrt":
        return f"cuda:{number}" if number else ""
    reading.warn("instance_group asks for a GPU (KIND_GPU): only workers with CUDA load it, nothing falls back to the CPU")
    return f"cuda:{number}" if number else "cuda"


def _optimise(reading: Reading, given: pb.ModelOptimizationPolicy, engine: str, parameters: dict[str, str]) -> None:
    for name, is_given in _LEFT_OUT.items():
        if is_given(given):
            reading.warn(f"optimization.{name} is left out: the engine goes its own way")
    if given.HasField("graph"):
        level = _GRAPH_LEVELS.get(given.graph.level)
        if engine == "onnx" and level is not None:
            parameters.setdefault("graph_optimization", level)
        elif given.graph.level:
            reading.warn(f"optimization.graph.level {given.graph.level} is left out: engine {engine!r} has no such level")
    if given.HasField("cuda"):
        if engine != "tensorrt":
            reading.warn(f"optimization.cuda is left out: engine {engine!r} makes no CUDA graphs")
        elif not given.cuda.graphs:
            parameters.setdefault("cuda_graphs", "off")
