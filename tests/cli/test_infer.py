"""Pictures and JSON values become tensors; answers become text."""

from pathlib import Path

import numpy as np
import pytest

from cli.infer import class_table, image_tensor, strings_of, tensor_of
from runtime.errors import InvalidArgument

IMAGES = Path(__file__).resolve().parents[2] / "examples" / "digits"


def test_a_picture_becomes_grey_rows_between_0_and_1() -> None:
    tensor = image_tensor(IMAGES / "7.png", (-1, 1, 8, 8))
    assert tensor.shape == (1, 1, 8, 8)
    assert tensor.dtype == np.float32
    assert 0 <= tensor.min() < tensor.max() <= 1


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"x\.png"):
        image_tensor(file, (1, 1, 8, 8))


@pytest.mark.parametrize(
    ("datatype", "value", "shape", "raw"),
    [
        ("FP32", [[1, 2]], (1, 2), np.array([1, 2], np.float32).tobytes()),
        ("INT64", 5, (1,), np.array([5], np.int64).tobytes()),
        ("BOOL", [True, False], (2,), b"\x01\x00"),
        ("BYTES", ["ab", ""], (2,), b"\x02\x00\x00\x00ab\x00\x00\x00\x00"),
    ],
)
def test_values_become_raw_contents(datatype: str, value: object, shape: tuple[int, ...], raw: bytes) -> None:
    assert tensor_of("x", datatype, value) == (shape, raw)


@pytest.mark.parametrize(("datatype", "value"), [("FP32", [[1], [2, 3]]), ("INT32", "many"), ("BF16", [1])])
def test_values_that_do_not_fit_name_the_input(datatype: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match="input x"):
        tensor_of("x", datatype, value)


def test_classes_are_read_from_triton_strings() -> None:
    raw = b"".join(len(text).to_bytes(4, "little") + text for text in (b"0.9:7:seven", b"0.1:1"))
    entries = strings_of(raw)
    assert entries == ["0.9:7:seven", "0.1:1"]
    assert list(class_table("digits", entries).columns[0].cells) == ["seven", "1"]
