"""Requests' rows under each other, and the outputs' rows back to their requests.

Where the engine has memory of its own for inputs, rows are written straight into it; else they are copied once, and a
request alone not at all. Knows arrays, not requests' ways: what goes together was decided before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from worker.batching.jobs import Inputs, Job
from worker.engine import Array, EngineFailed, StagingEngine, TensorEngine
from worker.types import ModelSpec

Layout = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and datatype (KServe's name) by input."""


class RowAssembly:
    """An `Assembly` of requests that know nothing of each other."""

    repeatable = True

    def __init__(self, spec: ModelSpec, engine: TensorEngine) -> None:
        self._batched = spec.max_batch_size > 0
        self._datatypes = {tensor.name: tensor.datatype for tensor in spec.inputs}
        self._staging = engine if isinstance(engine, StagingEngine) else None

    def gather(self, batch: Sequence[Job], slot: int) -> Inputs:
        first = batch[0].work
        if self._staging is not None:
            rows = sum(job.rows for job in batch)
            layout: Layout = {
                name: ((rows, *array.shape[1:]) if self._batched else array.shape, self._datatypes[name])
                for name, array in first.items()
            }
            staged = self._staging.staging(layout, slot)
            if staged is not None:
                for name, array in staged.items():
                    put_under([job.work[name] for job in batch], array)
                return staged
        if len(batch) == 1:
            return first
        return {name: np.concatenate([job.work[name] for job in batch]) for name in first}

    def divide(self, outputs: Sequence[Array], batch: Sequence[Job]) -> Sequence[Sequence[Array]]:
        """Views of each request's own rows."""
        if not self._batched:
            return [outputs]
        if len(batch) == 1:
            check_rows(outputs, batch[0].rows)
            return [outputs]
        check_rows(outputs, sum([job.rows for job in batch]))
        answers: list[Sequence[Array]] = []
        start = 0
        for job in batch:
            end = start + job.rows
            answers.append([output[start:end] for output in outputs])
            start = end
        return answers


def put_under(parts: Sequence[Array], into: Array) -> None:
    """Fill `into` with the parts, one under the other."""
    if len(parts) == 1:
        np.copyto(into, parts[0])
    else:
        np.concatenate(parts, out=into)


def check_rows(outputs: Sequence[Array], rows: int) -> None:
    """Raises EngineFailed unless every output has so many rows."""
    for output in outputs:
        if output.ndim == 0 or output.shape[0] != rows:
            raise EngineFailed(f"the model gave an output of shape {list(output.shape)} for a batch of {rows} rows")
