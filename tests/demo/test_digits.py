"""The committed `digits` model against the data it was never shown, and the example images by the documented path."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cli" / "demo" / "digits"
EXAMPLES = ROOT / "examples" / "digits"


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), providers=["CPUExecutionProvider"])


def logits(session: onnxruntime.InferenceSession, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(session.run(["logits"], {"image": rows})[0])


def test_held_out_accuracy(session: onnxruntime.InferenceSession) -> None:
    """At least 97 % of what training never saw: sample `index % 5 == 0`, as in build/demo_models/digits.py."""
    data = load_digits()
    kept = np.arange(len(data.target)) % 5 == 0
    rows = (data.images[kept] / 16.0).astype(np.float32)[:, None]
    right = (logits(session, rows).argmax(1) == data.target[kept]).mean()
    assert right >= 0.97


@pytest.mark.parametrize("digit", range(10))
def test_example_image_is_named(session: onnxruntime.InferenceSession, digit: int) -> None:
    """Grey, 8 x 8 by area, divided by 255: the rule every client follows."""
    with Image.open(EXAMPLES / f"{digit}.png") as image:
        assert (image.mode, image.size) == ("L", (64, 64))
        grey = image.convert("L").resize((8, 8), Image.Resampling.BOX)
    row = (np.asarray(grey, dtype=np.float32) / 255.0)[None, None]
    assert logits(session, row).argmax(1).tolist() == [digit]


def test_example_images_were_never_trained_on() -> None:
    data = load_digits()
    kept = data.images[np.arange(len(data.target)) % 5 == 0]
    for digit in range(10):
        with Image.open(EXAMPLES / f"{digit}.png") as image:
            grey = np.asarray(image.resize((8, 8), Image.Resampling.BOX))
        assert any(np.array_equal(grey, np.rint(sample / 16.0 * 255.0)) for sample in kept)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_a_batch_answers_each_row_as_if_alone(session: onnxruntime.InferenceSession, rows: int) -> None:
    batch = np.random.default_rng(0).random((rows, 1, 8, 8), dtype=np.float32)
    alone = np.concatenate([logits(session, row[None]) for row in batch])
    assert np.allclose(logits(session, batch), alone, atol=1e-4)


def test_description_matches_the_model(session: onnxruntime.InferenceSession) -> None:
    """`model.toml` leaves the batch dimension out; the rest is what the graph says."""
    written = tomllib.loads((FOLDER / "model.toml").read_text())
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (written["name"], written["engine"], written["task"]) == ("digits", "onnx", "tensor")
    assert written["max_batch_size"] >= 1
    assert [(i["name"], i["datatype"], i["shape"]) for i in written["inputs"]] == [(given.name, "FP32", given.shape[1:])]
    assert [(o["name"], o["datatype"], o["shape"]) for o in written["outputs"]] == [(made.name, "FP32", made.shape[1:])]
    assert isinstance(given.shape[0], str), "the batch dimension must stay variable"
    assert written["outputs"][0]["labels"] == [str(digit) for digit in range(10)]


def test_size() -> None:
    assert (FOLDER / "model.onnx").stat().st_size <= 400 * 1024
