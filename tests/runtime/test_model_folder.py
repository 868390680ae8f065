"""model.toml: what it may say, and sentences that name the field at fault."""

from pathlib import Path

import pytest
from penstock.registry.v1 import models_pb2

from runtime.description_table import ModelFolderRefused
from runtime.model_folder import complete_manifest, hash_file, read_model_folder

GOOD = """
name = "m"
engine = "onnx"
max_batch_size = 8
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [2]
labels = ["no", "yes"]
[parameters]
intra_op_threads = 1
"""


def _folder(tmp_path: Path, text: str) -> Path:
    (tmp_path / "model.toml").write_text(text)
    (tmp_path / "model.onnx").write_bytes(b"weights")
    return tmp_path


def test_a_folder_becomes_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "vocabulary.txt").write_text("a b")
    (tmp_path / ".hidden").write_text("no")
    read = read_model_folder(_folder(tmp_path, GOOD))
    assert [file.path for file in read.files] == ["model.onnx", "parts/vocabulary.txt"]
    digests = {file.path: hash_file(file.file) for file in read.files}
    manifest = complete_manifest(read, "3", digests)
    assert (manifest.model, manifest.version, manifest.task, manifest.max_batch_size) == ("m", "3", "tensor", 8)
    assert list(manifest.outputs[0].labels) == ["no", "yes"]
    assert manifest.parameters["intra_op_threads"] == "1"
    assert [file.size_bytes for file in manifest.files] == [7, 3]
    assert not read.manifest.files


WHOLE = GOOD.replace(
    "[parameters]",
    """
[batching]
max_queue_delay_us = 500
preferred_batch_sizes = [4, 8]
max_queue_size = 64
priority_levels = 2
default_priority_level = 2
preserve_ordering = true
[batching.default_queue_policy]
timeout_action = "delay"
default_timeout_us = 1000
[batching.priority_queue_policies.1]
allow_timeout_override = true
max_queue_size = 8
[sequence_batching]
strategy = "oldest"
max_idle_us = 2000000
max_sequences = 16
[[sequence_batching.controls]]
input = "START"
kind = "start"
datatype = "FP32"
[[sequence_batching.states]]
input = "in"
output = "out"
datatype = "FP32"
shape = [4]
[[warm_ups]]
name = "full"
rows = 8
count = 2
[warm_ups.inputs.x]
shape = [3]
data = "random"
[[warm_ups]]
[warm_ups.inputs.x]
file = "warm.raw"
[compiled_for]
runtime = "tensorrt_rtx"
version = "1.7.1"
compute_capabilities = ["8.0", "9.0"]
[parameters]
verbose = true""",
)


def test_all_that_a_description_may_say_arrives(tmp_path: Path) -> None:
    manifest = read_model_folder(_folder(tmp_path, "instances = 2\nmemory_bytes = 9\n" + WHOLE)).manifest
    assert (manifest.instances, manifest.memory_bytes, manifest.parameters["verbose"]) == (2, 9, "true")
    batching, sequences = manifest.batching, manifest.sequence_batching
    assert (batching.priority_levels, batching.default_priority_level, batching.preserve_ordering) == (2, 2, True)
    assert batching.default_queue_policy == models_pb2.QueuePolicy(
        timeout_action=models_pb2.TIMEOUT_ACTION_DELAY, default_timeout_us=1000
    )
    assert batching.priority_queue_policies[1].allow_timeout_override
    assert batching.priority_queue_policies[1].max_queue_size == 8
    assert (sequences.strategy, sequences.max_sequences) == (models_pb2.SEQUENCE_STRATEGY_OLDEST, 16)
    assert sequences.controls[0].kind == models_pb2.SEQUENCE_CONTROL_KIND_START
    assert list(sequences.states[0].shape) == [4]
    full, from_file = manifest.warm_ups
    assert (full.rows, full.count, full.inputs["x"].random, list(full.inputs["x"].shape)) == (8, 2, True, [3])
    assert from_file.inputs["x"].file == "warm.raw"
    assert list(manifest.compiled_for.compute_capabilities) == ["8.0", "9.0"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[[inputs]]", "[inputs]"), "inputs"),
        (('name = "m"', 'name = "../m"'), "name"),
        (('name = "m"', ""), "name"),
        (('engine = "onnx"', "engine = 3"), "engine"),
        (("max_batch_size = 8", "max_batch_size = -1"), "max_batch_size"),
        (("max_batch_size = 8", "batch = 8"), "'batch' is not a field"),
        (('datatype = "FP32"', 'datatype = "float"'), "datatype"),
        (("shape = [-1]", "shape = [-2]"), "shape"),
        (("shape = [-1]", "shape = [-1.0]"), "shape"),
        (("name = ", "name "), "cannot be read"),
        (("max_batch_size = 8", "max_batch_size = " + "9" * 5000), "cannot be read"),
        (("shape = [-1]", "shape = " + "[" * 5000), "cannot be read"),
        (('engine = "onnx"', 'engine = "onnx"\ntask = "poetry"'), "task"),
        (("max_batch_size = 8", "max_batch_size = 99999999999"), "too large"),
        (("[parameters]", "[batching]\nqueue = 3\n[parameters]"), r"\[batching\] 'queue' is not a field"),
        (("[parameters]", "[batching]\npreferred_batch_sizes = 4\n[parameters]"), "preferred_batch_sizes is 4; a list"),
        (
            ("[parameters]", "[batching.default_queue_policy]\ntimeout_action = 'wait'\n[parameters]"),
            r"\[batching.default_queue_policy\] timeout_action is 'wait'; it can be: reject, delay",
        ),
        (("[parameters]", "[batching.priority_queue_policies.high]\n[parameters]"), "'high' is no priority"),
        (("[parameters]", "[[sequence_batching.controls]]\ninput = 's'\nkind = 'go'\n[parameters]"), "kind is 'go'"),
        (("[parameters]", "[[warm_ups]]\n[warm_ups.inputs.x]\ndata = 'noise'\n[parameters]"), "data is 'noise'"),
        (("[parameters]", "[compiled_for]\nruntime = 'tensorrt_rtx'\n[parameters]"), "version"),
    ],
)
def test_a_wrong_description_names_the_field(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    with pytest.raises(ModelFolderRefused, match=says):
        read_model_folder(_folder(tmp_path, GOOD.replace(*change, 1)))


def test_a_folder_without_a_description_or_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderRefused, match=r"model\.toml"):
        read_model_folder(tmp_path)
    (tmp_path / "model.toml").write_text(GOOD)
    with pytest.raises(ModelFolderRefused, match="no files"):
        read_model_folder(tmp_path)
