"""A model's own code: a class Model in model.py, run in a process of its own, one for each slot.

The class takes the model's folder and the manifest's parameters, has `execute(inputs)`, which takes and gives a mapping of
names to numpy arrays, and may have `close()`. Inputs are valid until execute returns. A ValueError refuses the inputs;
whatever else it raises is the model's failure. Also runs another engine so where the manifest's parameter `process` is `own`.
Parameters of a manifest it reads: `execute_timeout_s` (60), `start_timeout_s` (120), `memory_limit_bytes` (of address space,
none), `intra_op_threads` (what numerical libraries are told, 1). Whether the code may run at all is `code_trust.py`'s question.
"""

from __future__ import annotations

import os
import pickle
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from worker.engine import Array, EngineFailed, EngineUnavailable, ModelRefused
from worker.engines.described import engine_inputs, engine_outputs, model_file, number, seconds, threads
from worker.runner.host import CODE_FILE, Opening
from worker.runner.process import Launch
from worker.runner.runner import Runner, RunnerLimits
from worker.types import ModelSpec

OWN_PROCESS = ("onnx", "torch", "litert")
"""Engines that can be told to run in a process of their own."""

_MIN_MEMORY_BYTES, _MAX_MEMORY_BYTES = 64 * 1024**2, 2**50
_MAX_TIMEOUT_S = 24 * 3600


class RunnerEngine:
    """One process for each slot."""

    def __init__(self, runners: Sequence[Runner], *, utf8_bytes: bool = False) -> None:
        self.utf8_bytes = utf8_bytes
        self.slots = len(runners)
        self._runners = tuple(runners)

    def staging(self, shapes: Mapping[str, tuple[tuple[int, ...], str]], slot: int = 0) -> Mapping[str, Array] | None:
        """Memory that the slot's process reads from."""
        return self._runners[slot].staging(shapes) if self._runners else None

    def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
        """One execution. Raises what the runner raises."""
        if not self._runners:
            raise EngineFailed("the model is closed")
        return self._runners[slot].run(inputs)

    def close(self) -> None:
        runners, self._runners = self._runners, ()
        for runner in runners:
            runner.close()


def open_python(spec: ModelSpec, folder: Path) -> RunnerEngine:
    """Start the processes and wait for the code to be loaded in each. Raises EngineUnavailable, ModelRefused."""
    model_file(replace(spec, parameters={}), folder, CODE_FILE)
    return _opened(spec, _opening(spec, folder))


def open_in_own_process(spec: ModelSpec, folder: Path) -> RunnerEngine:
    """Another engine's model, likewise. Raises what that engine's opening raises."""
    inner = replace(spec, parameters={**spec.parameters, "process": ""}, instances=1)
    opening = replace(_opening(spec, folder), engine_spec=b64encode(pickle.dumps(_plain(inner))).decode())
    return _opened(spec, opening, utf8_bytes=spec.engine == "onnx")


def _opening(spec: ModelSpec, folder: Path) -> Opening:
    if not hasattr(os, "memfd_create"):
        raise EngineUnavailable(f"model {spec.model!r} needs a process of its own, which is made on Linux alone")
    return Opening(
        folder=str(folder.resolve()),
        parameters=dict(spec.parameters),
        outputs=tuple((tensor.name, tensor.datatype) for tensor in engine_outputs(spec)),
        memory_limit_bytes=number(spec, "memory_limit_bytes", 0, least=_MIN_MEMORY_BYTES, most=_MAX_MEMORY_BYTES),
    )


def _opened(spec: ModelSpec, opening: Opening, *, utf8_bytes: bool = False) -> RunnerEngine:
    """All processes start side by side."""
    limits = RunnerLimits(
        start_s=seconds(spec, "start_timeout_s", 120.0, most_s=_MAX_TIMEOUT_S),
        execute_s=seconds(spec, "execute_timeout_s", 60.0, most_s=_MAX_TIMEOUT_S),
    )
    count = threads(spec, "intra_op_threads", 1)
    runners: list[Runner] = []
    try:
        for slot in range(spec.instances):
            where = f"the process of model {spec.model!r}" + (f" (instance {slot})" if spec.instances > 1 else "")
            batched = spec.max_batch_size > 0
            launch = Launch(where, opening, count)
            runners.append(Runner(launch, engine_inputs(spec), engine_outputs(spec), limits, batched=batched))
        for runner in runners:
            runner.open()
    except OSError as error:
        _close(runners)
        raise EngineUnavailable(f"cannot start a process for model {spec.model!r}: {error.strerror}") from error
    except BaseException:
        _close(runners)
        raise
    return RunnerEngine(runners, utf8_bytes=utf8_bytes)


def _close(runners: Sequence[Runner]) -> None:
    for runner in runners:
        runner.close()


def _plain(spec: ModelSpec) -> ModelSpec:
    """With mappings that pickle."""
    batching = replace(spec.batching, priority_queue_policies=dict(spec.batching.priority_queue_policies))
    return replace(spec, parameters=dict(spec.parameters), batching=batching)


def asks_for_own_process(spec: ModelSpec) -> bool:
    """Whether the manifest asks for a process of the model's own. Raises ModelRefused."""
    asked = spec.parameters.get("process", "")
    if asked not in ("", "own"):
        raise ModelRefused(f"parameter 'process' of model {spec.model!r} is {asked!r}; allowed: own, or none at all")
    if asked and spec.engine not in (*OWN_PROCESS, "python"):
        raise ModelRefused(f"model {spec.model!r} asks for a process of its own; engines {', '.join(OWN_PROCESS)} can have one")
    return asked == "own" and spec.engine in OWN_PROCESS
