"""Rows of a cache, bound to a language model's graph together with what travels at each call: tokens in, logits out.

Owns the small arrays that travel and keeps them bound from call to call, because binding costs as much as a small model's step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from worker.engine import Array
from worker.engines.llm.genai_folder import Graph


class CopiedMemory(Exception):
    """This ONNX Runtime copies arrays instead of working on their memory."""


class BoundRows:
    """`views` are past's name, present's name and the memory of both, for each part of the cache."""

    def __init__(
        self,
        runtime: Any,
        session: Any,
        graph: Graph,
        views: Iterable[tuple[str, str, Array]],
        *,
        positions: bool,
        vocabulary: int,
        logits_type: Any,
    ) -> None:
        self._runtime = runtime
        self._session = session
        self._graph = graph
        self._takes_positions = positions
        self._vocabulary = vocabulary
        self._logits_type = logits_type
        self._shape = (0, 0, 0)
        self._binding: Any = session.io_binding()
        for past, present, array in views:
            shared = self._shared(array)
            self._binding.bind_ortvalue_input(past, shared)
            self._binding.bind_ortvalue_output(present, shared)

    def run(self, ids: Sequence[Sequence[int]], past: Sequence[int], columns: int) -> Array:
        """The rows go on by `ids` [rows, tokens] after `past` tokens each; `columns` is the mask's width.

        [rows, tokens, vocabulary], overwritten by the next call.
        """
        self._fit(len(ids), len(ids[0]), columns)
        self._ids[:] = ids
        before = np.array(past, np.int64)[:, None]
        np.less(self._columns, before + self._ids.shape[1], out=self._mask, casting="unsafe")
        if self._takes_positions:
            np.add(before, self._columns[: self._ids.shape[1]], out=self._positions)
        self._session.run_with_iobinding(self._binding)
        return self._logits

    def _fit(self, rows: int, tokens: int, columns: int) -> None:
        if self._shape == (rows, tokens, columns):
            return
        self._shape = (rows, tokens, columns)
        self._columns = np.arange(max(columns, tokens))[:columns]
        self._ids, self._positions = np.empty((rows, tokens), np.int64), np.empty((rows, tokens), np.int64)
        self._mask = np.empty((rows, columns), np.int64)
        self._logits: Array = np.empty((rows, tokens, self._vocabulary), self._logits_type)
        self._binding.bind_ortvalue_input(self._graph.input_ids, self._shared(self._ids))
        self._binding.bind_ortvalue_input(self._graph.attention_mask, self._shared(self._mask))
        if self._takes_positions:
            self._binding.bind_ortvalue_input(self._graph.position_ids, self._shared(self._positions))
        self._binding.bind_ortvalue_output(self._graph.logits, self._shared(self._logits))

    def _shared(self, array: Array) -> Any:
        value = self._runtime.OrtValue.ortvalue_from_numpy(array)
        if value.data_ptr() != array.ctypes.data:
            raise CopiedMemory
        return value
