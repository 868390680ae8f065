"""What `genai_config.json` says: the description that ONNX Runtime GenAI's model builder writes beside a decoder.

A codec, one way. Reads no graph and no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from worker.engine import ModelRefused
from worker.engines.described import first_line
from worker.engines.llm.sampling import Choice
from worker.types import ModelSpec

FILE = "genai_config.json"
_PLAIN = frozenset({"input_ids", "attention_mask", "position_ids"})
_STATES = frozenset({"past_key_names", "past_value_names"})
_OTHER_PARTS = ("encoder", "embedding", "vision", "speech", "encoder_decoder_init")


@dataclass(frozen=True, slots=True)
class Graph:
    """The decoder's graph, by the names of its inputs and outputs. `%d` in a name stands for a layer."""

    file: str
    layers: int
    heads: int
    """Of keys and values."""
    query_heads: int
    head_size: int
    input_ids: str
    attention_mask: str
    position_ids: str
    """Empty where the configuration names none."""
    past_key: str
    past_value: str
    logits: str
    present_key: str
    present_value: str
    plain: bool
    """One graph, with these inputs and no others."""


@dataclass(frozen=True, slots=True)
class GenaiFolder:
    context_length: int
    vocabulary: int
    ends: frozenset[int]
    """Tokens that end an answer."""
    intra_op_threads: int
    """0 = not said."""
    default: Choice
    """How tokens are chosen where the request does not say."""
    graph: Graph


def read_genai_folder(spec: ModelSpec, folder: Path) -> GenaiFolder:
    """Raises ModelRefused."""
    try:
        written = json.loads((folder / FILE).read_bytes())
        return _parsed(written["model"], written.get("search", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelRefused(
            f"model {spec.model!r} has no readable {FILE} with model.context_length, model.vocab_size, model.eos_token_id"
            f" and model.decoder ({first_line(error)})"
        ) from error


def _parsed(model: Mapping[str, Any], search: Mapping[str, Any]) -> GenaiFolder:
    ends = model["eos_token_id"]
    return GenaiFolder(
        context_length=int(model["context_length"]),
        vocabulary=int(model["vocab_size"]),
        ends=frozenset(map(int, ends)) if isinstance(ends, list) else frozenset({int(ends)}),
        intra_op_threads=max(0, int(model["decoder"].get("session_options", {}).get("intra_op_num_threads") or 0)),
        default=_default_choice(search),
        graph=_graph(model),
    )


def _default_choice(search: Mapping[str, Any]) -> Choice:
    penalty = float(search.get("repetition_penalty", 1.0))
    if not search.get("do_sample", False):
        return Choice(temperature=0.0, repetition_penalty=penalty)
    return Choice(
        temperature=float(search.get("temperature", 1.0)),
        top_p=float(search.get("top_p") or 1.0),
        top_k=int(search.get("top_k") or 0),
        repetition_penalty=penalty,
    )


def _graph(model: Mapping[str, Any]) -> Graph:
    decoder = model["decoder"]
    inputs, outputs = decoder.get("inputs", {}), decoder.get("outputs", {})
    file = PurePosixPath(decoder["filename"])
    if file.is_absolute() or ".." in file.parts:
        raise ValueError(f"{file} leads out of the model's folder")
    return Graph(
        file=str(file),
        layers=int(decoder["num_hidden_layers"]),
        heads=int(decoder["num_key_value_heads"]),
        query_heads=int(decoder["num_attention_heads"]),
        head_size=int(decoder["head_size"]),
        input_ids=inputs.get("input_ids", "input_ids"),
        attention_mask=inputs.get("attention_mask", "attention_mask"),
        position_ids=inputs.get("position_ids", ""),
        past_key=inputs.get("past_key_names", "past_key_values.%d.key"),
        past_value=inputs.get("past_value_names", "past_key_values.%d.value"),
        logits=outputs.get("logits", "logits"),
        present_key=outputs.get("present_key_names", "present.%d.key"),
        present_value=outputs.get("present_value_names", "present.%d.value"),
        plain=inputs.keys() <= _PLAIN | _STATES
        and not any(part in model for part in _OTHER_PARTS)
        and not decoder.get("pipeline")
        and not decoder.get("sliding_window"),
    )
