"""Language models as plain ONNX graphs, run by ONNX Runtime: sequences of any length share a step.

Owns the session and the cache of keys and values. It takes the folders of ONNX Runtime GenAI's model builder whose attention is
GroupQueryAttention with a shared cache, on the CPU: that operator knows each row's own length, and works in place when the past
and the present are the same memory. Whether a graph is of that kind is tried out when it is opened, not guessed from its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worker.engine import Array
from worker.engines.described import first_line
from worker.engines.llm.bound_rows import BoundRows
from worker.engines.llm.genai_folder import GenaiFolder, Graph
from worker.engines.llm.key_values import KeyValues, Place

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_PART_BYTES = 64 << 20
_MOST_PART_TOKENS = 256
_LEAST_PART_TOKENS = 16
_COLUMNS = 64


class UnsuitableGraph(Exception):
    """This decoder cannot run the graph; ONNX Runtime GenAI may."""


class OnnxDecoder:
    """A `Decoder`. Releases the GIL while it computes."""

    def __init__(self, folder: GenaiFolder, session: Any, runtime: Any, *, slots: int, context_length: int) -> None:
        self.slots = slots
        self.context_length = context_length
        self.vocabulary = folder.vocabulary
        self.part_tokens = _MOST_PART_TOKENS
        self._session: Any = session
        self._runtime = runtime
        self._graph = graph = folder.graph
        kinds = {tensor.name: tensor.type for tensor in (*session.get_inputs(), *session.get_outputs())}
        names = _states(graph)
        if {tensor.name for tensor in session.get_inputs()} - {graph.position_ids} != {
            graph.input_ids,
            graph.attention_mask,
            *(past for past, _ in names),
        }:
            raise UnsuitableGraph("its inputs are not tokens, mask, positions and the cache alone")
        self._positions = graph.position_ids in kinds
        try:
            self._state_type = _TYPES[kinds[names[0][0]]]
            self._logits_type = _TYPES[kinds[graph.logits]]
        except KeyError as error:
            raise UnsuitableGraph("its cache or its logits are neither float32 nor float16") from error
        shape = (graph.heads, graph.head_size)
        self._cache = KeyValues(names, shape, self._state_type, slots=slots, context_length=context_length)
        self._lengths = [0] * slots
        self._steps: dict[int, BoundRows] = {}
        """By the number of rows, which are the first ones."""
        self._parts: dict[int, BoundRows] = {}
        """By the row."""

    def begin(self, slot: int, most_tokens: int) -> None:
        self._lengths[slot] = 0

    def extend(self, slot: int, tokens: Sequence[int]) -> Array:
        self._grow(self._lengths[slot] + len(tokens))
        row = self._cache.row(slot)
        bound = self._parts.get(row)
        if bound is None:
            bound = self._parts[row] = self._bound(Place(row, 1))
        most = _part_tokens(self.vocabulary, self._graph.query_heads, self._cache.tokens)
        for start in range(0, len(tokens), most):
            part, past = tokens[start : start + most], self._lengths[slot]
            logits = bound.run([part], [past], past + len(part))
            self._lengths[slot] += len(part)
        return _float32(logits[0, -1])

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Sequence[Array]:
        lengths, rows = self._lengths, len(slots)
        longest = 1 + max(lengths[slot] for slot in slots)
        self._grow(longest)
        self._cache.gather(slots, lengths)
        order = [self._cache.row(slot) for slot in slots]
        ids, past = [[0]] * rows, [0] * rows
        for row, slot, token in zip(order, slots, tokens, strict=True):
            ids[row], past[row] = [token], lengths[slot]
            lengths[slot] += 1
        bound = self._steps.get(rows)
        if bound is None:
            bound = self._steps[rows] = self._bound(Place(0, rows))
        # A mask may be wider than its longest row. It is made anew at some steps only.
        columns = min(-(-longest // _COLUMNS) * _COLUMNS, self._cache.tokens)
        logits = bound.run(ids, past, columns)
        return [_float32(logits[row, 0]) for row in order]

    def end(self, slot: int) -> None:
        self._lengths[slot] = 0
        if not any(self._lengths) and self._cache.shrink():
            self._unbind()

    def close(self) -> None:
        self._unbind()
        self._cache.free()
        self._session = None

    def _grow(self, tokens: int) -> None:
        if self._cache.grow(tokens, self._lengths):
            self._unbind()

    def _unbind(self) -> None:
        self._steps.clear()
        self._parts.clear()

    def _bound(self, place: Place) -> BoundRows:
        return BoundRows(
            self._runtime,
            self._session,
            self._graph,
            self._cache.views(place),
            positions=self._positions,
            vocabulary=self.vocabulary,
            logits_type=self._logits_type,
        )


def open_onnx_decoder(path: Path, folder: GenaiFolder, *, slots: int, context_length: int, threads: int) -> OnnxDecoder:
    """Raises UnsuitableGraph, ImportError without ONNX Runtime, and what ONNX Runtime raises for a file it cannot read."""
    import onnxruntime

    if not folder.graph.plain:
        raise UnsuitableGraph("its configuration describes more than one plain graph")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool burns a core between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path / folder.graph.file), options, providers=["CPUExecutionProvider"])
    _try_out(OnnxDecoder(folder, session, onnxruntime, slots=2, context_length=min(8, context_length)))
    return OnnxDecoder(folder, session, onnxruntime, slots=slots, context_length=context_length)


def _try_out(decoder: OnnxDecoder) -> None:
    """Sequences of different length in one step have to give what each gives alone, and a prompt in parts what it gives whole.

    Raises UnsuitableGraph.
    """
    short, long = ((1, 2), (3, 1, 2, 0)) if decoder.vocabulary > 3 else ((0,), (0, 0))
    if decoder.context_length <= len(long):
        raise UnsuitableGraph("its context is too short to try it out")
    try:
        alone = []
        for prompt in (short, long):
            decoder.begin(0, len(prompt) + 1)
            decoder.extend(0, prompt)
            alone.append(decoder.step([0], [prompt[0]])[0].copy())
            decoder.end(0)
        decoder.begin(0, len(long) + 1)
        decoder.begin(1, len(short) + 1)
        decoder.extend(0, long[:1])
        decoder.extend(0, long[1:])
        decoder.extend(1, short)
        together = decoder.step([1, 0], [short[0], long[0]])
    except UnsuitableGraph:
        raise
    except Exception as error:
        raise UnsuitableGraph(f"sequences cannot share a step in it: {first_line(error)}") from error
    for one, other in zip(alone, together, strict=True):
        room = 0.01 * float(np.abs(one).max())
        if not np.allclose(one, other, rtol=0.01, atol=room):
            raise UnsuitableGraph("sequences that share a step in it do not give what they give alone")


def _states(graph: Graph) -> list[tuple[str, str]]:
    """The cache's inputs, each with the output that follows it."""
    pairs = ((graph.past_key, graph.present_key), (graph.past_value, graph.present_value))
    return [(past % layer, present % layer) for layer in range(graph.layers) for past, present in pairs]


def _part_tokens(vocabulary: int, heads: int, cached_tokens: int) -> int:
    """As many as keep the logits and the attention scores of one call within bounds."""
    row_bytes = 4 * max(vocabulary, heads * cached_tokens)
    return max(_LEAST_PART_TOKENS, min(_MOST_PART_TOKENS, _PART_BYTES // row_bytes))


def _float32(logits: Array) -> Array:
    return logits if logits.dtype == np.float32 else logits.astype(np.float32)
