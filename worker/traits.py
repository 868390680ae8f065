"""What a model says of itself besides what it takes and gives, for those who choose among models or keep its answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traits:
    """As a manifest has them, or as they are told of an open copy."""

    capabilities: frozenset[str] = frozenset()
    """What may be asked of it beyond its task, of `runtime.model_traits.CAPABILITIES`; of a spec, none: as its engine says."""
    cacheable: bool = False
    """The same request gets the same answer: one given before may be given again."""
    context_tokens: int = 0
    """Prompt and answer together; 0 = unknown, or as its engine says."""
    cost_per_million_tokens: float = 0.0
    """Beside those of other models; 0 = unknown."""


NO_TRAITS = Traits()
