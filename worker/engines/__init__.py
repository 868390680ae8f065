"""The engines by name, each imported when a model first asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from worker.engine import EngineUnavailable, TensorEngine, TextEngine
from worker.types import ModelSpec


def _onnx(spec: ModelSpec, folder: Path) -> TensorEngine:
    from worker.engines.onnx import open_onnx

    return open_onnx(spec, folder)


def _llm(spec: ModelSpec, folder: Path) -> TextEngine:
    from worker.engines.llm import open_llm

    return open_llm(spec, folder)


TENSOR_ENGINES: Mapping[str, Callable[[ModelSpec, Path], TensorEngine]] = MappingProxyType({"onnx": _onnx})
TEXT_ENGINES: Mapping[str, Callable[[ModelSpec, Path], TextEngine]] = MappingProxyType({"llm": _llm})


def open_engine(spec: ModelSpec, folder: Path) -> TensorEngine | TextEngine:
    """Open the model in `folder`; blocks, so call it on the model's lane.

    Raises EngineUnavailable for an unknown engine or what it lacks, ModelRefused for files that are not what the spec says.
    """
    opener = TENSOR_ENGINES.get(spec.engine) or TEXT_ENGINES.get(spec.engine)
    if opener is None:
        known = ", ".join(sorted((*TENSOR_ENGINES, *TEXT_ENGINES)))
        raise EngineUnavailable(f"model {spec.model!r} asks for engine {spec.engine!r}; this worker has: {known}")
    return opener(spec, folder)
