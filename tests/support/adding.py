"""A model whose answer tells which version gave it: y = x + amount, of floats [n, 1]."""

from __future__ import annotations

import secrets
from pathlib import Path

from onnx import TensorProto, helper

from tests.worker.onnx_models import save

_DESCRIPTION = """
name = "{name}"
engine = "onnx"
task = "tensor"
description = "Adds {amount}."
max_batch_size = 8
[[inputs]]
name = "x"
datatype = "FP32"
shape = [1]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [1]
"""


def adding(folder: Path, name: str, amount: int, *, ballast_bytes: int = 0) -> Path:
    """A model folder for `penstock models push`; ballast is a file beside the model that no two folders have alike."""
    adding_graph(folder, amount)
    (folder / "model.toml").write_text(_DESCRIPTION.format(name=name, amount=amount))
    if ballast_bytes:
        with (folder / "ballast.bin").open("wb") as file:
            for at in range(0, ballast_bytes, 1 << 20):
                file.write(secrets.token_bytes(min(1 << 20, ballast_bytes - at)))
    return folder


def adding_graph(folder: Path, amount: int) -> Path:
    """`model.onnx` alone."""
    return save(
        folder,
        [helper.make_node("Add", ["x", "amount"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor("amount", TensorProto.FLOAT, [1], [float(amount)])],
    )
