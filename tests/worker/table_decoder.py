"""The smallest `Decoder`: what follows a token is looked up in a table. For tests of what needs no real model."""

from __future__ import annotations

from collections.abc import Sequence

from worker.engine import Array


class TableDecoder:
    """`table` is float32 [vocabulary, vocabulary]: the logits after each token."""

    part_tokens = 3

    def __init__(self, table: Array, *, slots: int, context_length: int) -> None:
        self.slots = slots
        self.context_length = context_length
        self.vocabulary = table.shape[0]
        self.closed = False
        self.calls: list[int] = []
        """Rows of each call, prompts' parts included."""
        self._table = table
        self._sequences: dict[int, list[int]] = {}

    def begin(self, slot: int, most_tokens: int) -> None:
        assert slot in range(self.slots)
        assert most_tokens <= self.context_length
        assert slot not in self._sequences
        self._sequences[slot] = []

    def extend(self, slot: int, tokens: Sequence[int]) -> Array:
        assert 1 <= len(tokens) <= self.part_tokens
        self.calls.append(1)
        return self._append(slot, tokens)

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Sequence[Array]:
        assert len(set(slots)) == len(slots) > 0
        assert all(self._sequences[slot] for slot in slots)
        self.calls.append(len(slots))
        return [self._append(slot, [token]) for slot, token in zip(slots, tokens, strict=True)]

    def end(self, slot: int) -> None:
        self._sequences.pop(slot, None)

    def close(self) -> None:
        self.closed = True

    def _append(self, slot: int, tokens: Sequence[int]) -> Array:
        self._sequences[slot].extend(tokens)
        assert len(self._sequences[slot]) <= self.context_length
        row: Array = self._table[self._sequences[slot][-1]]
        return row
