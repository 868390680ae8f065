"""A language model whose next token follows from the last one: its answers can be told in advance.

Letters follow each other in the alphabet and end after z; a digit is followed by any digit, all equally likely.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.worker.onnx_models import save, spec
from worker.engine import Array
from worker.types import ModelSpec, Task, TensorSpec

CONTEXT_LENGTH = 512
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789|:.,!?+-=*"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def language_spec(**other: Any) -> ModelSpec:
    return spec(
        "alphabet",
        engine="llm",
        task=Task.CHAT,
        max_batch_size=0,
        inputs=(TensorSpec("text_input", "BYTES", (1,)),),
        outputs=(TensorSpec("text_output", "BYTES", (1,)),),
        decoupled=True,
        **other,
    )


def markov(folder: Path) -> Path:
    """A model folder as ONNX Runtime GenAI takes it."""
    _graph(folder)
    tokens = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
    (folder / "genai_config.json").write_text(json.dumps(_config(len(tokens))))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(tokens)))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "pad_token": "<pad>",
                "add_bos_token": False,
                "chat_template": TEMPLATE,
            }
        )
    )
    return folder


def table() -> Array:
    """float32 [tokens, tokens]: the logits after each token."""
    size, first = len(SPECIAL) + len(CHARACTERS), len(SPECIAL)
    table = np.full((size, size), -30.0, np.float32)
    for token in range(size):
        table[token, min(token + 1, size - 1)] = 10.0
    last_letter = first + 25
    table[last_letter] = -30.0
    table[last_letter, SPECIAL.index("</s>")] = 10.0
    digits = slice(first + 26, first + 36)
    table[digits] = -30.0
    table[digits, digits] = 10.0
    return table


def _graph(folder: Path) -> None:
    size = len(SPECIAL) + len(CHARACTERS)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["logits"]),
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Gather", ["shape", "one"], ["length"]),
        helper.make_node("Concat", ["batch", "one", "length", "one"], ["state_shape"], axis=0),
        helper.make_node("ConstantOfShape", ["state_shape"], ["state"]),
        helper.make_node("Concat", ["past_key_values.0.key", "state"], ["present.0.key"], axis=2),
        helper.make_node("Concat", ["past_key_values.0.value", "state"], ["present.0.value"], axis=2),
    ]

    def state(name: str, length: str) -> object:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 1, length, 1])

    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["b", "t"]),
        state("past_key_values.0.key", "p"),
        state("past_key_values.0.value", "p"),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", size]),
        state("present.0.key", "t"),
        state("present.0.value", "t"),
    ]
    constants = [
        numpy_helper.from_array(table(), "table"),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    save(folder, nodes, inputs, outputs, constants)


def _config(size: int) -> dict[str, object]:
    return {
        "model": {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "context_length": CONTEXT_LENGTH,
            "type": "llama",
            "vocab_size": size,
            "decoder": {
                "session_options": {"intra_op_num_threads": 1, "provider_options": []},
                "filename": "model.onnx",
                "head_size": 1,
                "hidden_size": 1,
                "num_attention_heads": 1,
                "num_hidden_layers": 1,
                "num_key_value_heads": 1,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": CONTEXT_LENGTH, "past_present_share_buffer": False, "top_k": 1},
    }


def _tokenizer(tokens: dict[str, int]) -> dict[str, object]:
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": tokens[token], "content": token, **special} for token in SPECIAL],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": False, "vocab": tokens, "merges": []},
    }
