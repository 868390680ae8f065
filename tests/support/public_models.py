"""Small models in the formats that engines take, made here: one that gives its input back, and one that computes.

Also a script: `python -m tests.support.public_models FOLDER` writes a model folder of each kind that can be made here.
A format whose package is missing skips the test that asks for it, naming the package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

BYTES_TYPES = ("BYTES",)


def onnx_identity(folder: Path, datatype: str) -> Path:
    """y = x, [n, 2]."""
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    from tests.worker.onnx_models import identity

    return identity(folder, datatype)


def onnx_affine(folder: Path) -> Path:
    """y = 2 x + 1, FP32 [n, 2]."""
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    from onnx import TensorProto, helper

    from tests.worker.onnx_models import save

    constants = [
        helper.make_tensor("two", TensorProto.FLOAT, [], [2.0]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
    ]
    return save(
        folder,
        [helper.make_node("Mul", ["x", "two"], ["m"]), helper.make_node("Add", ["m", "one"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        constants,
    )


def torch_identity(folder: Path, datatype: str) -> Path:
    """y = x, [n, 2]; the output is memory of its own."""
    torch = _torch()

    class Identity(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            return {"y": x.clone()}

    kinds = {"FP16": "float16", "BF16": "bfloat16", "FP32": "float32", "FP64": "float64", "BOOL": "bool"}
    kind = getattr(torch, kinds.get(datatype, datatype.lower()))
    return export(folder, Identity(), (torch.zeros(2, 2, dtype=kind),), {"x": {0: batch()}})


def torch_affine(folder: Path) -> Path:
    torch = _torch()

    class Affine(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            return 2 * x + 1

    return export(folder, Affine(), (torch.zeros(2, 2),), {"x": {0: batch()}})


def batch(*, least: int = 1, most: int = 1024) -> Any:
    return _torch().export.Dim("batch", min=least, max=most)


def export(folder: Path, module: Any, example: tuple[Any, ...], dynamic: Any, **arguments: Any) -> Path:
    """torch.export's program of a module, as a model folder has it."""
    torch = _torch()
    folder.mkdir(parents=True, exist_ok=True)
    program = torch.export.export(module.eval(), example, kwargs=arguments or None, dynamic_shapes=dynamic)
    torch.export.save(program, folder / "model.pt2")
    return folder


def _torch() -> Any:
    return pytest.importorskip("torch", reason="the package torch is not installed: pip install 'penstock[torch]'")


def litert_identity(folder: Path, datatype: str, *, signature: bool = True, rows: int = -1) -> Path:
    """y = x, [n, 2], by a reshape to the shape it has; `rows` fixes n."""
    kinds = {"FP16": "FLOAT16", "FP32": "FLOAT32", "FP64": "FLOAT64", "BYTES": "STRING"}
    return _tflite(folder, kinds.get(datatype, datatype), signature=signature, rows=rows)


def litert_affine(folder: Path) -> Path:
    return _tflite(folder, "FLOAT32", affine=True)


def _tflite(folder: Path, kind: str, *, signature: bool = True, rows: int = -1, affine: bool = False) -> Path:
    """A flatbuffer by the schema that LiteRT ships; no TensorFlow is needed."""
    pytest.importorskip("ai_edge_litert", reason="the package ai-edge-litert is not installed: pip install 'penstock[litert]'")
    flatbuffers = pytest.importorskip("flatbuffers", reason="the package flatbuffers is not installed")
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    kind_number = getattr(schema.TensorType, kind)
    contents: list[bytes] = [b""]  # buffer 0 is the empty one, by the schema

    def tensor(name: str, shape: Sequence[int], number: int, content: bytes = b"") -> Any:
        made = schema.TensorT()
        made.name, made.type = name.encode(), number
        made.shape = [max(1, size) for size in shape]
        made.shapeSignature = list(shape)
        contents.append(content)
        made.buffer = len(contents) - 1
        return made

    def operator(code: int, inputs: list[int], outputs: list[int], options: Any = None, kind: int = 0) -> Any:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = code, inputs, outputs
        if options is not None:
            made.builtinOptions, made.builtinOptionsType = options, kind
        return made

    graph = schema.SubGraphT()
    graph.name = b"main"
    if affine:
        graph.tensors = [
            tensor("tensor_x", (rows, 2), kind_number),
            tensor("two", (1,), kind_number, np.float32(2).tobytes()),
            tensor("doubled", (rows, 2), kind_number),
            tensor("one", (1,), kind_number, np.float32(1).tobytes()),
            tensor("tensor_y", (rows, 2), kind_number),
        ]
        graph.inputs, graph.outputs = [0], [4]
        graph.operators = [
            operator(0, [0, 1], [2], schema.MulOptionsT(), schema.BuiltinOptions.MulOptions),
            operator(1, [2, 3], [4], schema.AddOptionsT(), schema.BuiltinOptions.AddOptions),
        ]
        codes = [schema.BuiltinOperator.MUL, schema.BuiltinOperator.ADD]
    else:
        shape = np.array([rows, 2], np.int32).tobytes()
        graph.tensors = [
            tensor("tensor_x", (rows, 2), kind_number),
            tensor("shape", (2,), schema.TensorType.INT32, shape),
            tensor("tensor_y", (rows, 2), kind_number),
        ]
        graph.inputs, graph.outputs = [0], [2]
        graph.operators = [operator(0, [0, 1], [2])]
        codes = [schema.BuiltinOperator.RESHAPE]

    model = schema.ModelT()
    model.version, model.subgraphs = 3, [graph]
    model.operatorCodes = [_code(schema, code) for code in codes]
    model.buffers = [_buffer(schema, content) for content in contents]
    if signature:
        model.signatureDefs = [_signature(schema, graph)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.tflite").write_bytes(bytes(builder.Output()))
    return folder


def _code(schema: Any, number: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = number
    code.version = 1
    return code


def _buffer(schema: Any, content: bytes) -> Any:
    buffer = schema.BufferT()
    buffer.data = list(content) if content else None
    return buffer


def _signature(schema: Any, graph: Any) -> Any:
    def entry(name: bytes, index: int) -> Any:
        made = schema.TensorMapT()
        made.name, made.tensorIndex = name, index
        return made

    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = b"serving_default", 0
    made.inputs, made.outputs = [entry(b"x", graph.inputs[0])], [entry(b"y", graph.outputs[0])]
    return made


IDENTITY_CODE = """
class Model:
    def __init__(self, folder, parameters):
        self.folder, self.parameters = folder, parameters

    def execute(self, inputs):
        return {"y": inputs["x"]}
"""

AFFINE_CODE = IDENTITY_CODE.replace('inputs["x"]', '2 * inputs["x"] + 1')


def python_model(folder: Path, code: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(code)
    return folder


def python_identity(folder: Path, datatype: str) -> Path:
    return python_model(folder, IDENTITY_CODE)


def python_affine(folder: Path) -> Path:
    return python_model(folder, AFFINE_CODE)


AFFINE: dict[str, Callable[[Path], Path]] = {
    "onnx": onnx_affine,
    "torch": torch_affine,
    "litert": litert_affine,
    "python": python_affine,
}
IDENTITY: dict[str, Callable[[Path, str], Path]] = {
    "onnx": onnx_identity,
    "torch": torch_identity,
    "litert": litert_identity,
    "python": python_identity,
}

_MODEL_TOML = """name = "{engine}-affine"
engine = "{engine}"
task = "tensor"
max_batch_size = 8

[[inputs]]
name = "x"
datatype = "FP32"
shape = [2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [2]
"""


def write_all(folder: Path) -> list[str]:
    """A model folder for each engine whose packages are here; the engines left out with the reason."""
    left_out = []
    for engine, make in AFFINE.items():
        try:
            made = make(folder / engine)
        except pytest.skip.Exception as missing:
            left_out.append(f"{engine}: {missing}")
            continue
        (made / "model.toml").write_text(_MODEL_TOML.format(engine=engine))
    return left_out


if __name__ == "__main__":
    sys.stderr.write("".join(f"left out {reason}\n" for reason in write_all(Path(sys.argv[1]))))
