"""The engines by name, each imported when a model first asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from worker.engine import EngineUnavailable, RemoteEngine, TensorEngine, TextEngine
from worker.remote.upstream_keys import UpstreamAccess
from worker.types import ModelSpec, Task

Engine = TensorEngine | TextEngine | RemoteEngine


def _onnx(spec: ModelSpec, folder: Path) -> Engine:
    from worker.engines.onnx import open_onnx

    return open_onnx(spec, folder)


def _llm(spec: ModelSpec, folder: Path) -> Engine:
    from worker.engines.llm.engine import open_llm

    return open_llm(spec, folder)


def _torch(spec: ModelSpec, folder: Path) -> Engine:
    from worker.engines.torch import open_torch

    return open_torch(spec, folder)


def _litert(spec: ModelSpec, folder: Path) -> Engine:
    from worker.engines.litert import open_litert

    return open_litert(spec, folder)


def _python(spec: ModelSpec, folder: Path) -> Engine:
    from worker.engines.python import open_python

    return open_python(spec, folder)


def _tensorrt(spec: ModelSpec, folder: Path) -> Engine:
    if spec.task in (Task.CHAT, Task.COMPLETION):
        from worker.engines.tensorrt.language import open_tensorrt_language

        return open_tensorrt_language(spec, folder)
    from worker.engines.tensorrt.engine import open_tensorrt

    return open_tensorrt(spec, folder)


def _upstream(spec: ModelSpec, folder: Path, upstreams: UpstreamAccess | None = None) -> Engine:
    from worker.engines.upstream.engine import open_upstream

    return open_upstream(spec, folder, upstreams)


ENGINES: Mapping[str, Callable[[ModelSpec, Path], Engine]] = MappingProxyType(
    {
        "onnx": _onnx,
        "llm": _llm,
        "torch": _torch,
        "litert": _litert,
        "python": _python,
        "tensorrt": _tensorrt,
        "upstream": _upstream,
    }
)


def open_engine(spec: ModelSpec, folder: Path, upstreams: UpstreamAccess | None = None) -> Engine:
    """Open the model in `folder`; blocks, so call it on the model's lane. `upstreams` says what a remote one may call.

    Raises EngineUnavailable for an unknown engine or what it lacks, ModelRefused for files that are not what the spec says.
    """
    opener = ENGINES.get(spec.engine)
    if opener is None:
        raise EngineUnavailable(
            f"model {spec.model!r} asks for engine {spec.engine!r}; this worker has: {', '.join(sorted(ENGINES))}"
        )
    if spec.parameters.get("process"):
        from worker.engines.python import asks_for_own_process, open_in_own_process

        if asks_for_own_process(spec):
            return open_in_own_process(spec, folder)
    return _upstream(spec, folder, upstreams) if spec.engine == "upstream" else opener(spec, folder)
