"""Executions made when a copy is loaded, before it answers, so that no request pays for an engine's lazy set-up.

Blocks; runs on the model's lane.
"""

from __future__ import annotations

from worker.engine import TensorEngine, TextEngine, TextRequest
from worker.tensors import zeros
from worker.types import ModelSpec


def warm_up(spec: ModelSpec, engine: TensorEngine | TextEngine) -> None:
    """One execution, so that the first request does not pay for the engine's lazy set-up."""
    if isinstance(engine, TextEngine):
        generation = engine.begin(TextRequest("a", max_tokens=1))
        generation.step()
        generation.close()
        return
    batch = (1,) if spec.max_batch_size > 0 else ()
    engine.run(
        {
            tensor.name: zeros(tensor.datatype, batch + tuple(max(1, size) if size < 0 else size for size in tensor.shape))
            for tensor in spec.inputs
            if not tensor.optional
        }
    )
