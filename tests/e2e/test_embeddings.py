"""Embeddings from a real model: an ONNX graph that takes strings, pushed like any other, asked with the official client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from openai import OpenAI

from tests.support.mesh import RunningMesh

WORDS = ("penstock", "turbine")
VECTORS = np.array([[1.0, 0.0, 0.5], [0.0, 2.0, -0.5], [-1.0, -1.0, -1.0]], np.float32)
"""The last one is every other word's."""

DESCRIPTION = """
name = "words"
engine = "onnx"
task = "embedding"
max_batch_size = 8
[[inputs]]
name = "text"
datatype = "BYTES"
shape = [1]
[[outputs]]
name = "vector"
datatype = "FP32"
shape = [3]
"""


def write_model(folder: Path) -> None:
    """text string [rows, 1] -> vector float32 [rows, 3], by a table of words."""
    folder.mkdir()
    (folder / "model.toml").write_text(DESCRIPTION)
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["text"],
            ["index"],
            domain="ai.onnx.ml",
            keys_strings=WORDS,
            values_int64s=range(len(WORDS)),
            default_int64=len(WORDS),
        ),
        helper.make_node("Gather", ["table", "index"], ["rows"]),
        helper.make_node("Squeeze", ["rows", "axes"], ["vector"]),
    ]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["rows", 1])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(VECTORS, "table"), numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 4)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")


def test_a_string_model_gives_embeddings_through_the_whole_mesh(mesh: RunningMesh, tmp_path: Path) -> None:
    write_model(tmp_path / "words")
    pushed = mesh.penstock("models", "push", str(tmp_path / "words"))
    assert pushed.returncode == 0, pushed.stderr
    client = OpenAI(base_url=f"{mesh.http_url}/v1", api_key=mesh.api_key)
    texts = ["turbine", "wörld", "penstock"] * 4  # more rows than one execution takes
    answer = client.embeddings.create(model="words", input=texts)
    expected = [VECTORS[1], VECTORS[2], VECTORS[0]] * 4
    assert [each.index for each in answer.data] == list(range(12))
    np.testing.assert_array_equal(np.array([each.embedding for each in answer.data], np.float32), np.array(expected))
    floats = client.embeddings.create(model="words", input="penstock", encoding_format="float")
    assert floats.data[0].embedding == [1.0, 0.0, 0.5]
    assert mesh.penstock("models", "unload", "words").returncode == 0
