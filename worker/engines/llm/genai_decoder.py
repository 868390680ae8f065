"""Language models that ONNX Runtime GenAI runs, one generator for each sequence.

For the folders that `onnx_decoder.py` cannot run: on CUDA, several graphs, other attention. Sequences go on by turns within a
step, so a step takes as long as its rows together, and GenAI holds the GIL meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from worker.engine import Array

_PART_TOKENS = 256


class GenaiDecoder:
    """A `Decoder`."""

    part_tokens = _PART_TOKENS

    def __init__(self, genai: Any, model: Any, *, slots: int, context_length: int, vocabulary: int) -> None:
        self.slots = slots
        self.context_length = context_length
        self.vocabulary = vocabulary
        self._genai = genai
        self._model: Any = model
        self._generators: dict[int, Any] = {}

    def begin(self, slot: int, most_tokens: int) -> None:
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=most_tokens, do_sample=False)
        self._generators[slot] = self._genai.Generator(self._model, parameters)

    def extend(self, slot: int, tokens: Sequence[int]) -> Array:
        generator = self._generators[slot]
        generator.append_tokens(np.array(tokens, np.int32))
        logits = np.asarray(generator.get_logits(), np.float32)
        last: Array = logits.reshape(-1, self.vocabulary)[-1]
        return last

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Sequence[Array]:
        return [self.extend(slot, [token]) for slot, token in zip(slots, tokens, strict=True)]

    def end(self, slot: int) -> None:
        self._generators.pop(slot, None)

    def close(self) -> None:
        self._generators.clear()
        self._model = None


def open_genai_decoder(
    genai: Any, path: str, *, slots: int, context_length: int, vocabulary: int, cuda: bool, threads: int
) -> GenaiDecoder:
    """Raises what GenAI raises for a folder it cannot run."""
    config = genai.Config(path)
    config.clear_providers()
    if cuda:
        config.append_provider("cuda")
    else:
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    return GenaiDecoder(genai, genai.Model(config), slots=slots, context_length=context_length, vocabulary=vocabulary)
