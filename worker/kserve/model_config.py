"""A model's specification as Triton's ModelConfig says it, the whole of it: perf_analyzer and Triton's users read it.

A codec, one way. What is not in the specification is not in the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from inference import model_config_pb2 as pb

from worker.batching.queue import DEFAULT_QUEUE_SIZE
from worker.datatypes import DATATYPES
from worker.types import (
    BatchingSpec,
    ModelSpec,
    QueuePolicy,
    SequenceControl,
    SequenceControlKind,
    SequenceSpec,
    SequenceStrategy,
    TensorSpec,
    TimeoutAction,
    WarmUpData,
    WarmUpSpec,
)

_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Platform:
    """How Triton would call what runs a model, and its main file."""

    platform: str
    backend: str
    file: str = ""


_PLATFORMS: Mapping[str, Platform] = MappingProxyType(
    {
        "onnx": Platform("onnxruntime_onnx", "onnxruntime", "model.onnx"),
        "tensorrt": Platform("tensorrt_plan", "tensorrt", "model.plan"),
        "torch": Platform("torch_export", "pytorch", "model.pt2"),  # pytorch_libtorch would mean TorchScript
        "litert": Platform("litert_tflite", "litert", "model.tflite"),
        "python": Platform("python", "python", "model.py"),
        "llm": Platform("onnxruntime_genai", "onnxruntime_genai"),
        "upstream": Platform("upstream", "upstream"),
    }
)
_CONTROLS = MappingProxyType(
    {
        SequenceControlKind.START: pb.ModelSequenceBatching.Control.CONTROL_SEQUENCE_START,
        SequenceControlKind.END: pb.ModelSequenceBatching.Control.CONTROL_SEQUENCE_END,
        SequenceControlKind.READY: pb.ModelSequenceBatching.Control.CONTROL_SEQUENCE_READY,
        SequenceControlKind.CORRID: pb.ModelSequenceBatching.Control.CONTROL_SEQUENCE_CORRID,
    }
)
_ON_GPU = ("tensorrt",)
"""Engines that run on a GPU where the model does not say."""


def platform_of(spec: ModelSpec) -> Platform:
    return _PLATFORMS.get(spec.engine) or Platform(spec.engine, spec.engine)


def config_of(spec: ModelSpec) -> pb.ModelConfig:
    """Triton's ModelConfig; dims leave out the batch dimension."""
    platform = platform_of(spec)
    config = pb.ModelConfig(
        name=spec.model,
        platform=platform.platform,
        backend=platform.backend,
        default_model_filename=spec.parameters.get("file", platform.file),
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
        max_batch_size=spec.max_batch_size,
        input=[
            pb.ModelInput(name=tensor.name, data_type=_number(tensor.datatype), dims=tensor.shape, optional=tensor.optional)
            for tensor in spec.inputs
        ],
        output=[
            pb.ModelOutput(name=tensor.name, data_type=_number(tensor.datatype), dims=tensor.shape) for tensor in spec.outputs
        ],
        instance_group=[_instances(spec)],
        model_warmup=[_warm_up(spec, warm_up) for warm_up in spec.warm_ups],
        parameters={key: pb.ModelParameter(string_value=value) for key, value in sorted(spec.parameters.items())},
    )
    if spec.sequences is not None:
        config.sequence_batching.CopyFrom(_sequences(spec, spec.sequences))
    elif spec.max_batch_size > 0 or spec.batching != BatchingSpec():
        config.dynamic_batching.CopyFrom(_batching(spec.batching))
    if spec.engine in _ON_GPU:
        config.optimization.cuda.graphs = spec.parameters.get("cuda_graphs", "") != "off"
        config.optimization.input_pinned_memory.enable = config.optimization.output_pinned_memory.enable = True
    if spec.compiled_for is not None:
        for capability in spec.compiled_for.compute_capabilities:
            config.cc_model_filenames[capability] = config.default_model_filename
    if spec.traits.cacheable:
        config.response_cache.enable = True
    if spec.decoupled:
        config.model_transaction_policy.decoupled = True
    return config


def _instances(spec: ModelSpec) -> pb.ModelInstanceGroup:
    kinds = pb.ModelInstanceGroup
    device, _, index = (spec.parameters.get("device") or ("cuda" if spec.engine in _ON_GPU else "cpu")).partition(":")
    group = pb.ModelInstanceGroup(
        name=f"{spec.model}_0", kind=kinds.KIND_CPU if device == "cpu" else kinds.KIND_GPU, count=spec.instances
    )
    if device != "cpu":
        group.gpus.append(int(index) if index.isdecimal() else 0)
    return group


def _batching(batching: BatchingSpec) -> pb.ModelDynamicBatching:
    places = batching.max_queue_size or DEFAULT_QUEUE_SIZE
    return pb.ModelDynamicBatching(
        preferred_batch_size=batching.preferred_batch_sizes,
        max_queue_delay_microseconds=batching.max_queue_delay_us,
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
        default_queue_policy=_queue_policy(batching.default_queue_policy, places),
        priority_queue_policy={
            level: _queue_policy(policy, places) for level, policy in sorted(batching.priority_queue_policies.items())
        },
    )


def _queue_policy(policy: QueuePolicy, places: int) -> pb.ModelQueuePolicy:
    actions = {TimeoutAction.REJECT: pb.ModelQueuePolicy.REJECT, TimeoutAction.DELAY: pb.ModelQueuePolicy.DELAY}
    return pb.ModelQueuePolicy(
        timeout_action=actions[policy.timeout_action],
        default_timeout_microseconds=round((policy.default_timeout_s or 0) * _US),
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size or places,
    )


def _sequences(spec: ModelSpec, sequences: SequenceSpec) -> pb.ModelSequenceBatching:
    batching = spec.batching
    message = pb.ModelSequenceBatching(
        max_sequence_idle_microseconds=round(sequences.max_idle_s * _US),
        control_input=[
            pb.ModelSequenceBatching.ControlInput(name=control.input, control=[_control(control)])
            for control in sequences.controls
        ],
        state=[
            pb.ModelSequenceBatching.State(
                input_name=state.input, output_name=state.output, data_type=_number(state.datatype), dims=state.shape
            )
            for state in sequences.states
        ],
    )
    if sequences.strategy is SequenceStrategy.DIRECT:
        message.direct.max_queue_delay_microseconds = batching.max_queue_delay_us
    else:
        message.oldest.max_candidate_sequences = sequences.max_sequences or max(1, spec.max_batch_size) * spec.instances
        message.oldest.preferred_batch_size.extend(batching.preferred_batch_sizes)
        message.oldest.max_queue_delay_microseconds = batching.max_queue_delay_us
        message.oldest.preserve_ordering = batching.preserve_ordering
    return message


def _control(control: SequenceControl) -> pb.ModelSequenceBatching.Control:
    message = pb.ModelSequenceBatching.Control(kind=_CONTROLS[control.kind])
    if control.kind is SequenceControlKind.CORRID:
        message.data_type = _number(control.datatype)
    elif control.datatype == "BOOL":
        message.bool_false_true.extend((False, True))
    elif control.datatype == "FP32":
        message.fp32_false_true.extend((0.0, 1.0))
    else:
        message.int32_false_true.extend((0, 1))
    return message


def _warm_up(spec: ModelSpec, warm_up: WarmUpSpec) -> pb.ModelWarmup:
    tensors: Mapping[str, TensorSpec] = {tensor.name: tensor for tensor in spec.inputs}
    message = pb.ModelWarmup(name=warm_up.name, batch_size=warm_up.rows, count=warm_up.count)
    for given in warm_up.inputs:
        tensor, told = tensors[given.name], message.inputs[given.name]
        told.data_type = _number(tensor.datatype)
        told.dims.extend(given.shape or (1 if size == -1 else size for size in tensor.shape))
        if given.data is WarmUpData.RANDOM:
            told.random_data = True
        elif given.data is WarmUpData.FILE:
            told.input_data_file = given.file
        else:
            told.zero_data = True
    return message


def _number(datatype: str) -> pb.DataType.ValueType:
    return pb.DataType.ValueType(DATATYPES[datatype].number)
