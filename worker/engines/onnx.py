"""ONNX Runtime: models as ONNX graphs, on the CPU or on one CUDA device.

Owns the session and the translation between KServe's datatypes and ONNX's. Never falls back from the device that was asked
for: a CUDA that cannot be had is an error. Parameters of a manifest it reads: `device` (cpu, cuda, cuda:<n>), `file`
(model.onnx), `intra_op_threads`, `inter_op_threads`, `execution_mode` (sequential, parallel) and `graph_optimization` (none,
basic, extended, all).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import structlog

from runtime.errors import InvalidArgument, PenstockError
from worker.engine import Array, EngineFailed, EngineUnavailable, ModelRefused
from worker.engines.described import (
    Found,
    check_tensors,
    choice,
    cuda_device,
    engine_inputs,
    engine_outputs,
    first_line,
    model_file,
    threads,
)
from worker.types import ModelSpec

_log = structlog.get_logger("penstock.engine.onnx")

_DATATYPES = MappingProxyType(
    {
        "tensor(bool)": "BOOL",
        "tensor(uint8)": "UINT8",
        "tensor(uint16)": "UINT16",
        "tensor(uint32)": "UINT32",
        "tensor(uint64)": "UINT64",
        "tensor(int8)": "INT8",
        "tensor(int16)": "INT16",
        "tensor(int32)": "INT32",
        "tensor(int64)": "INT64",
        "tensor(float16)": "FP16",
        "tensor(float)": "FP32",
        "tensor(double)": "FP64",
        "tensor(string)": "BYTES",
        "tensor(bfloat16)": "BF16",
    }
)
_OPTIMIZATIONS = MappingProxyType(
    {"none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}
)
_EXECUTION_MODES = MappingProxyType({"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"})
_ONNX_BFLOAT16 = 16  # onnx.proto3 TensorProto.DataType
_MANY_CORES = 8


class OnnxEngine:
    """One session."""

    utf8_bytes = True

    def __init__(self, spec: ModelSpec, session: Any, runtime: Any) -> None:
        self.slots = spec.instances  # a session may be run by several threads at once
        self._session: Any = session
        self._runtime = runtime
        self._outputs = [output.name for output in engine_outputs(spec)]
        fed = engine_inputs(spec)
        self._strings = [tensor.name for tensor in fed if tensor.datatype == "BYTES"]
        self._bfloats = [tensor.name for tensor in fed if tensor.datatype == "BF16"]
        self._gives_strings = any(output.datatype == "BYTES" for output in spec.outputs)
        self._wrapped = bool(self._bfloats) or any(output.datatype == "BF16" for output in engine_outputs(spec))

    def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
        """One execution; releases the GIL while it computes. Raises InvalidArgument where the graph refuses the input."""
        feed = self._decoded(inputs) if self._strings else inputs
        try:
            outputs: list[Array] = self._run_wrapped(feed) if self._wrapped else self._session.run(self._outputs, feed)
        except PenstockError:
            raise
        except Exception as error:
            raise _mapped(error) from error
        if self._gives_strings:
            return [_each(str.encode, output) if output.dtype.hasobject else output for output in outputs]
        return outputs

    def close(self) -> None:
        self._session = None

    def _decoded(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """ONNX Runtime takes strings as Python's."""
        return {name: _each(bytes.decode, array) if name in self._strings else array for name, array in inputs.items()}

    def _run_wrapped(self, feed: Mapping[str, Array]) -> list[Array]:
        """By OrtValue, because numpy has no bfloat16."""
        make = self._runtime.OrtValue
        values = {
            name: make.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _ONNX_BFLOAT16)
            if name in self._bfloats
            else make.ortvalue_from_numpy(array)
            for name, array in feed.items()
        }
        outputs = self._session.run_with_ort_values(self._outputs, values)
        return [_bits(value) if value.data_type() == "tensor(bfloat16)" else value.numpy() for value in outputs]


def open_onnx(spec: ModelSpec, folder: Path) -> OnnxEngine:
    """Load the graph and check it against the spec. Raises EngineUnavailable, ModelRefused."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineUnavailable("engine 'onnx' needs the package onnxruntime: pip install onnxruntime") from error
    providers = _providers(spec, onnxruntime.get_available_providers())
    options = _options(spec, onnxruntime)
    file = model_file(spec, folder, "model.onnx")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:
        raise ModelRefused(f"ONNX Runtime cannot load model {spec.model!r}: {first_line(error)}") from error
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted not in session.get_providers():
        raise EngineUnavailable(
            f"model {spec.model!r} asks for {wanted}, which did not start (see the log); check the driver and CUDA libraries"
        )
    session.disable_fallback()
    check_tensors(spec, [_found(each) for each in session.get_inputs()], [_found(each) for each in session.get_outputs()])
    return OnnxEngine(spec, session, onnxruntime)


def _options(spec: ModelSpec, runtime: Any) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors; what goes wrong is raised as well
    options.intra_op_num_threads = threads(spec, "intra_op_threads", _default_threads())
    options.inter_op_num_threads = threads(spec, "inter_op_threads", 1)
    mode = choice(spec, "execution_mode", "sequential", _EXECUTION_MODES.keys())
    options.execution_mode = getattr(runtime.ExecutionMode, _EXECUTION_MODES[mode])
    level = choice(spec, "graph_optimization", "all", _OPTIMIZATIONS.keys())
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, _OPTIMIZATIONS[level])
    # A spinning pool burns a core between requests; measured as the larger part of an idle worker's CPU.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _providers(spec: ModelSpec, available: Sequence[str]) -> list[Any]:
    number = cuda_device(spec)
    if number is None:
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in available:
        raise EngineUnavailable(
            f"model {spec.model!r} asks for device 'cuda:{number}', and this ONNX Runtime has no CUDA: install onnxruntime-gpu"
        )
    return [("CUDAExecutionProvider", {"device_id": number}), "CPUExecutionProvider"]


def _default_threads() -> int:
    """One, and a quarter of the cores on larger machines: batches come one after the other, models side by side."""
    cores = os.cpu_count() or 1
    return cores // 4 if cores >= _MANY_CORES else 1


def _found(tensor: Any) -> Found:
    """A tensor of the graph. No dimensions at all: a graph may leave a shape open, and then it is not told from a scalar."""
    shape = tuple(-1 if size is None else size for size in tensor.shape)
    return Found(tensor.name, _DATATYPES.get(tensor.type, tensor.type), shape or None)


def _each(function: Any, array: Array) -> Array:
    """Apply to every element of an object array."""
    flat = np.empty(array.size, dtype=object)
    flat[:] = [function(element) for element in array.reshape(-1)]
    return flat.reshape(array.shape)


def _bits(value: Any) -> Array:
    """The bits of a bfloat16 value on the CPU, copied."""
    shape = value.shape()
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, np.uint16)
    return np.frombuffer(ctypes.string_at(value.data_ptr(), count * 2), np.uint16).reshape(shape)


def _mapped(error: Exception) -> PenstockError:
    """ONNX Runtime's own classes, by name: they live in a compiled module and derive from Exception only."""
    if type(error).__name__ == "InvalidArgument":
        return InvalidArgument(f"the model refuses these inputs: {first_line(error)}")
    _log.error("execution_failed", exc_info=error)
    return EngineFailed("ONNX Runtime failed on this request; the worker's log has the reason")
