"""What generating text asks of whoever computes a language model: rows in, logits out, the cache of keys and values in between.

An engine that can do this much has batching, sampling, stop strings, log probabilities and text from `engine.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from worker.engine import Array


class Decoder(Protocol):
    """A language model with room for some sequences of tokens. Used by one thread.

    A sequence is in a slot, numbered from 0, and grows to `context_length` tokens at most. The computed state of its tokens is
    kept here. Failures are raised as they come; `engine.py` logs them and answers for them.
    """

    slots: int
    """Sequences that may be held at once."""
    context_length: int
    """Tokens of one sequence."""
    vocabulary: int
    """Width of the logits."""
    part_tokens: int
    """Tokens that one call of `extend` takes."""

    def begin(self, slot: int, most_tokens: int) -> None:
        """An empty sequence in a slot that has none; it will not grow beyond so many tokens."""
        ...

    def extend(self, slot: int, tokens: Sequence[int]) -> Array:
        """Append 1 to `part_tokens` tokens to one sequence. float32 [vocabulary]: what may follow the last of them.

        The result may be overwritten by the next call.
        """
        ...

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Sequence[Array]:
        """Append one token to each of these sequences, all different and none empty; others are left as they are.

        float32 [vocabulary] for each of them, in their order. The results may be overwritten by the next call.
        """
        ...

    def end(self, slot: int) -> None:
        """Forget the slot's sequence. Safe to call for a slot that has none."""
        ...

    def close(self) -> None: ...
