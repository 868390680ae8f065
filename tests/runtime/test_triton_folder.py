"""Folders of a Triton repository: their versions and files, and what an ONNX file is asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from penstock.registry.v1 import models_pb2

from runtime.errors import Code, PenstockError
from runtime.model_folder import ModelFolder, describes_model, model_name, read_model_folder, read_versions
from runtime.onnx_io import DEFAULT_MAX_BATCH_SIZE, OnnxTensor, OnnxTensors, OnnxUnreadable, completed, read_onnx
from runtime.triton_config import parse_text
from runtime.triton_folder import ReadRules, read_onnx_file, read_triton_folder, versions_in
from tests.runtime.triton_repository import PLAIN, plain, repository, with_external_data, write
from tests.worker.onnx_models import identity


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"))


def tensors(folder: ModelFolder) -> list[tuple[str, str, list[int]]]:
    return [(each.name, each.datatype, list(each.shape)) for each in (*folder.manifest.inputs, *folder.manifest.outputs)]


def paths(folder: ModelFolder) -> list[str]:
    return [file.path for file in folder.files]


def test_what_is_a_model(models: Path) -> None:
    described = {entry.name for entry in models.iterdir() if entry.is_dir() and describes_model(entry)}
    assert described == {"plain", "bare", "unbatched", "versions", "labelled", "folder", "sum", "wrong", "pipeline"}
    assert model_name(models / "plain") == model_name(models / "bare").replace("bare", "plain") == "plain"
    assert not describes_model(models / "nowhere")


def test_versions_are_numbers_without_leading_zeros(tmp_path: Path) -> None:
    for name in ("1", "10", "2", "03", "0", "x", "1a", ".4", "٣"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("a file")
    assert versions_in(tmp_path) == [1, 2, 10]


def test_without_a_configuration_the_file_is_asked(models: Path) -> None:
    (bare,) = read_triton_folder(models / "bare")
    assert tensors(bare) == [("x", "FP32", [3]), ("y", "FP32", [3])]
    assert (bare.manifest.max_batch_size, bare.manifest.model, bare.manifest.version) == (DEFAULT_MAX_BATCH_SIZE, "bare", "1")
    (fixed,) = read_triton_folder(models / "unbatched")
    assert (tensors(fixed)[0], fixed.manifest.max_batch_size) == (("x", "INT64", [1, 4]), 0)
    (larger,) = read_triton_folder(models / "bare", ReadRules(max_batch_size=32))
    assert larger.manifest.max_batch_size == 32


def test_policies_say_which_versions_and_without_one_all_are_kept(models: Path, tmp_path: Path) -> None:
    assert [each.manifest.version for each in read_triton_folder(models / "versions")] == ["3", "10"]
    folder = plain(tmp_path / "m", (2, 11))
    assert [each.manifest.version for each in read_triton_folder(folder)] == ["2", "11"]
    assert [each.manifest.version for each in read_versions(folder)] == ["11"], "what Triton serves without a policy"
    assert read_model_folder(folder).manifest.version == "11"


def test_labels_and_warm_up_data_lie_beside_the_versions(models: Path) -> None:
    (labelled,) = read_triton_folder(models / "labelled")
    assert list(labelled.manifest.outputs[0].labels) == ["no", "yes"]
    assert labelled.manifest.warm_ups[0].inputs["x"].file == "warmup/x.raw"
    assert paths(labelled) == ["model.onnx", "warmup/x.raw"]
    assert labelled.files[1].file == models / "labelled" / "warmup" / "x.raw"


def test_a_model_in_a_folder_with_its_weights(models: Path) -> None:
    (folder,) = read_triton_folder(models / "folder")
    assert paths(folder) == ["model.onnx/model.onnx", "model.onnx/w.bin"]
    assert folder.manifest.parameters["file"] == "model.onnx/model.onnx"
    assert tensors(folder) == [("x", "FP32", [2]), ("y", "FP32", [512])]


def test_what_a_sequence_makes_is_no_input(models: Path) -> None:
    (total,) = read_triton_folder(models / "sum")
    assert tensors(total) == [("x", "FP32", [1]), ("total", "FP32", [1])]
    assert total.manifest.version == "2"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("name: 'other'", "'other'"),
        ("version_policy { specific { versions: [ 7 ] } }", "none of the versions"),
        ("output [ { name: 'y' data_type: TYPE_FP32 dims: [ 2 ] label_filename: 'none.txt' } ]", "none.txt"),
        ("model_warmup [ { inputs { key: 'x' value { input_data_file: 'none' } } } ]", "none"),
        ("max_batch_size: 4 backend: 'tensorrt'", "model.plan"),
        ("\xff", "cannot be read"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, config: str, words: str) -> None:
    folder = plain(tmp_path / "m")
    (folder / "config.pbtxt").write_bytes(config.encode("latin-1"))
    with pytest.raises(PenstockError, match=words) as error:
        read_triton_folder(folder)
    assert error.value.code is Code.INVALID_ARGUMENT


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(PenstockError, match="holds no version"):
        read_triton_folder(write(tmp_path / "empty", PLAIN))
    with pytest.raises(PenstockError, match="ensembles"):  # before it is missed that an ensemble has no files
        read_triton_folder(write(tmp_path / "pipeline", "ensemble_scheduling { step [ { model_name: 'a' } ] }"))
    folder = write(tmp_path / "plan", "backend: 'tensorrt'")
    (folder / "1").mkdir()
    (folder / "1" / "model.plan").write_bytes(b"plan")
    with pytest.raises(PenstockError, match="input and output not configured"):
        read_triton_folder(folder)
    with pytest.raises(PenstockError, match=r"model\.toml"):
        read_model_folder(tmp_path)


def test_another_configuration_for_the_same_folder(models: Path) -> None:
    config = parse_text("c", "max_batch_size: 2 version_policy { latest { num_versions: 1 } }")
    (version,) = read_triton_folder(models / "versions", ReadRules(config, "versions"))
    assert (version.manifest.version, version.manifest.max_batch_size) == ("10", 2)
    assert tensors(version) == [("x", "FP32", [2]), ("y", "FP32", [2])]
    with pytest.raises(PenstockError, match="'else'"):
        read_triton_folder(models / "versions", ReadRules(parse_text("c", "name: 'else'"), "versions"))


def test_a_plain_file(models: Path, tmp_path: Path) -> None:
    read = read_onnx_file(models / "bare" / "1" / "model.onnx", "mine")
    assert (read.manifest.model, read.manifest.engine, read.manifest.max_batch_size) == ("mine", "onnx", DEFAULT_MAX_BATCH_SIZE)
    assert paths(read) == ["model.onnx"]
    file = with_external_data(tmp_path / "weights") / "model.onnx"
    with pytest.raises(OnnxUnreadable, match="mine/1/"):
        read_onnx_file(file, "mine")
    with pytest.raises(PenstockError, match="may hold letters"):
        read_onnx_file(models / "bare" / "1" / "model.onnx", "no name")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for content in (b"", b"no model", bytes(range(256)) * 40):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(OnnxUnreadable, match=r"model\.onnx"):
            read_onnx(tmp_path / "model.onnx")
    with pytest.raises(OnnxUnreadable):
        read_onnx(tmp_path / "nowhere.onnx")


def test_a_file_that_takes_the_reader_down_or_for_ever_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(child))
    cases = {
        "kill -SEGV $$": "crashed",
        "echo '[]'": "did not answer",
        "echo '{\"inputs\": [[1, 2, 3]]}'": "cannot be described",
        'echo \'{"inputs": [["x", "tensor(float)", [-7]]], "outputs": []}\'': "cannot be described",
        "exec sleep 60": "within 0.5 s",
    }
    for script, words in cases.items():
        child.write_text(f"#!/bin/sh\n{script}\n")
        child.chmod(0o755)
        with pytest.raises(OnnxUnreadable, match=words):
            read_onnx(tmp_path / "model.onnx", timeout_s=0.5)


FOUND = OnnxTensors((OnnxTensor("x", "FP32", (-1, 3)),), (OnnxTensor("y", "FP32", (-1, 2)),))


def test_what_is_configured_stays(tmp_path: Path) -> None:
    given = models_pb2.Manifest(max_batch_size=7, inputs=[models_pb2.TensorSpec(name="mine", datatype="FP32", shape=[9])])
    whole = completed("c", given, FOUND)
    assert (whole.max_batch_size, [each.name for each in whole.inputs], list(whole.outputs[0].shape)) == (7, ["mine"], [2])
    given = models_pb2.Manifest(inputs=[models_pb2.TensorSpec(name="x", datatype="FP32", shape=[-1, 3])])
    whole = completed("c", given, FOUND)
    assert (whole.max_batch_size, list(whole.outputs[0].shape)) == (0, [-1, 2]), "who configures inputs says what a batch is"


@pytest.mark.parametrize(
    ("tensor", "max_batch_size", "words"),
    [
        (OnnxTensor("x", "FP32", (3,)), 4, "no batch"),
        (OnnxTensor("x", "FP32", ()), 4, "no batch"),
        (OnnxTensor("x", "seq(tensor(float))", (-1,)), 0, "seq"),
    ],
)
def test_tensors_that_cannot_be_filled_in(tensor: OnnxTensor, max_batch_size: int, words: str) -> None:
    given = models_pb2.Manifest(max_batch_size=max_batch_size)
    with pytest.raises(OnnxUnreadable, match=words):
        completed("c", given, OnnxTensors((tensor,), FOUND.outputs))


def test_a_batch_of_exactly_one_is_a_batch() -> None:
    given = models_pb2.Manifest(max_batch_size=1)
    whole = completed("c", given, OnnxTensors((OnnxTensor("x", "FP32", (1, 3)),), (OnnxTensor("y", "FP32", (1, 2)),)))
    assert list(whole.inputs[0].shape) == [3]


def test_confidential_models(tmp_path: Path) -> None:
    identity(tmp_path, "FP32")
    text = 'name = "m"\nengine = "onnx"\nconfidential = true\n'
    (tmp_path / "model.toml").write_text(text)
    assert read_model_folder(tmp_path).manifest.confidential
