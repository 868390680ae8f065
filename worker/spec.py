"""Manifests, as the worker's own nouns.

A codec, one way. Decides what a manifest has to say to describe a model; who signed it and which files it has is
`files/manifest.py`'s question.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from penstock.registry.v1 import models_pb2

from runtime.ids import Digest, ModelName, ModelVersion
from runtime.model_description import manifest_cache_fault
from runtime.model_traits import CAPABILITIES
from worker.datatypes import DATATYPES
from worker.engine import ModelRefused
from worker.traits import Traits
from worker.types import (
    BatchingSpec,
    CompiledFor,
    ModelSpec,
    QueuePolicy,
    SequenceControl,
    SequenceControlKind,
    SequenceSpec,
    SequenceState,
    SequenceStrategy,
    Task,
    TensorSpec,
    TimeoutAction,
    WarmUpData,
    WarmUpInput,
    WarmUpSpec,
)

_TEXT_ENGINES = ("llm",)
_TEXT_TASKS = (Task.CHAT, Task.COMPLETION)

_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_MAX_PRIORITY_LEVELS = 64
_MAX_INSTANCES = 256
_KINDS = MappingProxyType(
    {
        models_pb2.SEQUENCE_CONTROL_KIND_START: SequenceControlKind.START,
        models_pb2.SEQUENCE_CONTROL_KIND_END: SequenceControlKind.END,
        models_pb2.SEQUENCE_CONTROL_KIND_READY: SequenceControlKind.READY,
        models_pb2.SEQUENCE_CONTROL_KIND_CORRID: SequenceControlKind.CORRID,
    }
)
_FLAG_DATATYPES = ("BOOL", "INT32", "FP32")
_ID_DATATYPES = ("UINT64", "INT64", "UINT32", "INT32", "BYTES")


def spec_of(manifest: models_pb2.Manifest, digest: Digest, signer: bytes = b"") -> ModelSpec:
    """The model as the worker needs it. Raises ModelRefused for a manifest that describes none."""
    where = f"the manifest of {manifest.model!r} version {manifest.version!r}"
    if not manifest.model or not _VERSION.fullmatch(manifest.version):
        raise ModelRefused(f"{where} needs a name and a positive decimal version")
    tasks = {task.value: task for task in Task}
    if manifest.task not in tasks:
        raise ModelRefused(f"{where} has task {manifest.task!r}; known: {', '.join(sorted(tasks))}")
    if not manifest.outputs:
        raise ModelRefused(f"{where} describes no outputs")
    if manifest.instances > _MAX_INSTANCES:
        raise ModelRefused(f"{where} asks for {manifest.instances} instances; up to {_MAX_INSTANCES} are taken")
    return ModelSpec(
        model=ModelName(manifest.model),
        version=ModelVersion(manifest.version),
        digest=digest,
        engine=manifest.engine,
        task=tasks[manifest.task],
        max_batch_size=manifest.max_batch_size,
        inputs=tuple(_tensor(where, tensor) for tensor in manifest.inputs),
        outputs=tuple(_tensor(where, tensor) for tensor in manifest.outputs),
        batching=_batching(where, manifest.batching),
        parameters=dict(manifest.parameters),
        decoupled=manifest.decoupled or manifest.engine in _TEXT_ENGINES or tasks[manifest.task] in _TEXT_TASKS,
        sequences=_sequences(where, manifest) if manifest.HasField("sequence_batching") else None,
        warm_ups=tuple(_warm_up(where, manifest, warm_up) for warm_up in manifest.warm_ups),
        instances=manifest.instances or 1,
        memory_bytes=manifest.memory_bytes,
        compiled_for=_compiled_for(manifest.compiled_for) if manifest.HasField("compiled_for") else None,
        signer=signer,
        traits=_traits(where, manifest),
    )


def _traits(where: str, manifest: models_pb2.Manifest) -> Traits:
    """Capabilities that are not known here are another worker's: they do not keep a model from being served."""
    if manifest.response_cache and (fault := manifest_cache_fault(manifest)):
        raise ModelRefused(f"{where} has response_cache, which {fault}")
    cost = manifest.cost_per_million_tokens
    if not (math.isfinite(cost) and cost >= 0):
        raise ModelRefused(f"{where} has cost_per_million_tokens {cost}; a number from 0 is expected")
    return Traits(
        capabilities=frozenset(manifest.capabilities) & frozenset(CAPABILITIES),
        cacheable=manifest.response_cache,
        context_tokens=manifest.context_tokens,
        cost_per_million_tokens=cost,
    )


def _tensor(where: str, tensor: models_pb2.TensorSpec) -> TensorSpec:
    _check_datatype(where, tensor.name, tensor.datatype, DATATYPES)
    return TensorSpec(
        tensor.name, tensor.datatype, _shape(where, tensor.name, tensor.shape), tuple(tensor.labels), tensor.optional
    )


def _check_datatype(where: str, name: str, datatype: str, allowed: Iterable[str]) -> None:
    if datatype not in allowed:
        raise ModelRefused(f"{where} gives tensor {name!r} datatype {datatype!r}; known: {', '.join(sorted(allowed))}")


def _shape(where: str, name: str, shape: Iterable[int]) -> tuple[int, ...]:
    sizes = tuple(shape)
    if any(size < -1 for size in sizes):
        raise ModelRefused(f"{where} gives tensor {name!r} shape {list(sizes)}; -1 is the only negative dimension")
    return sizes


def _batching(where: str, batching: models_pb2.Batching) -> BatchingSpec:
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels > _MAX_PRIORITY_LEVELS:
        raise ModelRefused(f"{where} has {levels} priority levels; up to {_MAX_PRIORITY_LEVELS} are taken")
    if not (default == 0 if levels == 0 else 1 <= default <= levels):
        raise ModelRefused(f"{where} has default_priority_level {default} of {levels} levels; it is one of them")
    if unknown := sorted(level for level in batching.priority_queue_policies if not 1 <= level <= levels):
        raise ModelRefused(f"{where} has a queue policy for priority {unknown[0]}; its levels are 1 to {levels}")
    return BatchingSpec(
        max_queue_delay_us=batching.max_queue_delay_us,
        preferred_batch_sizes=tuple(batching.preferred_batch_sizes),
        max_queue_size=batching.max_queue_size,
        priority_levels=levels,
        default_priority_level=default,
        default_queue_policy=_queue_policy(batching.default_queue_policy)
        if batching.HasField("default_queue_policy")
        else QueuePolicy(),
        priority_queue_policies={level: _queue_policy(each) for level, each in batching.priority_queue_policies.items()},
        preserve_ordering=batching.preserve_ordering,
    )


def _queue_policy(policy: models_pb2.QueuePolicy) -> QueuePolicy:
    delays = policy.timeout_action == models_pb2.TIMEOUT_ACTION_DELAY
    return QueuePolicy(
        timeout_action=TimeoutAction.DELAY if delays else TimeoutAction.REJECT,
        default_timeout_s=policy.default_timeout_us / 1e6 if policy.default_timeout_us else None,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _sequences(where: str, manifest: models_pb2.Manifest) -> SequenceSpec:
    batching = manifest.sequence_batching
    oldest = batching.strategy == models_pb2.SEQUENCE_STRATEGY_OLDEST
    return SequenceSpec(
        strategy=SequenceStrategy.OLDEST if oldest else SequenceStrategy.DIRECT,
        max_idle_s=batching.max_idle_us / 1e6 if batching.max_idle_us else 1.0,
        max_sequences=batching.max_sequences,
        max_waiting_sequences=batching.max_waiting_sequences,
        controls=tuple(_control(where, control) for control in batching.controls),
        states=tuple(_state(where, state) for state in batching.states),
    )


def _control(where: str, control: models_pb2.SequenceControl) -> SequenceControl:
    kind = _KINDS.get(control.kind)
    if kind is None or not control.input:
        raise ModelRefused(f"{where} has a sequence control {control.input!r} without a name or without a kind")
    _check_datatype(
        where, control.input, control.datatype, _ID_DATATYPES if kind is SequenceControlKind.CORRID else _FLAG_DATATYPES
    )
    return SequenceControl(control.input, kind, control.datatype)


def _state(where: str, state: models_pb2.SequenceState) -> SequenceState:
    if not state.input or not state.output:
        raise ModelRefused(f"{where} has a sequence state without an input or without an output")
    _check_datatype(where, state.input, state.datatype, DATATYPES)
    shape = _shape(where, state.input, state.shape)
    if -1 in shape:
        raise ModelRefused(f"{where} gives sequence state {state.input!r} shape {list(shape)}; a state has one size")
    return SequenceState(state.input, state.output, state.datatype, shape)


def _warm_up(where: str, manifest: models_pb2.Manifest, warm_up: models_pb2.WarmUp) -> WarmUpSpec:
    inputs: Mapping[str, models_pb2.TensorSpec] = {tensor.name: tensor for tensor in manifest.inputs}
    if unknown := sorted(warm_up.inputs.keys() - inputs.keys()):
        raise ModelRefused(f"{where}: warm-up {warm_up.name!r} names input {unknown[0]!r}; the inputs are {sorted(inputs)}")
    if manifest.max_batch_size and warm_up.rows > manifest.max_batch_size:
        raise ModelRefused(
            f"{where}: warm-up {warm_up.name!r} has {warm_up.rows} rows; an execution takes {manifest.max_batch_size}"
        )
    return WarmUpSpec(
        name=warm_up.name,
        rows=warm_up.rows,
        count=warm_up.count or 1,
        inputs=tuple(_warm_up_input(where, name, warm_up.inputs[name]) for name in sorted(warm_up.inputs)),
    )


def _warm_up_input(where: str, name: str, data: models_pb2.WarmUpInput) -> WarmUpInput:
    shape = _shape(where, name, data.shape)
    if -1 in shape:
        raise ModelRefused(f"{where} warms input {name!r} with shape {list(shape)}; give it one size")
    kind = {"random": WarmUpData.RANDOM, "file": WarmUpData.FILE}.get(data.WhichOneof("data") or "", WarmUpData.ZEROS)
    return WarmUpInput(name, kind, shape, data.file)


def _compiled_for(compiled: models_pb2.CompiledFor) -> CompiledFor:
    return CompiledFor(compiled.runtime, compiled.version, tuple(compiled.compute_capabilities))
