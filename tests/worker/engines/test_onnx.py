"""ONNX Runtime behind the engine Protocol: real graphs, every datatype, and what the files must agree with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import InvalidArgument, PenstockError
from tests.worker.onnx_models import identity, lookup, spec
from worker.engine import EngineFailed, EngineUnavailable, ModelRefused
from worker.engines import open_engine
from worker.engines.onnx import OnnxEngine, open_onnx
from worker.tensors import object_array
from worker.types import TensorSpec


def of(datatype: str, shape: tuple[int, ...] = (2,), **other: Any) -> Any:
    return spec(inputs=(TensorSpec("x", datatype, shape),), outputs=(TensorSpec("y", datatype, shape),), **other)


@pytest.mark.parametrize(
    ("datatype", "array"),
    [
        ("FP32", np.array([[1.5, -2]], np.float32)),
        ("FP64", np.array([[1e300, -2]], np.float64)),
        ("FP16", np.array([[1.5, -2]], np.float16)),
        ("BF16", np.array([[0x3FC0, 0xC000]], np.uint16)),
        ("INT8", np.array([[-128, 127]], np.int8)),
        ("INT64", np.array([[-(2**63), 2**63 - 1]], np.int64)),
        ("UINT64", np.array([[0, 2**64 - 1]], np.uint64)),
        ("BOOL", np.array([[True, False]])),
        ("BYTES", object_array(["é".encode(), b"nul\x00inside"]).reshape(1, 2)),
    ],
)
def test_values_pass_through_unchanged(tmp_path: Path, datatype: str, array: Any) -> None:
    engine = open_onnx(of(datatype), identity(tmp_path, datatype))
    array.flags.writeable = False
    (output,) = engine.run({"x": array})
    assert output.tolist() == array.tolist()
    assert output.dtype == array.dtype


def test_bfloat16_without_elements(tmp_path: Path) -> None:
    engine = open_onnx(of("BF16", (-1,), max_batch_size=0), identity(tmp_path, "BF16", ("n",)))
    assert engine.run({"x": np.zeros(0, np.uint16)})[0].shape == (0,)


@pytest.mark.parametrize(
    ("described", "sentence"),
    [
        (of("FP64"), "input 'x' of model 'm' is FP32 in its file and FP64 in the manifest"),
        (of("FP32", (3,)), "is ['n', 2] in its file and [-1, 3] in the manifest"),
        (of("FP32", (-1,)), "is ['n', 2] in its file and [-1, -1] in the manifest"),
        (of("FP32", (2, 2)), "is ['n', 2] in its file and [-1, 2, 2] in the manifest"),
        (spec(inputs=(TensorSpec("q", "FP32", (2,)),)), "needs inputs ['x'] that its manifest does not describe"),
        (spec(outputs=(TensorSpec("q", "FP32", (2,)),)), "has no output 'q'; it has: ['y']"),
        (of("FP32", parameters={"device": "tpu"}), "'device' of model 'm' is 'tpu'; allowed: cpu, cuda, cuda:<number>"),
        (of("FP32", parameters={"intra_op_threads": "0"}), "'intra_op_threads' of model 'm' is '0'"),
        (of("FP32", parameters={"inter_op_threads": "-1"}), "'inter_op_threads' of model 'm' is '-1'"),
        (of("FP32", parameters={"execution_mode": "both"}), "is 'both'; allowed: parallel, sequential"),
        (of("FP32", parameters={"graph_optimization": "O3"}), "is 'O3'; allowed: all, basic, extended, none"),
        (of("FP32", parameters={"file": "../model.onnx"}), "leads out of the model's folder"),
        (of("FP32", parameters={"file": "other.onnx"}), "has no file 'other.onnx'"),
    ],
)
def test_files_that_are_not_what_the_manifest_says(tmp_path: Path, described: Any, sentence: str) -> None:
    identity(tmp_path, "FP32")
    with pytest.raises(ModelRefused) as refused:
        open_onnx(described, tmp_path)
    assert sentence in refused.value.message


def test_a_fixed_batch_dimension_is_refused_unless_it_is_all_there_is(tmp_path: Path) -> None:
    identity(tmp_path, "FP32", (1, 2))
    with pytest.raises(ModelRefused, match="is \\[1, 2\\] in its file"):
        open_onnx(of("FP32", max_batch_size=8), tmp_path)
    assert isinstance(open_onnx(of("FP32", max_batch_size=1), tmp_path), OnnxEngine)


def test_garbage_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(os.urandom(100))
    with pytest.raises(ModelRefused, match="cannot load model 'm'") as refused:
        open_onnx(of("FP32"), tmp_path)
    assert "\n" not in refused.value.message


def test_cuda_is_never_replaced_in_silence(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA: what is tested is its absence")
    with pytest.raises(EngineUnavailable, match="install onnxruntime-gpu"):
        open_onnx(of("FP32", parameters={"device": "cuda:0"}), identity(tmp_path, "FP32"))


def test_an_engine_that_is_not_here_is_named() -> None:
    with pytest.raises(EngineUnavailable, match=r"asks for engine .abacus.; this worker has: litert, llm, onnx, python"):
        open_engine(spec(engine="abacus"), Path())


def test_what_the_graph_refuses_is_the_requests_fault_or_the_engines(tmp_path: Path) -> None:
    described = spec(inputs=(TensorSpec("x", "INT64", (1,)),), outputs=(TensorSpec("y", "FP32", (1,)),))
    engine = open_onnx(described, lookup(tmp_path))
    assert engine.run({"x": np.array([[3]])})[0].tolist() == [[30.0]]
    with pytest.raises(PenstockError) as failed:
        engine.run({"x": np.array([[4]])})
    assert isinstance(failed.value, InvalidArgument | EngineFailed)
    assert "\n" not in failed.value.message
    assert engine.run({"x": np.array([[1]])})[0].tolist() == [[10.0]]
