"""A Triton repository as people have them: models of every kind that is moved, and of some that are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.worker.onnx_models import identity, save

PLAIN = """
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""

LABELLED = """
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "classes.txt" } ]
dynamic_batching { max_queue_delay_microseconds: 100 }
model_warmup [ {
  name: "w" batch_size: 1
  inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2 ] input_data_file: "x.raw" } }
} ]
"""


def write(folder: Path, config: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(config)
    return folder


def plain(folder: Path, versions: Sequence[int] = (1,), config: str = PLAIN, operator: str = "Identity") -> Path:
    """y = x, or another operator of it, in each version."""
    for version in versions:
        identity(folder / str(version), "FP32", operator=operator)
    return write(folder, config)


def with_external_data(folder: Path) -> Path:
    """y = x · w, where w lies in a file of its own."""
    folder.mkdir(parents=True)
    weights = numpy_helper.from_array(np.ones((2, 512), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 512])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="w.bin", size_threshold=16)
    return folder


def accumulator(folder: Path) -> Path:
    """total = total_in * (1 - START) + x, with START a control and total a state of a sequence."""
    names = ("x", "START", "total_in")
    return save(
        folder,
        [
            helper.make_node("Sub", ["one", "START"], ["keep"]),
            helper.make_node("Mul", ["total_in", "keep"], ["kept"]),
            helper.make_node("Add", ["kept", "x"], ["total"]),
            helper.make_node("Identity", ["total"], ["total_out"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in names],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in ("total", "total_out")],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )


def repository(root: Path) -> Path:
    """Nine models: seven to import, two to refuse."""
    plain(root / "plain")
    identity(root / "bare" / "1", "FP32", ("n", 3))
    identity(root / "unbatched" / "1", "INT64", (1, 4))
    plain(root / "versions", (1, 3, 10), PLAIN + "version_policy { specific { versions: [ 3, 10 ] } }")
    plain(root / "labelled", config=LABELLED)
    (root / "labelled" / "classes.txt").write_text("no\nyes\n")
    (root / "labelled" / "warmup").mkdir()
    (root / "labelled" / "warmup" / "x.raw").write_bytes(np.array([1, 2], np.float32).tobytes())
    with_external_data(root / "folder" / "1" / "model.onnx")
    write(root / "folder", 'backend: "onnxruntime"')
    accumulator(root / "sum" / "2")
    write(
        root / "sum",
        """
        backend: "onnxruntime"
        max_batch_size: 2
        sequence_batching {
          direct { }
          control_input [ { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] } ]
          state [ { input_name: "total_in" output_name: "total_out" data_type: TYPE_FP32 dims: [ 1 ] } ]
        }
        """,
    )
    plain(root / "wrong", config=PLAIN.replace('"x"', '"picture"'))
    write(root / "pipeline", 'platform: "ensemble" ensemble_scheduling { step [ { model_name: "plain" } ] }')
    (root / "notes").mkdir()
    (root / "README.md").write_text("models")
    return root
