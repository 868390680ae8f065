"""A language model's graph as ONNX Runtime GenAI's builder exports it, its attention done in standard operators over a cache
that is written in place.

The builder's GroupQueryAttention is somebody else's operator: TensorRT has it only where a plugin library of ONNX Runtime's is
installed. What replaces it takes each row's length as an input instead of a mask, keeps keys and values in
[rows, heads, context, head size] whose shape never changes, and writes new ones by TensorScatter, for which TensorRT uses the
cache's own memory. Rewrites a graph in memory; never reads or runs one.
Source: ONNX TensorScatter-24; onnxruntime ContribOperators.md, GroupQueryAttention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.errors import Code, PenstockError
from worker.engines.llm.genai_folder import Graph

LENGTHS = "past_lengths"
"""int64 [rows]: tokens that each row has already."""
_OPSET = 24
_FLOATS: Mapping[int, Any] = {1: np.float32, 10: np.float16}
_PACKED, _KEY, _VALUE, _PAST_KEY, _PAST_VALUE, _COS, _SIN = 0, 1, 2, 3, 4, 7, 8
_PLAIN = {"local_window_size": -1, "softcap": 0.0, "rotary_interleaved": 0, "smooth_softmax": 0, "qk_output": 0}
"""Attributes of GroupQueryAttention, and the one value of each that is done here."""


class AttentionRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="ATTENTION_REFUSED"):
    """The graph's attention is of a kind that is not rewritten."""


def rewrite(onnx: Any, model: Any, graph: Graph, context_length: int) -> Any:
    """The model again, in place. Raises AttentionRefused."""
    return _Rewriting(onnx, model, graph, context_length).done()


class _Rewriting:
    def __init__(self, onnx: Any, model: Any, graph: Graph, context_length: int) -> None:
        self._onnx, self._model, self._names, self._context = onnx, model, graph, context_length
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._constants: dict[str, str] = {}
        self._scope = ""

    def done(self) -> Any:
        graph, names = self._model.graph, self._names
        attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
        if len(attention) != names.layers:
            raise AttentionRefused(
                f"{len(attention)} of {names.layers} layers attend by GroupQueryAttention; export the model with it in all of"
                " them"
            )
        self._float = self._kind(names.past_key % 0)
        positions = self._positions()
        hidden = self._hidden(positions)
        kept = list(self._nodes)
        for node in graph.node:
            if node.op_type == "GroupQueryAttention":
                self._nodes = []
                self._attend(node, positions, hidden)
                kept += self._nodes
            else:
                kept.append(node)
        if names.position_ids:
            _rename(kept, names.position_ids, positions)
        self._replace(kept)
        return self._model

    def _positions(self) -> str:
        """int64 [rows, tokens]: where each new token stands."""
        self._scope = "/positions"
        tokens = self._add("Shape", [self._names.input_ids], start=1, end=2)
        count = self._add("Squeeze", [tokens, self._constant("zero", np.array([0], np.int64))])
        steps = self._add("Range", [self._scalar(0), count, self._scalar(1)])
        lengths = self._add("Unsqueeze", [LENGTHS, self._constant("one", np.array([1], np.int64))])
        return self._add("Add", [lengths, steps])

    def _hidden(self, positions: str) -> str:
        """bool [rows, 1, 1, tokens, context]: what lies in a token's future, or was never written."""
        self._scope = "/hidden"
        places = self._constant("places", np.arange(self._context, dtype=np.int64).reshape(1, 1, 1, 1, -1))
        at = self._add("Unsqueeze", [positions, self._constant("axes", np.array([1, 2, 4], np.int64))])
        return self._add("Greater", [places, at])

    def _attend(self, node: Any, positions: str, hidden: str) -> None:
        names, groups = self._names, self._names.query_heads // self._names.heads
        given = {field.name: self._onnx.helper.get_attribute_value(field) for field in node.attribute}
        self._refuse_unusual(node, given)
        self._scope = node.name or f"/{node.output[0]}"
        query, key, value = self._heads(node)
        if given.get("do_rotary", 0):
            cos, sin = (self._turns(node.input[index], positions) for index in (_COS, _SIN))
            query, key = self._rotated(query, cos, sin), self._rotated(key, cos, sin)
        keys = self._add("TensorScatter", [node.input[_PAST_KEY], key, LENGTHS], node.output[1], axis=2, mode="linear")
        values = self._add("TensorScatter", [node.input[_PAST_VALUE], value, LENGTHS], node.output[2], axis=2, mode="linear")
        # [rows, heads, groups, tokens, size] × [rows, heads, 1, size, context]: each head of the cache serves several queries.
        grouped = self._reshaped("grouped", query, [0, names.heads, groups, -1, names.head_size])
        lying = self._add("Transpose", [keys], perm=[0, 1, 3, 2])
        one_group = self._constant("third", np.array([2], np.int64))
        scores = self._add("MatMul", [grouped, self._add("Unsqueeze", [lying, one_group])])
        scale = given.get("scale") or 1.0 / names.head_size**0.5
        scaled = self._add("Mul", [scores, self._constant("scale", np.asarray(scale, _FLOATS[self._float]))])
        whole = self._add("Cast", [scaled], to=1)  # FP16 does not add up thousands of small shares
        shown = self._add("Where", [hidden, self._constant("nothing", np.float32(-1e30)), whole])
        shares = self._add("Cast", [self._add("Softmax", [shown], axis=-1)], to=self._float)
        mixed = self._add("MatMul", [shares, self._add("Unsqueeze", [values, one_group])])
        rows = self._reshaped("rejoined", mixed, [0, names.query_heads, -1, names.head_size])
        back = self._add("Transpose", [rows], perm=[0, 2, 1, 3])
        self._reshaped("width", back, [0, 0, names.query_heads * names.head_size], node.output[0])

    def _heads(self, node: Any) -> tuple[str, str, str]:
        """Query, key and value as [rows, heads, tokens, size]."""
        names = self._names
        counts = (names.query_heads, names.heads, names.heads)
        parts = [node.input[_PACKED], node.input[_KEY], node.input[_VALUE]]
        if not node.input[_KEY]:
            sizes = self._constant("sizes", np.array([count * names.head_size for count in counts], np.int64))
            parts = self._split(node.input[_PACKED], sizes, 3)
        query, key, value = (
            self._add("Transpose", [self._reshaped(f"heads{count}", part, [0, 0, count, names.head_size])], perm=[0, 2, 1, 3])
            for part, count in zip(parts, counts, strict=True)
        )
        return query, key, value

    def _turns(self, table: str, positions: str) -> str:
        """[rows, 1, tokens, size / 2] of a table of cosines or sines."""
        return self._add("Unsqueeze", [self._add("Gather", [table, positions]), self._constant("one", np.array([1], np.int64))])

    def _rotated(self, value: str, cos: str, sin: str) -> str:
        half = self._names.head_size // 2
        low, high = self._split(value, self._constant("halves", np.array([half, half], np.int64)), 2)
        first = self._add("Sub", [self._add("Mul", [low, cos]), self._add("Mul", [high, sin])])
        second = self._add("Add", [self._add("Mul", [high, cos]), self._add("Mul", [low, sin])])
        return self._add("Concat", [first, second], axis=-1)

    def _refuse_unusual(self, node: Any, given: Mapping[str, Any]) -> None:
        for name, plain in _PLAIN.items():
            if name in given and given[name] != plain:
                raise AttentionRefused(f"node {node.name!r} attends with {name} {given[name]}, which is not rewritten")
        extra = [name for name in (*node.input[9:], *node.output[3:]) if name not in ("", self._names.position_ids)]
        if extra:
            raise AttentionRefused(f"node {node.name!r} attends with {extra[0]!r}, which is not rewritten")

    def _replace(self, nodes: Sequence[Any]) -> None:
        """The new graph: its nodes that lead to an output, its inputs without the mask and with lengths."""
        graph, names, helper = self._model.graph, self._names, self._onnx.helper
        wanted = {value.name for value in graph.output}
        kept: list[Any] = []
        for node in reversed(nodes):
            if wanted & set(node.output):
                kept.append(node)
                wanted.update(name for name in node.input if name)
        weights = [tensor for tensor in (*graph.initializer, *self._weights) if tensor.name in wanted]
        inputs = [value for value in graph.input if value.name not in (names.attention_mask, names.position_ids)]
        shape = ["rows", names.heads, self._context, names.head_size]
        states = {
            name % layer
            for name in (names.past_key, names.past_value, names.present_key, names.present_value)
            for layer in range(names.layers)
        }
        for value in (*inputs, *graph.output):
            if value.name in states:
                value.CopyFrom(helper.make_tensor_value_info(value.name, self._float, shape))
        lengths = helper.make_tensor_value_info(LENGTHS, self._onnx.TensorProto.INT64, ["rows"])
        ids = next(value for value in inputs if value.name == names.input_ids)
        ids.CopyFrom(helper.make_tensor_value_info(names.input_ids, self._onnx.TensorProto.INT64, ["rows", "tokens"]))
        inputs = [*inputs, lengths]
        del graph.node[:], graph.initializer[:], graph.input[:], graph.value_info[:]
        graph.node.extend(reversed(kept))
        graph.initializer.extend(weights)
        graph.input.extend(inputs)
        for opset in self._model.opset_import:
            if opset.domain == "":
                opset.version = max(opset.version, _OPSET)

    def _kind(self, name: str) -> int:
        found = next((value.type.tensor_type.elem_type for value in self._model.graph.input if value.name == name), 0)
        if found not in _FLOATS:
            raise AttentionRefused(f"the cache {name!r} is neither FP32 nor FP16; export the model in one of them")
        return int(found)

    def _split(self, value: str, sizes: str, count: int) -> list[str]:
        outputs = [f"{self._name('Split')}/{index}" for index in range(count)]
        self._nodes.append(self._onnx.helper.make_node("Split", [value, sizes], outputs, axis=-1, name=self._name("Split")))
        return outputs

    def _reshaped(self, name: str, value: str, shape: Sequence[int], output: str = "") -> str:
        return self._add("Reshape", [value, self._constant(name, np.array(shape, np.int64))], output)

    def _add(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        name = self._name(kind)
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, [output or f"{name}/output"], name=name, **attributes))
        return output or f"{name}/output"

    def _scalar(self, value: int) -> str:
        return self._constant(f"scalar{value}", np.array(value, np.int64))

    def _constant(self, name: str, value: Any) -> str:
        """By its content: layers share what is alike."""
        array = np.asarray(value)
        key = f"penstock/{name}/{array.dtype}/{array.shape}/{array.reshape(-1)[:8].tolist()}"
        if key not in self._constants:
            self._constants[key] = key
            self._weights.append(self._onnx.numpy_helper.from_array(array, key))
        return key

    def _name(self, kind: str) -> str:
        return f"{self._scope}/{kind}_{len(self._nodes)}"


def _rename(nodes: Sequence[Any], old: str, new: str) -> None:
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
