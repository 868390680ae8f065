"""What a model of sequences is given besides the request: control inputs, and the states that are kept for it.

Owns how rows of sequences become arrays and back, and each sequence's states, which change only when an execution ended
well. A row without a request is zeros with READY false. Which sequence has which row is decided in `sequences.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from worker.batching.jobs import Inputs, Job
from worker.batching.places import SequencePolicy
from worker.batching.queue import DEFAULT_QUEUE_SIZE
from worker.batching.rows import Layout, check_rows, put_under
from worker.datatypes import DATATYPES
from worker.engine import Array, EngineFailed, StagingEngine, TensorEngine
from worker.engines.described import engine_inputs, engine_outputs
from worker.tensors import zeros
from worker.types import (
    ModelSpec,
    SequenceControl,
    SequenceControlKind,
    SequenceSpec,
    SequenceState,
    SequenceStrategy,
)


def sequence_policy(spec: ModelSpec, sequences: SequenceSpec, slots: int) -> SequencePolicy:
    """What the manifest asks for, and the worker's defaults where it asks for nothing."""
    corrid = [control.datatype for control in sequences.controls if control.kind is SequenceControlKind.CORRID]
    return SequencePolicy(
        model=spec.model,
        strategy=sequences.strategy,
        rows=max(1, spec.max_batch_size),
        slots=slots,
        max_sequences=sequences.max_sequences,
        max_waiting=sequences.max_waiting_sequences or DEFAULT_QUEUE_SIZE,
        max_requests=spec.batching.max_queue_size or DEFAULT_QUEUE_SIZE,
        max_idle_s=sequences.max_idle_s,
        delay_s=spec.batching.max_queue_delay_us / 1e6,
        preferred_rows=frozenset(spec.batching.preferred_batch_sizes),
        queue=spec.batching.default_queue_policy,
        id_datatype=corrid[0] if corrid else "",
    )


class SequenceAssembly:
    """An `Assembly` of one request each from several sequences."""

    def __init__(self, spec: ModelSpec, sequences: SequenceSpec, engine: TensorEngine) -> None:
        self._batched = spec.max_batch_size > 0
        self._direct = sequences.strategy is SequenceStrategy.DIRECT
        self._sequences = sequences
        self._staging = engine if isinstance(engine, StagingEngine) else None
        self._datatypes = {tensor.name: tensor.datatype for tensor in engine_inputs(spec)}
        self._visible = len(spec.outputs)
        index = {tensor.name: number for number, tensor in enumerate(engine_outputs(spec))}
        self._kept = [(index[state.output], state) for state in sequences.states]

    @property
    def repeatable(self) -> bool:
        """A model that keeps its state itself may have changed it before it failed."""
        return bool(self._sequences.states) or not self._sequences.controls

    def gather(self, batch: Sequence[Job], slot: int) -> Inputs:
        rows, height = self._rows(batch)
        for job in batch:
            if job.mark is not None and job.mark.start:  # forgotten also if this execution fails
                job.sequence.states = None
        parts: dict[str, list[Array]] = {name: [job.work[name] for job in batch] for name in batch[0].work}
        for number, state in enumerate(self._sequences.states):
            parts[state.input] = [self._state(job, number, state) for job in batch]
        flags = {control.input: self._control(control, batch, rows, height) for control in self._sequences.controls}
        shapes = {name: (height, *each[0].shape[1:]) if self._batched else each[0].shape for name, each in parts.items()}
        shapes |= {name: array.shape for name, array in flags.items()}
        layout: Layout = {name: (shape, self._datatypes[name]) for name, shape in shapes.items()}
        staged = self._staging.staging(layout, slot) if self._staging is not None else None
        if staged is None:
            whole = {name: self._together(each, rows, *layout[name]) for name, each in parts.items()}
            return whole | flags
        for name, array in flags.items():
            np.copyto(staged[name], array)
        for name, each in parts.items():
            self._fill(staged[name], each, rows)
        return staged

    def divide(self, outputs: Sequence[Array], batch: Sequence[Job]) -> Sequence[Sequence[Array]]:
        """Each job's own row. What the sequences keep is kept once all of it is found to be right."""
        rows, height = self._rows(batch)
        if self._batched:
            check_rows(outputs, height)
        for index, state in self._kept:
            _check_state(state, outputs[index].shape[1:] if self._batched else outputs[index].shape)
        alone = not self._batched or height == 1
        for job, row in zip(batch, rows, strict=True):
            if self._kept:
                # A copy, because a view would keep the other sequences' rows alive as long as this one idles.
                job.sequence.states = tuple(
                    outputs[index] if alone else outputs[index][row : row + 1].copy() for index, _ in self._kept
                )
        visible = outputs[: self._visible]
        if alone:
            return [visible]
        return [[output[row : row + 1] for output in visible] for row in rows]

    def _rows(self, batch: Sequence[Job]) -> tuple[Sequence[int], int]:
        """The row of each, and the rows in all."""
        if self._direct:
            return [job.row for job in batch], batch[0].height
        return range(len(batch)), len(batch)

    def _state(self, job: Job, number: int, state: SequenceState) -> Array:
        kept = job.sequence.states
        if kept is None:
            return zeros(state.datatype, (1, *state.shape) if self._batched else state.shape)
        array: Array = kept[number]
        return array

    def _control(self, control: SequenceControl, batch: Sequence[Job], rows: Sequence[int], height: int) -> Array:
        array = zeros(control.datatype, (height, 1) if self._batched else (1,))
        for job, row in zip(batch, rows, strict=True):
            array[row] = _CONTROLS[control.kind](job)
        return array

    def _together(self, parts: Sequence[Array], rows: Sequence[int], shape: tuple[int, ...], datatype: str) -> Array:
        if len(parts) == 1 and parts[0].shape == shape:
            return parts[0]
        array: Array = np.empty(shape, DATATYPES[datatype].dtype)
        self._fill(array, parts, rows)
        return array

    def _fill(self, array: Array, parts: Sequence[Array], rows: Sequence[int]) -> None:
        if not self._batched or len(parts) == len(array):  # every row has a request, and they are in the order of rows
            put_under(parts, array)
            return
        array[...] = b"" if array.dtype.hasobject else 0
        for part, row in zip(parts, rows, strict=True):
            array[row : row + 1] = part


def _check_state(state: SequenceState, shape: tuple[int, ...]) -> None:
    if shape != state.shape:
        raise EngineFailed(
            f"the model gave sequence state {state.output!r} with shape {list(shape)} where its manifest says"
            f" {list(state.shape)}"
        )


def _flag(kind: SequenceControlKind) -> Callable[[Job], object]:
    if kind is SequenceControlKind.START:
        return lambda job: job.mark is not None and job.mark.start
    if kind is SequenceControlKind.END:
        return lambda job: job.mark is not None and job.mark.end
    if kind is SequenceControlKind.READY:
        return lambda job: True
    return _correlation_id


def _correlation_id(job: Job) -> object:
    sequence_id = job.mark.sequence_id if job.mark is not None else 0
    return sequence_id.encode() if isinstance(sequence_id, str) else sequence_id


_CONTROLS: Mapping[SequenceControlKind, Callable[[Job], object]] = {kind: _flag(kind) for kind in SequenceControlKind}
