"""The engines by name, each imported when a model first asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from worker.engine import EngineUnavailable, RemoteEngine, TensorEngine, TextEngine
from worker.types import ModelSpec

Engine = TensorEngine | TextEngine | RemoteEngine


def _onnx(spec: ModelSpec, folder: Path) -> Engine:
    from worker.engines.onnx import open_onnx

    return open_onnx(spec, folder)


def _llm(spec: ModelSpec, folder: Path) -> Engine:
    from worker.engines.llm import open_llm

    return open_llm(spec, folder)


ENGINES: Mapping[str, Callable[[ModelSpec, Path], Engine]] = MappingProxyType({"onnx": _onnx, "llm": _llm})


def open_engine(spec: ModelSpec, folder: Path) -> Engine:
    """Open the model in `folder`; blocks, so call it on the model's lane.

    Raises EngineUnavailable for an unknown engine or what it lacks, ModelRefused for files that are not what the spec says.
    """
    opener = ENGINES.get(spec.engine)
    if opener is None:
        raise EngineUnavailable(
            f"model {spec.model!r} asks for engine {spec.engine!r}; this worker has: {', '.join(sorted(ENGINES))}"
        )
    return opener(spec, folder)
