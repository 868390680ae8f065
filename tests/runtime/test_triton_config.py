"""Triton's configurations, read: what each field becomes, what is refused and in which words, and that nothing goes unsaid."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from google.protobuf import json_format, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from inference import model_config_pb2 as pb
from penstock.registry.v1 import models_pb2

from runtime.errors import Code, PenstockError
from runtime.ids import Digest
from runtime.model_description import DATATYPES
from runtime.triton_config import (
    CARRIED,
    LEFT_OUT,
    MAX_CONFIG_BYTES,
    REFUSED,
    Carried,
    carry,
    chosen_versions,
    parse_json,
    parse_text,
)
from runtime.triton_engines import TritonConfigRefused
from tests.runtime.triton_texts import PLAIN, SEQUENCES, WHOLE
from worker.kserve.model_config import config_of
from worker.spec import spec_of
from worker.types import ModelSpec, SequenceControlKind, SequenceStrategy, TimeoutAction, WarmUpData


def labels(name: str) -> Sequence[str]:
    assert name == "labels.txt"
    return ["no", "yes"]


def read(text: str, *paths: str, name: str = "m") -> Carried:
    return carry("config.pbtxt", parse_text("config.pbtxt", text), name, set(paths) or {"model.onnx"}, labels)


def spec(carried: Carried) -> ModelSpec:
    """As a worker has it."""
    manifest = models_pb2.Manifest()
    manifest.CopyFrom(carried.manifest)
    manifest.version = "1"
    return spec_of(manifest, Digest("0" * 64))


def test_a_plain_configuration() -> None:
    carried = read(PLAIN)
    known = spec(carried)
    assert (known.model, known.engine, known.max_batch_size, known.parameters) == ("plain", "onnx", 8, {})
    assert [(each.name, each.datatype, each.shape) for each in known.inputs] == [("x", "FP32", (2,))]
    assert known.outputs[0].labels == ("no", "yes")
    assert carried.warnings == ()


def test_everything_that_is_carried() -> None:
    carried = read(WHOLE, "net.onnx")
    known, batching = spec(carried), spec(carried).batching
    assert [(each.name, each.datatype, each.shape, each.optional) for each in known.inputs] == [
        ("x", "FP32", (3, -1), False),
        ("hint", "BYTES", (1,), True),
    ]
    assert known.instances == 3
    assert known.parameters == {
        "file": "net.onnx",
        "intra_op_threads": "3",
        "execution_mode": "parallel",
        "graph_optimization": "basic",
        "team": "vision",
    }
    assert (batching.preferred_batch_sizes, batching.max_queue_delay_us, batching.preserve_ordering) == ((4, 8), 500, True)
    assert (batching.priority_levels, batching.default_priority_level) == (2, 2)
    policy = batching.default_queue_policy
    assert (policy.timeout_action, policy.default_timeout_s, policy.allow_timeout_override, policy.max_queue_size) == (
        TimeoutAction.DELAY,
        0.001,
        True,
        32,
    )
    assert batching.priority_queue_policies[1].max_queue_size == 7
    (warm_up,) = known.warm_ups
    assert (warm_up.name, warm_up.rows, warm_up.count) == ("full", 16, 3)
    assert {each.name: (each.data, each.shape, each.file) for each in warm_up.inputs} == {
        "x": (WarmUpData.RANDOM, (3, 4), ""),
        "hint": (WarmUpData.FILE, (1,), "hint.raw"),
    }
    told = " ".join(carried.warnings)
    assert carried.manifest.response_cache
    for word in ("metric_tags", "eager_batching", "'team'"):
        assert word in told
    assert len(carried.warnings) == 3


def test_sequences() -> None:
    known = spec(read(SEQUENCES))
    sequences = known.sequences
    assert sequences is not None
    assert (sequences.strategy, sequences.max_idle_s, sequences.max_sequences) == (SequenceStrategy.OLDEST, 5.0, 9)
    assert [(each.input, each.kind, each.datatype) for each in sequences.controls] == [
        ("START", SequenceControlKind.START, "FP32"),
        ("END", SequenceControlKind.END, "INT32"),
        ("READY", SequenceControlKind.READY, "BOOL"),
        ("CORRID", SequenceControlKind.CORRID, "BYTES"),
    ]
    assert [(each.input, each.output, each.shape) for each in sequences.states] == [("s_in", "s_out", (5,))]
    assert (known.batching.preferred_batch_sizes, known.batching.max_queue_delay_us) == ((2,), 70)
    assert known.batching.preserve_ordering
    direct = SEQUENCES.replace("oldest {", "direct { max_queue_delay_microseconds: 3 } #").replace("max_batch_size: 4", "")
    assert spec(read(direct)).sequences.strategy is SequenceStrategy.DIRECT  # type: ignore[union-attr]
    assert spec(read(direct)).batching.max_queue_delay_us == 3


INPUT = 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]'
OUTPUT = 'output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]'


BAD_ID = "{ name: 'S' control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32 } ] }"
STATE = "input_name: 'a' output_name: 'b' data_type: TYPE_FP32"


def refusal(text: str, *paths: str) -> str:
    with pytest.raises(PenstockError) as error:
        read(text, *paths)
    assert error.value.code is Code.INVALID_ARGUMENT
    assert error.value.message.startswith("config.pbtxt")
    return error.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour: 1", "colour"),
        ("max_batch_size: x", "max_batch_size"),
        ("max_batch_size: -1", "max_batch_size is -1"),
        ("input [ { name: 'x' dims: [ 2 ] } ]", "'x' has no data_type"),
        ("input [ { data_type: TYPE_FP32 dims: [ 2 ] } ]", "no name"),
        ("input [ { name: 'x' data_type: TYPE_FP32 dims: [ -2 ] } ]", "dims [-2]"),
        ("input [ { name: 'x' data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } } ]", "reshape"),
        ("input [ { name: 'x' data_type: TYPE_FP32 dims: [ 1 ] allow_ragged_batch: true } ]", "ragged"),
        (INPUT + INPUT, "'x' is given twice"),
        ("output [ { name: 'y' data_type: TYPE_FP32 dims: [ 1 ] label_filename: '../x' } ]", "leads out"),
        ("default_model_filename: '/etc/passwd'", "leads out"),
        ("default_model_filename: 'other.onnx' platform: 'onnxruntime_onnx'", "'other.onnx'"),
        ("name: '../x'", "may hold letters"),
        ("platform: 'ensemble' ensemble_scheduling { step [ { model_name: 'a' } ] }", "ensembles"),
        ("batch_input [ { kind: BATCH_ELEMENT_COUNT } ]", "batch_input"),
        ("model_repository_agents { agents [ { name: 'checksum' } ] }", "model_repository_agents"),
        ("model_operations { op_library_filename: 'x.so' }", "model_operations"),
        ("backend: 'vllm'", "upstream"),
        ("backend: 'tensorrtllm'", "upstream"),
        ("backend: 'nobody'", "'nobody'"),
        ("instance_group [ { kind: KIND_GPU }, { kind: KIND_CPU } ]", "GPU and for CPU"),
        ("instance_group [ { count: 300 } ]", "300"),
        ("dynamic_batching { priority_levels: 65 default_priority_level: 1 }", "65"),
        ("dynamic_batching { priority_levels: 2 }", "default_priority_level is 0"),
        ("dynamic_batching { priority_queue_policy { key: 1 value { } } }", "priority 1"),
        ("dynamic_batching { preferred_batch_size: [ -4 ] }", "-4"),
        ("sequence_batching { iterative_sequence: true }", "iterative_sequence"),
        ("sequence_batching { control_input [ { name: 'S' } ] }", "0 controls"),
        ("sequence_batching { control_input [ { name: 'S' control [ { fp32_false_true: [ 0, 2 ] } ] } ] }", "0 and 1"),
        ("sequence_batching { control_input [ { name: 'S' control [ { } ] } ] }", "exactly one"),
        ("sequence_batching { control_input [ " + BAD_ID + " ] }", "FP32"),
        ("sequence_batching { state [ { " + STATE + " dims: [ -1 ] } ] }", "one size"),
        ("sequence_batching { state [ { " + STATE + " dims: [ 1 ] initial_state { data_file: 'x' } } ] }", "zeros"),
        ("sequence_batching { state [ { " + STATE + " dims: [ 1 ] use_growable_memory: true } ] }", "grows"),
        ("model_warmup [ { inputs { key: 'x' value { input_data_file: '../x' } } } ]", "leads out"),
    ],
)
def test_what_would_answer_otherwise_is_refused_with_its_name(text: str, words: str) -> None:
    assert words in refusal(text)


@pytest.mark.parametrize(
    ("text", "paths", "engine", "file"),
    [
        ("", ("model.onnx",), "onnx", ""),
        ("", ("model.onnx", "model.onnx.data"), "onnx", ""),
        ("", ("model.onnx/model.onnx", "model.onnx/weights.bin"), "onnx", "model.onnx/model.onnx"),
        ("platform: 'onnxruntime_onnx'", ("resnet.onnx", "weights.bin"), "onnx", "resnet.onnx"),
        ("default_model_filename: 'a.onnx'", ("a.onnx", "b.onnx"), "onnx", "a.onnx"),
        ("platform: 'tensorrt_plan'", ("model.plan",), "tensorrt", ""),
        ("backend: 'pytorch'", ("model.pt2",), "torch", ""),
        ("platform: 'pytorch_libtorch' default_model_filename: 'net.pt2'", ("net.pt2",), "torch", "net.pt2"),
        ("backend: 'tensorflow'", ("model.tflite",), "litert", ""),
        ("", ("model.tflite",), "litert", ""),
        ("backend: 'python'", ("model.py", "weights.npz"), "python", ""),
    ],
)
def test_engines_by_platform_backend_and_files(text: str, paths: tuple[str, ...], engine: str, file: str) -> None:
    manifest = read(text, *paths).manifest
    assert (manifest.engine, manifest.parameters.get("file", "")) == (engine, file)


@pytest.mark.parametrize(
    ("text", "paths", "words"),
    [
        ("", ("weights.bin",), "do not tell the engine"),
        ("", ("model.onnx", "model.plan"), "do not tell the engine"),
        ("platform: 'pytorch_libtorch'", ("model.pt",), "torch.export"),
        ("platform: 'tensorflow_savedmodel'", ("model.savedmodel/saved_model.pb",), "TensorFlow Lite"),
        ("platform: 'tensorflow_graphdef' default_model_filename: 'model.graphdef'", ("model.graphdef",), "TensorFlow Lite"),
        ("backend: 'python' default_model_filename: 'other.py'", ("other.py",), "model.py"),
        ("backend: 'onnxruntime'", ("a.onnx", "b.onnx"), "a.onnx, b.onnx"),
    ],
)
def test_files_that_no_engine_here_runs(text: str, paths: tuple[str, ...], words: str) -> None:
    assert words in refusal(text, *paths)


@pytest.mark.parametrize(
    ("groups", "device"),
    [
        ("{ kind: KIND_CPU }", ""),
        ("{ kind: KIND_AUTO }", ""),
        ("{ kind: KIND_GPU }", "cuda"),
        ("{ kind: KIND_GPU gpus: [ 0 ] }", "cuda"),
        ("{ kind: KIND_GPU gpus: [ 1 ] }", "cuda:1"),
        ("{ kind: KIND_GPU gpus: [ 2, 1 ] }", "cuda:1"),
    ],
)
def test_a_gpu_that_is_asked_for_is_insisted_on(groups: str, device: str) -> None:
    carried = read(f"backend: 'onnxruntime' instance_group [ {groups} ]")
    assert carried.manifest.parameters.get("device", "") == device
    assert any("GPU" in warning for warning in carried.warnings) == bool(device)


@pytest.mark.parametrize(
    ("policy", "versions", "chosen"),
    [
        ("", [3, 1, 10], [1, 3, 10]),
        ("version_policy { all { } }", [3, 1, 10], [1, 3, 10]),
        ("version_policy { latest { } }", [3, 1, 10], [10]),
        ("version_policy { latest { num_versions: 2 } }", [3, 1, 10], [3, 10]),
        ("version_policy { latest { num_versions: 9 } }", [3], [3]),
        ("version_policy { specific { versions: [ 1, 7, 3 ] } }", [3, 1, 10], [1, 3]),
        ("version_policy { specific { versions: [ 7 ] } }", [3], []),
    ],
)
def test_which_versions_are_meant(policy: str, versions: list[int], chosen: list[int]) -> None:
    assert chosen_versions(parse_text("c", policy), versions) == chosen


def test_every_field_of_a_configuration_is_decided_on() -> None:
    """A field that a later Triton adds fails here until somebody has thought about it."""
    assert {field.name for field in pb.ModelConfig.DESCRIPTOR.fields} == {*CARRIED, *LEFT_OUT, *REFUSED}


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '"x"', '{"colour": 1}', '{"maxBatchSize": "x"}', "[" * 100_000, '{"name": NaN}']
)
def test_json_that_is_no_configuration(text: str) -> None:
    with pytest.raises(TritonConfigRefused, match="is no model configuration"):
        parse_json("parameter 'config'", text)


def test_json_in_both_spellings() -> None:
    for text in (
        '{"max_batch_size": 3, "input": [{"data_type": "TYPE_FP32"}]}',
        '{"maxBatchSize": 3, "input": [{"dataType": 11}]}',
    ):
        config = parse_json("c", text)
        assert (config.max_batch_size, config.input[0].data_type) == (3, pb.TYPE_FP32)


def test_a_configuration_has_a_limit() -> None:
    for parse in (parse_text, parse_json):
        with pytest.raises(TritonConfigRefused, match=str(MAX_CONFIG_BYTES)):
            parse("c", " " * (MAX_CONFIG_BYTES + 1))


@pytest.mark.parametrize(("text", "path"), [(PLAIN, "model.onnx"), (WHOLE, "net.onnx"), (SEQUENCES, "model.onnx")])
def test_what_a_worker_reports_can_be_given_back(text: str, path: str) -> None:
    """The way of Triton's users: get_model_config, a change, load_model with it."""
    reported = config_of(spec(read(text, path)))
    again = parse_json("c", json_format.MessageToJson(reported, preserving_proto_field_name=True))
    carried = carry("c", again, "m", {path, "hint.raw"}, labels)
    assert config_of(spec(carried)) == reported


_WORDS = sorted(
    {field.name for message in (pb.ModelConfig, pb.ModelInput, pb.ModelDynamicBatching) for field in message.DESCRIPTOR.fields}
)
_TOKENS = st.one_of(
    st.sampled_from(_WORDS),
    st.sampled_from(
        ["{", "}", "[", "]", ":", ",", "<", ">", "#", "\n", "-1", "0", "9" * 40, "1e400", "nan", "true", "'x'", '"', "\\"]
    ),
    st.sampled_from(["TYPE_FP32", "KIND_GPU", "'onnxruntime'", "'model.onnx'", "key", "value", "\x00", "\ud800"]),
)


def _never_breaks(text: str, parse: Callable[[str, str], pb.ModelConfig] = parse_text) -> None:
    try:
        config = parse("c", text)
        spec(carry("c", config, "m", {"model.onnx"}, lambda _: []))
    except PenstockError as error:
        assert error.code in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION), error


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.lists(_TOKENS, max_size=40).map(" ".join), st.text(max_size=200)))
def test_garbage_is_refused_and_breaks_nothing(text: str) -> None:
    _never_breaks(text)
    _never_breaks(text, parse_json)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_configuration_with_any_values_is_read_or_refused(data: st.DataObject) -> None:
    """Messages with any values, by way of their text."""
    config = pb.ModelConfig()
    _fill(data, config, depth=0)
    _never_breaks(text_format.MessageToString(config))
    _never_breaks(json_format.MessageToJson(config), parse_json)


def _fill(data: st.DataObject, message: Message, depth: int) -> None:
    fields = cast("list[FieldDescriptor]", list(message.DESCRIPTOR.fields))
    if not fields:
        return
    most = 4 if depth else 7
    some = st.lists(st.sampled_from(fields), max_size=most, unique_by=lambda each: each.name)
    for field in data.draw(some):
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        for _ in range(data.draw(st.integers(1, 2)) if field.is_repeated else 1):
            target = getattr(message, field.name)
            if field.message_type is not None:
                child = target.add() if field.is_repeated else target
                child.SetInParent()
                if depth < 4:
                    _fill(data, child, depth + 1)
            elif field.is_repeated:
                target.append(data.draw(_value(field)))
            else:
                setattr(message, field.name, data.draw(_value(field)))


_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def _value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.cpp_type in _RANGES:
        return st.one_of(st.integers(*_RANGES[field.cpp_type]), st.sampled_from([0, 1, 2, 8]))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        usual = ["", "x", "m", "onnxruntime", "onnxruntime_onnx", "model.onnx", "../x"]
        return st.one_of(st.sampled_from(usual), st.text(max_size=8))
    return st.floats(width=32)


def test_the_datatypes_are_those_of_a_manifest() -> None:
    for name, number in pb.DataType.items():
        text = f"input [ {{ name: 'x' data_type: {name} dims: [ 1 ] }} ]"
        if number == pb.TYPE_INVALID:
            assert "no data_type" in refusal(text)
        else:
            assert read(text).manifest.inputs[0].datatype in DATATYPES


def test_json_is_read_as_tritonclient_sends_it() -> None:
    config = {"backend": "onnxruntime", "max_batch_size": 2, "dynamic_batching": {}, "parameters": {"a": {"string_value": "b"}}}
    carried = carry("c", parse_json("c", json.dumps(config)), "m", {"model.onnx"}, labels)
    assert (carried.manifest.max_batch_size, dict(carried.manifest.parameters)) == (2, {"a": "b"})
