"""Graphs in FP32 become graphs in FP16 and BF16; ONNX Runtime says whether they still compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from worker.engines.tensorrt.half_precision import PrecisionRefused, _bfloat_bits, convert

Nodes = list[Any]
FLOAT = TensorProto.FLOAT


def graph_file(
    folder: Path,
    nodes: Nodes,
    weights: dict[str, Any] | None = None,
    *,
    inputs: dict[str, tuple[int, list[Any]]] | None = None,
    outputs: dict[str, tuple[int, list[Any]]] | None = None,
) -> Path:
    inputs = inputs or {"x": (FLOAT, ["n", 4])}
    outputs = outputs or {"y": (FLOAT, None)}  # type: ignore[dict-item]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
    )
    file = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(file))
    return file


def run(file: Path, **inputs: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, inputs)
    return outputs


def converted(file: Path, precision: str = "fp16") -> Path:
    target = file.with_name(f"{precision}.onnx")
    convert(file, target, precision)
    return target


def types(file: Path) -> dict[str, int]:
    """Element types of weights by name."""
    return {tensor.name: tensor.data_type for tensor in onnx.load(str(file)).graph.initializer}


X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)


def test_a_network_computes_nearly_the_same_in_half_the_weights(tmp_path: Path) -> None:
    weights = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Tanh", ["m"], ["y"])]
    file = graph_file(tmp_path, nodes, {"w": weights})
    (half,) = run(converted(file), x=X)
    (whole,) = run(file, x=X)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, whole, atol=5e-3)
    assert not np.array_equal(half, whole)
    assert set(types(converted(file)).values()) == {TensorProto.FLOAT16}
    assert set(types(converted(file, "bf16")).values()) == {TensorProto.BFLOAT16}


def test_the_demo_classifies_alike(tmp_path: Path) -> None:
    source = Path(__file__).parents[4] / "cli" / "demo" / "digits" / "model.onnx"
    target = tmp_path / "half.onnx"
    assert convert(source, target, "fp16") == 0
    images = np.random.default_rng(0).random((16, 1, 8, 8), np.float32)
    (whole,), (half,) = run(source, image=images), run(target, image=images)
    np.testing.assert_allclose(half, whole, atol=2e-2)


def test_an_output_that_other_nodes_use_keeps_its_name_and_type(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    file = graph_file(tmp_path, nodes, outputs={"y": (FLOAT, ["n", 4]), "z": (FLOAT, ["n", 4])})
    relu, negative = run(converted(file), x=X)
    assert relu.dtype == negative.dtype == np.float32
    np.testing.assert_allclose(relu, -negative, atol=0)


def test_constants_casts_and_fills_follow(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2.0).reshape(1))),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["zeros"]),
        helper.make_node("Cast", ["i"], ["f"], to=FLOAT),
        helper.make_node("Sum", ["x", "zeros", "one", "two", "f"], ["y"]),
    ]
    inputs: dict[str, tuple[int, list[Any]]] = {"x": (FLOAT, ["n", 4]), "i": (TensorProto.INT32, ["n", 4])}
    file = graph_file(tmp_path, nodes, inputs=inputs)
    (y,) = run(converted(file), x=X, i=np.full((3, 4), 3, np.int32))
    np.testing.assert_allclose(y, X + 6, atol=1e-2)


def test_arithmetic_on_shapes_stays_exact(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["f", "one"], ["g"]),
        helper.make_node("Cast", ["g"], ["y"], to=TensorProto.INT64),
    ]
    outputs: dict[str, tuple[int, list[Any]]] = {"y": (TensorProto.INT64, [2])}
    file = graph_file(tmp_path, nodes, {"one": np.ones(2, np.float32)}, outputs=outputs)
    (y,) = run(converted(file), x=np.zeros((5001, 4), np.float32))
    assert y.tolist() == [5001, 4]


def test_scales_stay_exact_also_where_their_weights_are_shared(tmp_path: Path) -> None:
    scales = np.array([1.0, 4 / 3], np.float32)
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["r"], mode="nearest"),
        helper.make_node("ReduceSum", ["scales"], ["t"]),
        helper.make_node("Add", ["r", "t"], ["y"]),
    ]
    inputs: dict[str, tuple[int, list[Any]]] = {"x": (FLOAT, [3, 3])}
    file = graph_file(tmp_path, nodes, {"scales": scales}, inputs=inputs)
    (y,) = run(converted(file), x=X[:, :3])
    assert y.shape == (3, 4)
    assert types(converted(file)) == {"scales": FLOAT, "scales/half": TensorProto.FLOAT16}


def test_weights_beyond_what_fp16_holds_are_cut_and_counted(tmp_path: Path) -> None:
    weights = np.array([1e6, -1e6, 1.0, np.inf], np.float32)
    file = graph_file(tmp_path, [helper.make_node("Mul", ["x", "w"], ["y"])], {"w": weights})
    target = tmp_path / "half.onnx"
    assert convert(file, target, "fp16") == 2
    (y,) = run(target, x=np.ones((1, 4), np.float32))
    np.testing.assert_array_equal(y[0], np.array([65504, -65504, 1, np.inf], np.float32))
    assert convert(file, target, "bf16") == 0


def test_a_graph_within_a_node_is_refused_by_the_nodes_name(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["o"])], "i", [], [helper.make_tensor_value_info("o", FLOAT, ["n", 4])]
    )
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=inner, else_branch=inner)
    inputs: dict[str, tuple[int, list[Any]]] = {"x": (FLOAT, ["n", 4]), "c": (TensorProto.BOOL, [])}
    with pytest.raises(PrecisionRefused, match=r"node 'choice' \(If\) holds a graph of its own"):
        converted(graph_file(tmp_path, [node], inputs=inputs))


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff rubbish")
    with pytest.raises(PrecisionRefused, match="cannot be read as ONNX"):
        converted(tmp_path / "model.onnx")


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_bfloat_bits_are_the_nearest_there_are(values: list[float]) -> None:
    whole = np.array(values, np.float32)
    halves = (_bfloat_bits(whole).astype(np.uint32) << 16).view(np.float32)
    above = (np.minimum(_bfloat_bits(whole).astype(np.uint32) + 1, 0xFFFF) << 16).view(np.float32)
    for exact, half, next_up in zip(whole.astype(np.float64), halves, above, strict=True):
        if np.isnan(exact):
            assert np.isnan(half)
        elif np.isfinite(half) and np.isfinite(next_up):
            assert abs(half - exact) <= abs(np.float64(next_up) - exact)
