"""Tiny ONNX graphs, and specs that describe them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from runtime.ids import Digest, ModelName, ModelVersion
from worker.types import BatchingSpec, ModelSpec, Task, TensorSpec

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}


def spec(
    model: str = "m",
    *,
    inputs: Sequence[TensorSpec] = (TensorSpec("x", "FP32", (2,)),),
    outputs: Sequence[TensorSpec] = (TensorSpec("y", "FP32", (2,)),),
    max_batch_size: int = 8,
    version: str = "1",
    **other: Any,
) -> ModelSpec:
    return ModelSpec(
        model=ModelName(model),
        version=ModelVersion(version),
        digest=Digest("0" * 64),
        engine=other.pop("engine", "onnx"),
        task=other.pop("task", Task.TENSOR),
        max_batch_size=max_batch_size,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        batching=other.pop("batching", BatchingSpec()),
        **other,
    )


def identity(
    folder: Path, datatype: str, dims: Sequence[Any] = ("n", 2), names: tuple[str, str] = ("x", "y"), operator: str = "Identity"
) -> Path:
    """y = x, or another operator of one input."""
    kind = ONNX_TYPES[datatype]
    return save(
        folder,
        [helper.make_node(operator, [names[0]], [names[1]])],
        [helper.make_tensor_value_info(names[0], kind, dims)],
        [helper.make_tensor_value_info(names[1], kind, dims)],
    )


def save(folder: Path, nodes: Any, inputs: Any, outputs: Any, initializers: Any = ()) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))
    return folder


def lookup(folder: Path) -> Path:
    """y = table[x] with four rows: an index beyond them is refused by the engine itself."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [4], [0.0, 10.0, 20.0, 30.0])
    return save(
        folder,
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [table],
    )
