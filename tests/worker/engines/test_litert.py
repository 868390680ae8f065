"""TensorFlow Lite models: names with and without a signature, sizes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import InvalidArgument
from tests.support.public_models import litert_affine, litert_identity
from tests.worker.onnx_models import spec
from worker.engine import ModelRefused
from worker.engines.litert import open_litert
from worker.types import ModelSpec, TensorSpec

pytest.importorskip("ai_edge_litert", reason="the package ai-edge-litert is not installed: pip install 'penstock[litert]'")


def of(names: tuple[str, str] = ("x", "y"), **other: Any) -> ModelSpec:
    return spec(
        engine="litert",
        inputs=(TensorSpec(names[0], "FP32", (2,)),),
        outputs=(TensorSpec(names[1], "FP32", (2,)),),
        **other,
    )


def test_a_file_without_a_signature_goes_by_its_tensors_names(tmp_path: Path) -> None:
    engine = open_litert(of(("tensor_x", "tensor_y")), litert_identity(tmp_path, "FP32", signature=False))
    for rows in (2, 3, 3, 1):
        array = np.random.default_rng(rows).random((rows, 2), np.float32)
        assert engine.run({"tensor_x": array})[0].tolist() == array.tolist()


def test_a_signature_that_is_not_there(tmp_path: Path) -> None:
    folder = litert_affine(tmp_path)
    with pytest.raises(ModelRefused, match=r"has no signature 'train'; .* it has: \['serving_default'\]"):
        open_litert(of(parameters={"signature": "train"}), folder)
    assert open_litert(of(parameters={"signature": "serving_default"}), folder).slots == 1


def test_a_fixed_number_of_rows_is_taken_by_itself_alone(tmp_path: Path) -> None:
    folder = litert_identity(tmp_path, "FP32", rows=1)
    with pytest.raises(ModelRefused, match=r"is \[1, 2\] in its file"):
        open_litert(of(max_batch_size=8), folder)
    engine = open_litert(of(max_batch_size=1), folder)
    assert engine.run({"x": np.ones((1, 2), np.float32)})[0].tolist() == [[1, 1]]
    with pytest.raises(InvalidArgument, match=r"the model takes input 'x' as \[1, 2\], and \[2, 2\] came"):
        engine.run({"x": np.ones((2, 2), np.float32)})


def test_only_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="engine 'litert' runs on the cpu"):
        open_litert(of(parameters={"device": "cuda"}), litert_affine(tmp_path))


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="input 'x' is missing"):
        open_litert(of(), litert_affine(tmp_path)).run({})
