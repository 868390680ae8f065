"""LiteRT: TensorFlow Lite models, on the CPU.

Owns one interpreter per slot: an interpreter runs one execution at a time. Tensors go by the names of a signature where the
file has any, else by their own. Quantised tensors travel as the integers they are; scale and zero point are the client's to
apply. Parameters of a manifest it reads: `file` (model.tflite), `intra_op_threads` (of each interpreter), `signature`
(serving_default, or the only one).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from runtime.errors import InvalidArgument, PenstockError
from worker.datatypes import DATATYPES
from worker.engine import Array, EngineFailed, EngineUnavailable, ModelRefused
from worker.engines.described import Found, check_tensors, engine_outputs, first_line, model_file, threads
from worker.types import ModelSpec

_log = structlog.get_logger("penstock.engine.litert")

_DEFAULT_SIGNATURE = "serving_default"
_MANY_CORES = 8
_NAMES = {datatype.dtype: name for name, datatype in DATATYPES.items() if name not in ("BYTES", "BF16")}


class _Slot:
    """One interpreter, by a signature's names or by the tensors' own."""

    def __init__(self, interpreter: Any, signature: str | None) -> None:
        self._interpreter = interpreter
        self._runner = None if signature is None else interpreter.get_signature_runner(signature)
        if self._runner is None:
            self.inputs = {details["name"]: details for details in interpreter.get_input_details()}
            self.outputs = {details["name"]: details for details in interpreter.get_output_details()}
        else:
            self.inputs = dict(self._runner.get_input_details())
            self.outputs = dict(self._runner.get_output_details())
        self._shapes: dict[str, tuple[int, ...]] = {}

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Copies in and copies out: what the interpreter holds is its own."""
        if self._runner is not None:
            given = self._runner(**inputs)
            return [given[name] for name in outputs]
        self._resize(inputs)
        for name, array in inputs.items():
            self._interpreter.set_tensor(self.inputs[name]["index"], array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(self.outputs[name]["index"]) for name in outputs]

    def _resize(self, inputs: Mapping[str, Array]) -> None:
        shapes = {name: array.shape for name, array in inputs.items()}
        if shapes == self._shapes:
            return
        self._shapes = {}
        for name, shape in shapes.items():
            self._interpreter.resize_tensor_input(self.inputs[name]["index"], shape)
        self._interpreter.allocate_tensors()
        self._shapes = shapes


class LitertEngine:
    """One interpreter for each slot."""

    utf8_bytes = False

    def __init__(self, spec: ModelSpec, slots: Sequence[_Slot]) -> None:
        self.slots = len(slots)
        self._slots: Sequence[_Slot] = tuple(slots)
        self._inputs = {name: _limits(details) for name, details in slots[0].inputs.items()}
        self._outputs = [output.name for output in engine_outputs(spec)]

    def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
        """One execution; a new batch size makes the interpreter plan its memory anew. Raises InvalidArgument, EngineFailed."""
        if not self._slots:
            raise EngineFailed("the model is closed")
        for name, limits in self._inputs.items():
            _check_shape(name, inputs.get(name), limits)
        try:
            return self._slots[slot].run(inputs, self._outputs)
        except PenstockError:
            raise
        except Exception as error:
            _log.error("execution_failed", exc_info=error)
            raise EngineFailed("LiteRT failed on this request; the worker's log has the reason") from error

    def close(self) -> None:
        self._slots = ()


def open_litert(spec: ModelSpec, folder: Path) -> LitertEngine:
    """Load the model once for each slot and check it against the spec. Raises EngineUnavailable, ModelRefused."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise EngineUnavailable("engine 'litert' needs the package ai-edge-litert: pip install 'penstock[litert]'") from error
    if (device := spec.parameters.get("device", "cpu")) != "cpu":
        raise ModelRefused(f"parameter 'device' of model {spec.model!r} is {device!r}; engine 'litert' runs on the cpu")
    file = model_file(spec, folder, "model.tflite")
    cores = os.cpu_count() or 1
    count = threads(spec, "intra_op_threads", cores // 4 if cores >= _MANY_CORES else 1)
    try:
        # By path: the interpreters map the same file and share its pages.
        interpreters = [Interpreter(model_path=str(file), num_threads=count) for _ in range(spec.instances)]
    except Exception as error:
        raise ModelRefused(f"LiteRT cannot load model {spec.model!r}: {first_line(error)}") from error
    signature = _signature(spec, interpreters[0])
    slots = [_Slot(interpreter, signature) for interpreter in interpreters]
    check_tensors(
        spec,
        [_found(name, details, input=True) for name, details in slots[0].inputs.items()],
        [_found(name, details, input=False) for name, details in slots[0].outputs.items()],
    )
    return LitertEngine(spec, slots)


def _signature(spec: ModelSpec, interpreter: Any) -> str | None:
    """Which signature is served; None where the file has none. Raises ModelRefused."""
    known = sorted(interpreter.get_signature_list())
    asked = spec.parameters.get("signature", "")
    if not asked and not known:
        return None
    if not asked and len(known) == 1:
        return str(known[0])
    name = asked or _DEFAULT_SIGNATURE
    if name not in known:
        raise ModelRefused(
            f"model {spec.model!r} has no signature {name!r}; name one in parameter 'signature'; it has: {known}"
        )
    return name


def _found(name: str, details: Mapping[str, Any], *, input: bool) -> Found:
    shape = _limits(details)
    # An output's size may depend on an input's, which its own signature does not tell: it is checked as it comes.
    return Found(name, _datatype(details["dtype"]), shape if input or -1 in shape else None)


def _limits(details: Mapping[str, Any]) -> tuple[int, ...]:
    signature = details.get("shape_signature")
    sizes = details["shape"] if signature is None or len(signature) != len(details["shape"]) else signature
    return tuple(int(size) for size in sizes)


def _datatype(kind: Any) -> str:
    dtype = np.dtype(kind)
    return "BYTES" if dtype.kind in "SO" else _NAMES.get(dtype, str(dtype))


def _check_shape(name: str, array: Array | None, limits: Sequence[int]) -> None:
    """LiteRT resizes what is no variable size as well, and computes nonsense then."""
    if array is None:
        raise InvalidArgument(f"input {name!r} is missing, and a LiteRT model takes all of its own")
    if len(array.shape) != len(limits) or any(limit not in (-1, size) for limit, size in zip(limits, array.shape, strict=True)):
        raise InvalidArgument(f"the model takes input {name!r} as {list(limits)}, and {list(array.shape)} came")
