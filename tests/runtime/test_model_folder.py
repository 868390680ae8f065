"""model.toml: what it may say, and sentences that name the field at fault."""

from pathlib import Path

import pytest

from runtime.model_folder import ModelFolderRefused, complete_manifest, hash_file, read_model_folder

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
        (("name = ", "name "), "cannot be read"),
        (('engine = "onnx"', 'engine = "onnx"\ntask = "poetry"'), "task"),
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
