"""ONNX Runtime: models as ONNX graphs, on the CPU or on one CUDA device.

Owns the session and the translation between KServe's datatypes and ONNX's. Never falls back from the device that was asked
for: a CUDA that cannot be had is an error. Parameters of a manifest it reads: `device` (cpu, cuda, cuda:<n>),
`intra_op_threads`, `file` (model.onnx).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import structlog

from runtime.errors import InvalidArgument, PenstockError
from worker.engine import Array, EngineFailed, EngineUnavailable, ModelRefused
from worker.types import ModelSpec, TensorSpec

_log = structlog.get_logger("penstock.engine.onnx")

_ONNX_TYPES = MappingProxyType(
    {
        "BOOL": "tensor(bool)",
        "UINT8": "tensor(uint8)",
        "UINT16": "tensor(uint16)",
        "UINT32": "tensor(uint32)",
        "UINT64": "tensor(uint64)",
        "INT8": "tensor(int8)",
        "INT16": "tensor(int16)",
        "INT32": "tensor(int32)",
        "INT64": "tensor(int64)",
        "FP16": "tensor(float16)",
        "FP32": "tensor(float)",
        "FP64": "tensor(double)",
        "BYTES": "tensor(string)",
        "BF16": "tensor(bfloat16)",
    }
)
_ONNX_BFLOAT16 = 16  # onnx.proto3 TensorProto.DataType
_MANY_CORES = 8


class OnnxEngine:
    """One session."""

    utf8_bytes = True

    def __init__(self, spec: ModelSpec, session: Any, runtime: Any) -> None:
        self.slots = spec.instances  # a session may be run by several threads at once
        self._session: Any = session
        self._runtime = runtime
        self._outputs = [output.name for output in spec.outputs]
        self._strings = [tensor.name for tensor in spec.inputs if tensor.datatype == "BYTES"]
        self._bfloats = [tensor.name for tensor in spec.inputs if tensor.datatype == "BF16"]
        self._wrapped = bool(self._bfloats) or any(output.datatype == "BF16" for output in spec.outputs)

    def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
        """One execution; releases the GIL while it computes. Raises InvalidArgument where the graph refuses the input."""
        feed = dict(inputs)
        for name in self._strings:
            if name in feed:
                feed[name] = _each(bytes.decode, feed[name])
        try:
            outputs = self._run_wrapped(feed) if self._wrapped else self._session.run(self._outputs, feed)
        except PenstockError:
            raise
        except Exception as error:
            raise _mapped(error) from error
        return [_each(str.encode, output) if output.dtype.hasobject else output for output in outputs]

    def close(self) -> None:
        self._session = None

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
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; what goes wrong is raised as well
    options.intra_op_num_threads = _intra_op_threads(spec)
    options.inter_op_num_threads = 1
    # A spinning pool burns a core between requests; measured as the larger part of an idle worker's CPU.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(_file(spec, folder)), options, providers=providers)
    except Exception as error:
        raise ModelRefused(f"ONNX Runtime cannot load model {spec.model!r}: {_first_line(error)}") from error
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted not in session.get_providers():
        raise EngineUnavailable(
            f"model {spec.model!r} asks for {wanted}, which did not start (see the log); check the driver and CUDA libraries"
        )
    session.disable_fallback()
    _check("input", spec, spec.inputs, session.get_inputs())
    _check("output", spec, spec.outputs, session.get_outputs())
    return OnnxEngine(spec, session, onnxruntime)


def _file(spec: ModelSpec, folder: Path) -> Path:
    name = spec.parameters.get("file", "model.onnx")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ModelRefused(f"parameter 'file' of model {spec.model!r} leads out of the model's folder: {name!r}")
    file = folder / name
    if not file.is_file():
        raise ModelRefused(
            f"model {spec.model!r} has no file {name!r}; publish it with the model, or name it in parameter 'file'"
        )
    return file


def _providers(spec: ModelSpec, available: Sequence[str]) -> list[Any]:
    device = spec.parameters.get("device", "cpu")
    kind, _, number = device.partition(":")
    if kind == "cpu" and not number:
        return ["CPUExecutionProvider"]
    if kind == "cuda" and (not number or number.isdecimal()):
        if "CUDAExecutionProvider" not in available:
            raise EngineUnavailable(
                f"model {spec.model!r} asks for device {device!r}, and this ONNX Runtime has no CUDA: install onnxruntime-gpu"
            )
        return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]
    raise ModelRefused(f"parameter 'device' of model {spec.model!r} is {device!r}; allowed: cpu, cuda, cuda:<number>")


def _intra_op_threads(spec: ModelSpec) -> int:
    """What the manifest asks for; else one, and a quarter of the cores on larger machines."""
    cores = os.cpu_count() or 1
    text = spec.parameters.get("intra_op_threads", "")
    if not text:
        return cores // 4 if cores >= _MANY_CORES else 1
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ModelRefused(
            f"parameter 'intra_op_threads' of model {spec.model!r} is {text!r}; a number from 1 to 1024 is expected"
        )
    return int(text)


def _check(kind: str, spec: ModelSpec, described: Sequence[TensorSpec], found: Sequence[Any]) -> None:
    """The graph's tensors are those of the manifest. An output that the manifest leaves out is not computed."""
    graph = {tensor.name: tensor for tensor in found}
    if kind == "input" and (missing := graph.keys() - {tensor.name for tensor in described}):
        raise ModelRefused(f"model {spec.model!r} needs inputs {sorted(missing)} that its manifest does not describe")
    for tensor in described:
        if tensor.name not in graph:
            raise ModelRefused(f"model {spec.model!r} has no {kind} {tensor.name!r}; it has: {sorted(graph)}")
        actual = graph[tensor.name]
        if actual.type != _ONNX_TYPES.get(tensor.datatype):
            raise ModelRefused(f"{kind} {tensor.name!r} of model {spec.model!r} is {actual.type}, not {tensor.datatype}")
        expected = ((-1,) if spec.max_batch_size > 0 else ()) + tensor.shape
        if not _fits(expected, actual.shape, kind, spec.max_batch_size):
            raise ModelRefused(
                f"{kind} {tensor.name!r} of model {spec.model!r} is {list(actual.shape)} in the graph and {list(expected)}"
                " in the manifest (batch dimension included)"
            )


def _fits(expected: Sequence[int], actual: Sequence[int | str | None], kind: str, max_batch_size: int) -> bool:
    if not actual:  # a graph may leave a shape open
        return True
    if len(expected) != len(actual):
        return False
    for index, (want, have) in enumerate(zip(expected, actual, strict=True)):
        if isinstance(have, int) and have != want and not (index == 0 and have == max_batch_size == 1):
            return False
    return True


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
        return InvalidArgument(f"the model refuses these inputs: {_first_line(error)}")
    _log.error("execution_failed", exc_info=error)
    return EngineFailed("ONNX Runtime failed on this request; the worker's log has the reason")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
