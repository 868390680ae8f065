"""A Llama of some thousand random parameters, in a folder as ONNX Runtime GenAI's model builder writes it: tokens are bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from worker.engine import Array

ROOT = Path(__file__).resolve().parents[2]
CONTEXT_LENGTH = 640
VOCABULARY, HIDDEN, LAYERS, HEADS, KEY_VALUE_HEADS, HEAD = 261, 32, 2, 4, 2, 16
_BYTE_TOKENIZER = ROOT / "cli" / "demo" / "sums"


def tiny_llama(folder: Path, *, seed: int = 0, positions: bool = False, half: bool = False, **decoder: Any) -> Path:
    """`positions`: the graph also takes position ids. `half`: a cache of float16. `decoder`: further settings."""
    _save(folder / "model.onnx", np.random.default_rng(seed), positions=positions, half=half)
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"} | (
        {"position_ids": "position_ids"} if positions else {}
    )
    names = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    presents = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    (folder / "genai_config.json").write_text(
        json.dumps(
            {
                "model": {
                    "bos_token_id": 1,
                    "eos_token_id": 4,
                    "pad_token_id": 0,
                    "context_length": CONTEXT_LENGTH,
                    "type": "llama",
                    "vocab_size": VOCABULARY,
                    "decoder": {
                        "session_options": {"intra_op_num_threads": 1, "provider_options": []},
                        "filename": "model.onnx",
                        "head_size": HEAD,
                        "hidden_size": HIDDEN,
                        "num_attention_heads": HEADS,
                        "num_hidden_layers": LAYERS,
                        "num_key_value_heads": KEY_VALUE_HEADS,
                        "inputs": inputs | names,
                        "outputs": {"logits": "logits"} | presents,
                        **decoder,
                    },
                },
                "search": {"do_sample": False, "max_length": CONTEXT_LENGTH, "past_present_share_buffer": True, "top_k": 1},
            }
        )
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_BYTE_TOKENIZER / name, folder / name)
    return folder


def _save(path: Path, random: np.random.Generator, *, positions: bool, half: bool) -> None:
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weights: list[Any] = []

    def weight(name: str, *shape: int) -> str:
        array: Array = (random.normal(size=shape) / np.sqrt(shape[0])).astype(dtype)
        weights.append(numpy_helper.from_array(array, name))
        return name

    angles = np.arange(CONTEXT_LENGTH)[:, None] / 10_000 ** (np.arange(HEAD // 2) / (HEAD // 2))
    weights.append(numpy_helper.from_array(np.cos(angles).astype(dtype), "cos"))
    weights.append(numpy_helper.from_array(np.sin(angles).astype(dtype), "sin"))
    weights.append(numpy_helper.from_array(np.ones(HIDDEN, dtype), "scale"))
    weights += [numpy_helper.from_array(np.array([each], np.int64), f"int{each}") for each in (0, 1)]
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask", "int1"], ["lengths"], keepdims=0),
        helper.make_node("Sub", ["lengths", "int1"], ["last"]),
        helper.make_node("Cast", ["last"], ["last32"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "int1"], ["total"], axis=0),
        helper.make_node("Cast", ["total"], ["total32"], to=TensorProto.INT32),
        helper.make_node("Gather", [weight("embeddings", VOCABULARY, HIDDEN), "input_ids"], ["x0"]),
    ]
    for layer in range(LAYERS):
        qkv = weight(f"qkv{layer}", HIDDEN, (HEADS + 2 * KEY_VALUE_HEADS) * HEAD)
        states = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        presents = [f"present.{layer}.key", f"present.{layer}.value"]
        where = ["position_ids"] if positions else []
        nodes += [
            _norm(f"x{layer}", f"n{layer}"),
            helper.make_node("MatMul", [f"n{layer}", qkv], [f"qkv_out{layer}"]),
            helper.make_node(
                "GroupQueryAttention",
                [f"qkv_out{layer}", "", "", *states, "last32", "total32", "cos", "sin", *where],
                [f"attention{layer}", *presents],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KEY_VALUE_HEADS,
                do_rotary=1,
            ),
            helper.make_node(
                "MatMul", [f"attention{layer}", weight(f"out{layer}", HEADS * HEAD, HIDDEN)], [f"projected{layer}"]
            ),
            helper.make_node("Add", [f"x{layer}", f"projected{layer}"], [f"y{layer}"]),
            _norm(f"y{layer}", f"m{layer}"),
            helper.make_node("MatMul", [f"m{layer}", weight(f"up{layer}", HIDDEN, 2 * HIDDEN)], [f"up_out{layer}"]),
            helper.make_node("Tanh", [f"up_out{layer}"], [f"active{layer}"]),
            helper.make_node("MatMul", [f"active{layer}", weight(f"down{layer}", 2 * HIDDEN, HIDDEN)], [f"down_out{layer}"]),
            helper.make_node("Add", [f"y{layer}", f"down_out{layer}"], [f"x{layer + 1}"]),
        ]
    nodes += [
        _norm(f"x{LAYERS}", "normal"),
        helper.make_node("MatMul", ["normal", weight("head", HIDDEN, VOCABULARY)], ["logits"]),
    ]

    def tensor(name: str, what: int, *dims: Any) -> Any:
        return helper.make_tensor_value_info(name, what, dims)

    def state(name: str, tokens: str) -> Any:
        return tensor(name, kind, "batch", KEY_VALUE_HEADS, tokens, HEAD)

    layers = [(layer, part) for layer in range(LAYERS) for part in ("key", "value")]
    inputs = [tensor(name, TensorProto.INT64, "batch", "tokens") for name in ("input_ids", "attention_mask")]
    inputs += [tensor("position_ids", TensorProto.INT64, "batch", "tokens")] if positions else []
    inputs += [state(f"past_key_values.{layer}.{part}", "past") for layer, part in layers]
    outputs = [tensor("logits", kind, "batch", "tokens", VOCABULARY)]
    outputs += [state(f"present.{layer}.{part}", "total") for layer, part in layers]
    graph = helper.make_graph(nodes, "tiny_llama", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def _norm(source: str, target: str) -> Any:
    return helper.make_node("SimplifiedLayerNormalization", [source, "scale"], [target], axis=-1, epsilon=1e-5)
