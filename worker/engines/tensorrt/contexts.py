"""Makes a plan's execution contexts, with what the installed runtime offers: TensorRT-RTX compiles kernels while it runs.

Owns the runtime's configuration and the cache of compiled kernels: kept in this process by plan, so that a model loaded again
does not compile again, and on disk only where the operator names a folder. Nobody signed such a file, and it becomes code on
the GPU: a model's own folder, or a parameter of its manifest, never names it.
Source: TensorRT-RTX documentation, "Working with Runtime Cache", "Working with RTX CUDA Graphs", "Working with Dynamic Shapes".
"""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import structlog

from worker.engine import EngineFailed
from worker.engines.tensorrt.runtime import TensorRt

CACHE_FOLDER = "PENSTOCK_TENSORRT_CACHE"
"""Environment variable: a folder that only the worker may write to."""
SPECIALISATIONS = ("lazy", "eager", "none")
_KEPT_CACHES = 32
_log = structlog.get_logger("penstock.engine.tensorrt")


class KernelCaches:
    """Compiled kernels as opaque bytes, by plan; used least recently goes first. Any thread."""

    def __init__(self) -> None:
        self._blobs: OrderedDict[str, bytes] = OrderedDict()
        self._guard = Lock()

    def get(self, name: str) -> bytes | None:
        with self._guard:
            if name in self._blobs:
                self._blobs.move_to_end(name)
                return self._blobs[name]
        file = _file(name)
        try:
            return file.read_bytes() if file is not None else None
        except OSError:
            return None

    def put(self, name: str, blob: bytes) -> None:
        with self._guard:
            self._blobs[name] = blob
            self._blobs.move_to_end(name)
            while len(self._blobs) > _KEPT_CACHES:
                self._blobs.popitem(last=False)
        file = _file(name)
        if file is not None:
            _write(file, blob)


KERNEL_CACHES = KernelCaches()
"""This process's."""


class Contexts:
    """Of one engine. `cache_name` says what compiled kernels are for: plan, runtime and GPU."""

    def __init__(
        self,
        tensorrt: TensorRt,
        engine: Any,
        *,
        built_in_graphs: bool,
        specialisation: str,
        cache_name: str,
        caches: KernelCaches = KERNEL_CACHES,
    ) -> None:
        self._tensorrt, self._engine, self._cache_name, self._caches = tensorrt, engine, cache_name, caches
        self._configuration: Any = None
        self._cache: Any = None
        self._known = b""
        if compiles_here(tensorrt):
            self._configuration = self._configured(built_in_graphs, specialisation)

    def make(self) -> Any:
        """A context without memory to work in: its slot gives it some."""
        managed = self._tensorrt.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(managed if self._configuration is None else self._configuration)
        if context is None:
            _log.error("context_not_made", reason=self._tensorrt.messages.last())
            raise EngineFailed("TensorRT makes no execution context for this plan; the worker's log has the reason")
        return context

    def close(self) -> None:
        """Keep what was compiled for the next time."""
        if self._cache is not None:
            blob = bytes(self._cache.serialize() or b"")
            if blob and blob != self._known:
                self._caches.put(self._cache_name, blob)
        self._cache = self._configuration = self._engine = None

    def _configured(self, built_in_graphs: bool, specialisation: str) -> Any:
        module = self._tensorrt.module
        configuration = self._engine.create_runtime_config()
        configuration.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        strategies = module.CudaGraphStrategy
        configuration.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if built_in_graphs else strategies.DISABLED
        configuration.dynamic_shapes_kernel_specialization_strategy = getattr(
            module.DynamicShapesKernelSpecializationStrategy, specialisation.upper()
        )
        self._cache = configuration.create_runtime_cache()
        self._known = self._caches.get(self._cache_name) or b""
        if self._known and not self._cache.deserialize(self._known):
            _log.info("kernel_cache_refused", name=self._cache_name)  # another driver since; it is made anew
        configuration.set_runtime_cache(self._cache)
        return configuration


def compiles_here(tensorrt: TensorRt) -> bool:
    """Whether this runtime finishes compiling on the machine that runs the plan, and captures graphs by itself."""
    return hasattr(tensorrt.module, "CudaGraphStrategy")


def _file(name: str) -> Path | None:
    folder = os.environ.get(CACHE_FOLDER, "")
    return Path(folder) / f"{name}.kernels" if folder else None


def _write(file: Path, blob: bytes) -> None:
    """Whole or not at all; a full disk only means compiling again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".", delete=False) as draft:
            draft.write(blob)
        Path(draft.name).replace(file)
    except OSError as error:
        _log.warning("kernel_cache_not_saved", file=str(file), reason=str(error))
