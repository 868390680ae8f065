"""Which TensorRT is installed, whether a plan was made for it and for this GPU, and how a plan is opened.

Three packages speak one API: `tensorrt` (full), `tensorrt_lean` (runs version-compatible plans), `tensorrt_rtx` (RTX GPUs;
compiles kernels on the machine that runs them). A plan belongs to the one that made it. Never executes.
Source: TensorRT developer guide, "Engine Compatibility"; TensorRT-RTX documentation, "Engine Compatibility" and "CPU-Only AOT
and TensorRT-RTX Engines".
"""

from __future__ import annotations

import importlib
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import structlog

from worker.cuda.driver import Device
from worker.engine import EngineUnavailable, ModelRefused
from worker.types import CompiledFor, ModelSpec

FULL, LEAN, RTX = "tensorrt", "tensorrt_lean", "tensorrt_rtx"
RUNTIMES = (FULL, RTX, LEAN)
"""In the order in which they are tried for a plan that does not say what it was made for."""
_RUN_BY = MappingProxyType({FULL: (FULL,), LEAN: (LEAN, FULL), RTX: (RTX,)})
"""Packages that run what was compiled for a runtime."""
EXTRA = "pip install 'penstock[tensorrt]'"
_INSTALLED_BY = MappingProxyType(
    {FULL: "pip install tensorrt, from NVIDIA's index", LEAN: "pip install tensorrt_lean, from NVIDIA's index", RTX: EXTRA}
)
_NO_REASON = "TensorRT gave no reason"
_PREFIX = re.compile(r"^.*?Error Code \d+: [^(]*\(")
_PLACE = re.compile(r"\s*In \w+ at /[^\s()]+")
_log = structlog.get_logger("penstock.engine.tensorrt")


class Messages:
    """What TensorRT said went wrong, the last few. It may speak from several threads."""

    def __init__(self) -> None:
        self._said: deque[str] = deque(maxlen=16)

    def add(self, message: str) -> None:
        self._said.append(message.strip())

    def first(self) -> str:
        """The first complaint, which the others follow from, without the names of TensorRT's own files and functions."""
        said = list(self._said)
        found = next((line for line in said if "Error Code" in line), said[0] if said else _NO_REASON)
        return _PLACE.sub("", _PREFIX.sub("", found.replace("\n", " "))).strip(" ()")[:400]

    def last(self) -> str:
        return self._said[-1] if self._said else _NO_REASON

    def clear(self) -> None:
        self._said.clear()


@dataclass(frozen=True, slots=True)
class TensorRt:
    """One of the packages, imported. `logger` outlives all that is made with it."""

    name: str
    version: str
    module: Any
    logger: Any
    messages: Messages


def use_tensorrt(module: Any, name: str, *, warnings: bool = True) -> TensorRt:
    """Give the package a logger of ours: its errors are kept for our own sentences, `warnings` go to the log."""
    messages = Messages()
    parent: Any = module.ILogger

    class Logger(parent):  # type: ignore[misc]
        def __init__(self) -> None:
            parent.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (parent.INTERNAL_ERROR, parent.ERROR):
                messages.add(message)
            elif warnings and severity == parent.WARNING:
                _log.info("tensorrt_warning", said=message[:500])

    return TensorRt(name, module.__version__, module, Logger(), messages)


def find_tensorrt(names: Iterable[str], *, warnings: bool = True) -> TensorRt | None:
    """The first of these packages that is installed."""
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(module, "__version__"):
            return use_tensorrt(module, name, warnings=warnings)
    return None


def tensorrt_for(spec: ModelSpec) -> TensorRt:
    """The package that runs this model's plan. Raises EngineUnavailable naming the one that is missing, ModelRefused."""
    wanted = spec.compiled_for.runtime if spec.compiled_for is not None else ""
    if wanted and wanted not in _RUN_BY:
        raise ModelRefused(f"model {spec.model!r} was compiled for runtime {wanted!r}; known: {', '.join(RUNTIMES)}")
    found = find_tensorrt(_RUN_BY[wanted] if wanted else RUNTIMES)
    if found is None:
        install = _INSTALLED_BY[wanted] if wanted else EXTRA
        raise EngineUnavailable(f"engine 'tensorrt' needs the package {wanted or RTX} for model {spec.model!r}: {install}")
    return found


def mismatch(compiled_for: CompiledFor, runtime: str, version: str, device: Device) -> str | None:
    """Why a plan compiled for something else cannot run here; None where it can, as far as its manifest tells."""
    if runtime not in _RUN_BY.get(compiled_for.runtime, ()):
        return f"it was compiled for {compiled_for.runtime}, and this worker runs {runtime}"
    if not _runs(compiled_for, version):
        return (
            f"it was compiled for {compiled_for.runtime} {compiled_for.version}, and this worker has {version}; a plan runs on"
            " the release that made it, so build it again"
        )
    capabilities = compiled_for.compute_capabilities
    if capabilities and device.compute_capability not in capabilities:
        return (
            f"it was compiled for GPUs of compute capability {', '.join(capabilities)}, and this one ({device.name}) has"
            f" {device.compute_capability}; build it with --target {device.compute_capability}"
        )
    return None


def open_plan(tensorrt: TensorRt, runtime: Any, plan: bytes, spec: ModelSpec) -> Any:
    """The engine in a plan's bytes. Raises ModelRefused with the runtime's own reason."""
    tensorrt.messages.clear()
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = tensorrt.messages.first()  # before the diagnosis complains in its turn
        reasons = [*_diagnosed(tensorrt, runtime, plan), reason]
        raise ModelRefused(
            f"{tensorrt.name} {tensorrt.version} cannot open the plan of model {spec.model!r}: {'; '.join(reasons)[:500]}"
        )
    return engine


def _runs(compiled_for: CompiledFor, version: str) -> bool:
    """Plans belong to the release that made them: lean ones too, since the lean runtime of another release is not in them."""
    made = _numbers(compiled_for.version)
    return _numbers(version)[: len(made)] == made


def _numbers(version: str) -> tuple[int, ...]:
    """1.7.1.116 → 1, 7, 1. The fourth number is a build's."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def _diagnosed(tensorrt: TensorRt, runtime: Any, plan: bytes) -> Sequence[str]:
    """What TensorRT-RTX finds wrong with a plan, by its diagnostics' names; the other runtimes have no such call."""
    ask = getattr(runtime, "get_engine_validity", None)
    if ask is None:
        return ()
    _, found = ask(plan)
    known = tensorrt.module.EngineInvalidityDiagnostics.__members__
    return [name for name, flag in known.items() if int(found) & int(flag)]
