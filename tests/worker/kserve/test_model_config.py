"""The configuration says all that the specification does."""

from __future__ import annotations

import pytest
from inference import model_config_pb2 as pb

from tests.worker.onnx_models import spec
from worker.kserve.model_config import config_of
from worker.types import (
    BatchingSpec,
    CompiledFor,
    QueuePolicy,
    SequenceControl,
    SequenceControlKind,
    SequenceSpec,
    SequenceState,
    SequenceStrategy,
    TensorSpec,
    TimeoutAction,
    WarmUpData,
    WarmUpInput,
    WarmUpSpec,
)


def test_batching_priorities_and_queue_policies() -> None:
    batching = BatchingSpec(
        max_queue_delay_us=500,
        preferred_batch_sizes=(4, 8),
        max_queue_size=70,
        priority_levels=3,
        default_priority_level=2,
        default_queue_policy=QueuePolicy(TimeoutAction.DELAY, 0.25, allow_timeout_override=False),
        priority_queue_policies={1: QueuePolicy(max_queue_size=5)},
        preserve_ordering=True,
    )
    told = config_of(spec(batching=batching)).dynamic_batching
    assert (list(told.preferred_batch_size), told.max_queue_delay_microseconds, told.preserve_ordering) == ([4, 8], 500, True)
    assert (told.priority_levels, told.default_priority_level) == (3, 2)
    default, urgent = told.default_queue_policy, told.priority_queue_policy[1]
    assert (default.timeout_action, default.default_timeout_microseconds) == (pb.ModelQueuePolicy.DELAY, 250_000)
    assert (default.allow_timeout_override, default.max_queue_size) == (False, 70)
    assert (urgent.timeout_action, urgent.allow_timeout_override, urgent.max_queue_size) == (
        pb.ModelQueuePolicy.REJECT,
        True,
        5,
    )


def test_a_queue_without_batching_is_shown_where_it_has_rules() -> None:
    assert not config_of(spec(max_batch_size=0)).HasField("dynamic_batching")
    assert config_of(spec(max_batch_size=0, batching=BatchingSpec(priority_levels=2))).dynamic_batching.priority_levels == 2


@pytest.mark.parametrize("strategy", list(SequenceStrategy))
def test_sequences(strategy: SequenceStrategy) -> None:
    sequences = SequenceSpec(
        strategy,
        max_idle_s=2.5,
        controls=(
            SequenceControl("start", SequenceControlKind.START, "INT32"),
            SequenceControl("ready", SequenceControlKind.READY, "BOOL"),
            SequenceControl("end", SequenceControlKind.END, "FP32"),
            SequenceControl("id", SequenceControlKind.CORRID, "UINT64"),
        ),
        states=(SequenceState("state_in", "state_out", "FP32", (-1, 2)),),
    )
    batching = BatchingSpec(max_queue_delay_us=300, preferred_batch_sizes=(2,))
    config = config_of(spec(max_batch_size=4, instances=3, sequences=sequences, batching=batching))
    told = config.sequence_batching
    assert not config.HasField("dynamic_batching")
    assert told.max_sequence_idle_microseconds == 2_500_000
    controls = {each.name: each.control[0] for each in told.control_input}
    assert controls["start"].kind == pb.ModelSequenceBatching.Control.CONTROL_SEQUENCE_START
    assert list(controls["start"].int32_false_true) == [0, 1]
    assert list(controls["ready"].bool_false_true) == [False, True]
    assert list(controls["end"].fp32_false_true) == [0.0, 1.0]
    assert controls["id"].data_type == pb.TYPE_UINT64
    assert (told.state[0].input_name, told.state[0].output_name, list(told.state[0].dims)) == ("state_in", "state_out", [-1, 2])
    if strategy is SequenceStrategy.DIRECT:
        assert told.direct.max_queue_delay_microseconds == 300
    else:
        assert (told.oldest.max_candidate_sequences, list(told.oldest.preferred_batch_size)) == (12, [2])


def test_warm_ups() -> None:
    warm_up = WarmUpSpec(
        "first",
        rows=2,
        count=3,
        inputs=(
            WarmUpInput("x", WarmUpData.RANDOM, (5,)),
            WarmUpInput("y", WarmUpData.FILE, file="y.bin"),
            WarmUpInput("z", WarmUpData.ZEROS),
        ),
    )
    inputs = (TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "INT8", (-1, 7)), TensorSpec("z", "BYTES", (1,)))
    (told,) = config_of(spec(inputs=inputs, warm_ups=(warm_up,))).model_warmup
    assert (told.name, told.batch_size, told.count) == ("first", 2, 3)
    assert (told.inputs["x"].random_data, list(told.inputs["x"].dims)) == (True, [5])
    assert (told.inputs["y"].input_data_file, list(told.inputs["y"].dims)) == ("y.bin", [1, 7])
    assert (told.inputs["z"].zero_data, told.inputs["z"].data_type) == (True, pb.TYPE_STRING)


@pytest.mark.parametrize(
    ("engine", "parameters", "platform", "backend", "kind", "gpus"),
    [
        ("onnx", {}, "onnxruntime_onnx", "onnxruntime", pb.ModelInstanceGroup.KIND_CPU, []),
        ("onnx", {"device": "cuda:1"}, "onnxruntime_onnx", "onnxruntime", pb.ModelInstanceGroup.KIND_GPU, [1]),
        ("torch", {"device": "cuda"}, "torch_export", "pytorch", pb.ModelInstanceGroup.KIND_GPU, [0]),
        ("litert", {}, "litert_tflite", "litert", pb.ModelInstanceGroup.KIND_CPU, []),
        ("tensorrt", {}, "tensorrt_plan", "tensorrt", pb.ModelInstanceGroup.KIND_GPU, [0]),
        ("python", {}, "python", "python", pb.ModelInstanceGroup.KIND_CPU, []),
        ("upstream", {}, "upstream", "upstream", pb.ModelInstanceGroup.KIND_CPU, []),
        ("new", {}, "new", "new", pb.ModelInstanceGroup.KIND_CPU, []),
    ],
)
def test_what_runs_it_and_where(
    engine: str, parameters: dict[str, str], platform: str, backend: str, kind: int, gpus: list[int]
) -> None:
    config = config_of(spec(engine=engine, parameters=parameters, instances=2))
    (group,) = config.instance_group
    assert (config.platform, config.backend) == (platform, backend)
    assert (group.count, group.kind, list(group.gpus)) == (2, kind, gpus)


def test_compiled_files() -> None:
    config = config_of(spec(engine="tensorrt", compiled_for=CompiledFor("tensorrt_rtx", "1.7.1", ("8.0", "9.0"))))
    assert dict(config.cc_model_filenames) == {"8.0": "model.plan", "9.0": "model.plan"}
    assert config.optimization.cuda.graphs
    assert config.optimization.input_pinned_memory.enable
