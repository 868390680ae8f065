"""An ONNX graph in 32-bit floats becomes one that computes in FP16 or BF16; its inputs and outputs stay as they are.

TensorRT takes a network's types as the graph has them, so precision is chosen here. Weights are rounded once. What would not
survive 8 or 11 bits keeps FP32, between casts: scales, coordinates, random numbers, arithmetic on shapes. Never quantises to
integers: that needs data.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from runtime.errors import Code, PenstockError

LARGEST_FP16 = 65504.0
_FLOAT = 1  # TensorProto.FLOAT
_HALVES: Mapping[str, int] = MappingProxyType({"fp16": 10, "bf16": 16})
"""TensorProto.DataType by precision."""
_EXACT = frozenset(
    {
        *("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"),
        *("NonMaxSuppression", "RandomNormal", "RandomUniform", "Range", "Resize", "RoiAlign", "Upsample"),
    }
)
"""Operators that stay in FP32."""
_OF_SHAPES = ("Shape", "Size")
"""What is computed from these and constants alone stays in FP32, too: FP16 does not count beyond 2,048."""


class PrecisionRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="PRECISION_REFUSED"):
    """The graph cannot be brought to this precision."""


def convert(source: Path, target: Path, precision: str) -> int:
    """Write the graph at `source` to `target` in this precision; gives how many weights had to be cut to what FP16 holds.

    Raises PrecisionRefused.
    """
    try:
        onnx: Any = importlib.import_module("onnx")
        inliner: Any = importlib.import_module("onnx.inliner")
    except ImportError as error:
        raise PrecisionRefused(f"precision {precision} needs the package onnx: pip install 'penstock[tensorrt]'") from error
    try:
        model = onnx.load(str(source))
        model = onnx.shape_inference.infer_shapes(inliner.inline_local_functions(model) if model.functions else model)
    except Exception as error:
        raise PrecisionRefused(f"{source} cannot be read as ONNX: {str(error).strip().splitlines()[0][:200]}") from error
    conversion = _Conversion(onnx, model.graph, _HALVES[precision])
    conversion.convert()
    onnx.save_model(model, str(target), save_as_external_data=True, location=f"{target.name}.weights")
    return conversion.cut


class _Conversion:
    """Of one graph, in place. Every FP32 value may exist whole and as a half; casts are made where the other is asked for."""

    def __init__(self, onnx: Any, graph: Any, half: int) -> None:
        self._onnx, self._graph, self._half = onnx, graph, half
        self._nodes: list[Any] = []
        self._names: dict[tuple[str, bool], str] = {}
        """What a value is called now, by what it was called and whether it is a half."""
        self._weights: dict[str, Any] = {}
        self._made: list[Any] = []
        """Weights of the new graph, each in the forms that are used."""
        self.cut = 0

    def convert(self) -> None:
        self._refuse_nested()
        graph = self._graph
        before = [node for node in graph.node if not self._became_weights(node)]
        self._weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == _FLOAT}
        others = [tensor for tensor in graph.initializer if tensor.data_type != _FLOAT]
        values = [*graph.input, *graph.output, *graph.value_info]
        floats = {value.name for value in values if value.type.tensor_type.elem_type == _FLOAT} | self._weights.keys()
        constants = {tensor.name for tensor in graph.initializer}
        outputs = {value.name for value in graph.output}
        for value in graph.input:
            self._names.setdefault((value.name, False), value.name)
        of_shapes: set[str] = set()
        for node in before:
            fed = [name for name in node.input if name and name not in constants]
            about_shapes = node.op_type in _OF_SHAPES or (bool(fed) and all(name in of_shapes for name in fed))
            if about_shapes:
                of_shapes.update(node.output)
            self._take(node, floats, outputs, half=node.op_type not in _EXACT and not about_shapes)
        for name in outputs & floats:
            if (name, False) not in self._names:
                self._cast(self._names[name, True], name, _FLOAT)
        del graph.node[:], graph.initializer[:], graph.value_info[:]  # the last told of FP32
        graph.node.extend(self._nodes)
        graph.initializer.extend([*others, *self._made])

    def _refuse_nested(self) -> None:
        nested = [node for node in self._graph.node if any(field.g.node or field.graphs for field in node.attribute)]
        if nested:
            raise PrecisionRefused(
                f"node {nested[0].name!r} ({nested[0].op_type}) holds a graph of its own, which is not converted; export the"
                " model in the precision you want"
            )

    def _became_weights(self, node: Any) -> bool:
        """FP32 constants are weights like others."""
        if node.op_type != "Constant":
            return False
        field = node.attribute[0]
        if field.name == "value" and field.t.data_type == _FLOAT:
            tensor = field.t
        elif field.name in ("value_float", "value_floats"):
            values = field.f if field.name == "value_float" else list(field.floats)
            tensor = self._onnx.numpy_helper.from_array(np.asarray(values, np.float32))
        else:
            return False
        weights = self._graph.initializer.add()
        weights.CopyFrom(tensor)
        weights.name = node.output[0]
        return True

    def _take(self, node: Any, floats: set[str], outputs: set[str], *, half: bool) -> None:
        """Add the node, its FP32 values being halves from now on, or whole."""
        for index, name in enumerate(node.input):
            if name in floats:
                node.input[index] = self._value(name, half=half)
        for index, name in enumerate(node.output):
            if name in floats:
                node.output[index] = self._names[name, half] = f"{name}/half" if half and name in outputs else name
        if half:
            self._halve(node)
        self._nodes.append(node)

    def _halve(self, node: Any) -> None:
        """What its attributes say of FP32."""
        for field in node.attribute:
            if field.name in ("to", "dtype") and field.i == _FLOAT:
                field.i = self._half
            if field.HasField("t") and field.t.data_type == _FLOAT:
                field.t.CopyFrom(self._rounded(field.t, field.t.name))
        if node.op_type == "ConstantOfShape" and not node.attribute:  # its default is an FP32 zero
            zero = self._onnx.helper.make_tensor("value", self._half, [1], [0.0])
            node.attribute.append(self._onnx.helper.make_attribute("value", zero))

    def _value(self, name: str, *, half: bool) -> str:
        """The value's name in the form that is asked for, made if it is not there yet."""
        found = self._names.get((name, half))
        if found is not None:
            return found
        if name in self._weights:
            weights = self._weights[name]
            made = self._rounded(weights, f"{name}/half") if half else weights
            self._made.append(made)
            self._names[name, half] = made.name
            return str(made.name)
        target = f"{name}/{'half_cast' if half else 'whole_cast'}"
        self._cast(self._names[name, not half], target, self._half if half else _FLOAT)
        self._names[name, half] = target
        return target

    def _cast(self, source: str, target: str, kind: int) -> None:
        self._nodes.append(self._onnx.helper.make_node("Cast", [source], [target], name=f"{target}/node", to=kind))

    def _rounded(self, tensor: Any, name: str) -> Any:
        values = np.asarray(self._onnx.numpy_helper.to_array(tensor), np.float32)
        if self._half == _HALVES["fp16"]:
            beyond = np.isfinite(values) & (np.abs(values) > LARGEST_FP16)
            self.cut += int(beyond.sum())
            values = np.where(beyond, np.copysign(np.float32(LARGEST_FP16), values), values)
            raw = values.astype(np.float16).tobytes()
        else:
            raw = _bfloat_bits(values).tobytes()
        return self._onnx.helper.make_tensor(name, self._half, list(tensor.dims), raw, raw=True)


def _bfloat_bits(values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Rounded to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
