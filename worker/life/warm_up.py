"""Executions made when a copy is loaded, before it answers, so that no request pays for an engine's lazy set-up.

A warm-up that the manifest declares has to succeed; without any, one execution of zeros is tried, whose failure is only
logged, because zeros may be no sensible input. Each runs on every slot of the engine. Random floats lie between 0 and 1, random
integers are 0 to 9, and always the same. Blocks; runs on the model's lane, while nothing else uses the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import structlog

from runtime.errors import Code, InvalidArgument, PenstockError
from worker.datatypes import DATATYPES
from worker.engine import Array, ModelRefused, TensorEngine, TextEngine, TextRequest
from worker.tensors import element_count, from_raw, object_array, zeros
from worker.types import ModelSpec, SequenceControlKind, TensorSpec, WarmUpData, WarmUpInput, WarmUpSpec

_SEED = 20_261_121
_LARGEST_INTEGER = 9
_TEXT_TOKENS = 4
_log = structlog.get_logger("penstock.models")


class WarmUpFailed(PenstockError, code=Code.FAILED_PRECONDITION, reason="WARM_UP_FAILED"):
    """A declared warm-up did not succeed, so requests would not either."""


def warm_up(spec: ModelSpec, engine: TensorEngine | TextEngine, folder: Path) -> None:
    """Raises WarmUpFailed where the manifest declares a warm-up that fails."""
    if not spec.warm_ups:
        try:
            _run(spec, WarmUpSpec("zeros"), engine, folder)
        except PenstockError as error:  # the first real request will tell
            _log.warning("warm_up_failed", model=spec.model, version=spec.version, reason=error.message)
    for declared in spec.warm_ups:
        try:
            _run(spec, declared, engine, folder)
        except PenstockError as error:
            raise WarmUpFailed(
                f"warm-up {declared.name!r} of model {spec.model!r} version {spec.version} failed: {error.message}"
            ) from error


def _run(spec: ModelSpec, declared: WarmUpSpec, engine: TensorEngine | TextEngine, folder: Path) -> None:
    if isinstance(engine, TextEngine):
        for _ in range(declared.count):
            _generate(engine)
        return
    inputs = warm_up_inputs(spec, declared, folder)
    for slot in range(engine.slots):
        for _ in range(declared.count):
            engine.run(inputs, slot)


def _generate(engine: TextEngine) -> None:
    generation = engine.begin(TextRequest("a", max_tokens=_TEXT_TOKENS))
    try:
        for _ in range(_TEXT_TOKENS):
            (answer,) = engine.step([generation])
            if isinstance(answer, PenstockError):
                raise answer
            if answer is not None and answer.finish is not None:
                return
    finally:
        generation.close()


def warm_up_inputs(spec: ModelSpec, declared: WarmUpSpec, folder: Path) -> Mapping[str, Array]:
    """What one execution is given: the spec's inputs, and what sequences add. Raises ModelRefused, InvalidArgument."""
    rows = (declared.rows or 1) if spec.max_batch_size > 0 else None
    named = {data.name: data for data in declared.inputs}
    inputs = {
        tensor.name: _tensor(tensor, named.get(tensor.name), rows, folder)
        for tensor in spec.inputs
        if not tensor.optional or tensor.name in named
    }
    return {**inputs, **dict(_sequence_inputs(spec, rows))}


def _tensor(tensor: TensorSpec, data: WarmUpInput | None, rows: int | None, folder: Path) -> Array:
    shape = data.shape if data is not None and data.shape else tuple(1 if size < 0 else size for size in tensor.shape)
    whole = shape if rows is None else (rows, *shape)
    if data is None or data.data is WarmUpData.ZEROS:
        return zeros(tensor.datatype, whole)
    if data.data is WarmUpData.RANDOM:
        return _random(tensor.datatype, whole)
    raw, datatype = _content(folder, data.file), DATATYPES[tensor.datatype]
    if rows is not None and rows > 1:
        try:  # one row, for each of them
            return np.repeat(from_raw(raw, datatype, (1, *shape), tensor.name), rows, axis=0)
        except InvalidArgument:
            pass  # else all of them
    return from_raw(raw, datatype, whole, tensor.name)


def _random(datatype: str, shape: tuple[int, ...]) -> Array:
    random = np.random.default_rng(_SEED)
    dtype = DATATYPES[datatype].dtype
    if dtype.hasobject:
        words = [bytes(random.integers(97, 123, 8, np.uint8)) for _ in range(element_count(shape))]
        return object_array(words).reshape(shape)
    if datatype == "BF16":  # the upper half of a float32
        return (random.random(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if dtype.kind == "f":
        return random.random(shape, np.float32).astype(dtype)
    return random.integers(0, 2 if dtype.kind == "b" else _LARGEST_INTEGER + 1, shape).astype(dtype)


def _content(folder: Path, name: str) -> bytes:
    """A file of the model: nothing outside of its folder, however it is named or linked."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise ModelRefused(f"warm-up data {name[:80]!r} is no file of the model; name one by its path inside the folder")
    return path.read_bytes()


def _sequence_inputs(spec: ModelSpec, rows: int | None) -> Iterator[tuple[str, Array]]:
    if spec.sequences is None:
        return
    batch = () if rows is None else (rows,)
    for control in spec.sequences.controls:
        flag = control.kind in (SequenceControlKind.READY, SequenceControlKind.START)
        dtype = DATATYPES[control.datatype].dtype
        yield control.input, np.ones((*batch, 1), dtype) if flag else zeros(control.datatype, (*batch, 1))
    for state in spec.sequences.states:
        yield state.input, zeros(state.datatype, (*batch, *state.shape))
