"""Language models as TensorRT plans: tokens in, logits out, keys and values staying on the device.

Owns the cache, two execution contexts over one working memory, and what travels with each call. The plan is of
`language.py`'s kind: its first profile takes a token for each of some rows, its second a part of one row's prompt, and
it writes the cache in place. A step runs the rows up to the highest that takes part; what a row between them writes lies behind
its own last token, where its next one comes, and is never read before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from worker.cuda.driver import Driver
from worker.cuda.memory import DeviceBuffer
from worker.engine import Array, ModelRefused
from worker.engines.llm.genai_folder import Graph
from worker.engines.tensorrt.buffers import TensorBuffers
from worker.engines.tensorrt.cache_in_place import LENGTHS
from worker.engines.tensorrt.execution import Execution
from worker.engines.tensorrt.plan import Plan, Shape, Tensor

_STEP, _PART = 0, 1
"""The plan's profiles."""
_ALIGNMENT_BYTES = 256
"""Of every address that TensorRT is given; a row of the cache begins at one."""


class TensorRtDecoder:
    """A `Decoder`. Releases the GIL while it waits."""

    def __init__(
        self,
        plan: Plan,
        graph: Graph,
        make_execution: Callable[[DeviceBuffer], Execution],
        driver: Driver,
        device: int,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        tensors = {tensor.name: tensor for tensor in (*plan.inputs, *plan.outputs)}
        self._ids, self._lengths_input, self._logits = (
            TensorBuffers(tensors[name], driver) for name in (graph.input_ids, LENGTHS, graph.logits)
        )
        self._states = _states(graph, tensors, driver)
        ids = [profile.ranges[graph.input_ids].maximum for profile in plan.profiles]
        self.slots, self.part_tokens = ids[_STEP][0], ids[_PART][1]
        self.vocabulary = self._logits.tensor.shape[-1]
        past = next(iter(self._states))
        self.context_length = tensors[past].shape[2]
        self._row_shape: Shape = tensors[past].shape[1:]
        self._row_bytes = tensors[past].size_bytes(self._row_shape)
        self._lengths = [0] * self.slots
        self._driver, self._device, self._closed = driver, device, closed
        self._activations = DeviceBuffer(driver)
        self._executions: list[Execution] = []
        self._stream = 0
        driver.use(device)
        try:
            self._stream = driver.create_stream()
            self._reserve(plan, make_execution)
        except BaseException:
            self.close()
            raise

    @property
    def device_bytes(self) -> int:
        """Cache, working memory and what travels; the weights are the plan's."""
        travelling = (self._ids, self._lengths_input, self._logits)
        buffers = [*(buffers.device for buffers in travelling), *(cache for _, cache in self._states.values())]
        return self._activations.capacity_bytes + sum(buffer.capacity_bytes for buffer in buffers)

    def begin(self, slot: int, most_tokens: int) -> None:
        self._lengths[slot] = 0

    def extend(self, slot: int, tokens: Sequence[int]) -> Array:
        logits = self._run(_PART, slot, np.array([tokens], np.int64), [self._lengths[slot]])
        self._lengths[slot] += len(tokens)
        last: Array = logits[0]
        return last

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Sequence[Array]:
        rows = 1 + max(slots)
        ids = np.zeros((rows, 1), np.int64)
        ids[list(slots), 0] = tokens
        # A row that is full and does not take part may lose its last token: nothing is ever asked of it again.
        lengths = [min(length, self.context_length - 1) for length in self._lengths[:rows]]
        logits = self._run(_STEP, 0, ids, lengths)
        for slot in slots:
            self._lengths[slot] += 1
        return [logits[slot] for slot in slots]

    def end(self, slot: int) -> None:
        self._lengths[slot] = 0

    def close(self) -> None:
        """Safe to call twice."""
        self._driver.use(self._device)
        stream, self._stream = self._stream, 0
        if stream:
            self._driver.synchronise(stream)
        for execution in self._executions:
            execution.close()
        self._executions = []
        for buffers in (self._ids, self._lengths_input, self._logits):
            buffers.device.close()
            buffers.pinned.close()
        for _, cache in self._states.values():
            cache.close()
        self._activations.close()
        if stream:
            self._driver.destroy_stream(stream)
            self._closed()

    def _run(self, profile: int, row: int, ids: Array, lengths: Sequence[int]) -> Array:
        """Rows from `row` on go on by ids [rows, tokens]. float32 [rows, vocabulary] of the last token of each."""
        self._driver.use(self._device)
        rows, tokens = ids.shape
        execution = self._executions[profile]
        shapes: dict[str, Shape] = {self._ids.tensor.name: ids.shape, self._lengths_input.tensor.name: (rows,)}
        execution.shape(profile, shapes | dict.fromkeys(self._states, (rows, *self._row_shape)), self._stream)
        for buffers in (self._ids, self._lengths_input, self._logits):
            execution.bind(buffers.tensor.name, buffers.address)
        for past, (present, cache) in self._states.items():
            execution.bind(past, cache.address + row * self._row_bytes)
            execution.bind(present, cache.address + row * self._row_bytes)
        execution.output_shapes()
        self._ids.write(ids)
        self._lengths_input.write(np.array(lengths, np.int64))
        self._ids.send(ids.shape, self._stream)
        self._lengths_input.send((rows,), self._stream)
        execution.enqueue(self._stream)
        self._fetch_last(rows, tokens)
        self._driver.synchronise(self._stream)
        return self._logits.view((rows, self.vocabulary)).astype(np.float32)

    def _fetch_last(self, rows: int, tokens: int) -> None:
        """Queue the copy of each row's last logits; a row of several tokens is alone."""
        one_bytes = self._logits.tensor.size_bytes((self.vocabulary,))
        first = self._logits.device.address + (tokens - 1) * one_bytes
        self._driver.copy_to_host(self._logits.pinned.address, first, rows * one_bytes, self._stream)

    def _reserve(self, plan: Plan, make_execution: Callable[[DeviceBuffer], Execution]) -> None:
        """All of it at once: nothing moves later."""
        most_tokens = max(self.slots, self.part_tokens)
        self._ids.reserve((most_tokens, 1))
        self._lengths_input.reserve((self.slots,))
        self._logits.reserve((most_tokens, self.vocabulary))
        self._activations.reserve(plan.activation_bytes, plan.activation_bytes)
        cache_bytes = self.slots * self._row_bytes
        for _, cache in self._states.values():
            cache.reserve(cache_bytes, cache_bytes)
            self._zero(cache, cache_bytes)
        self._executions = [make_execution(self._activations) for _ in (_STEP, _PART)]

    def _zero(self, cache: DeviceBuffer, size_bytes: int) -> None:
        """What was never written is multiplied by zero, which is no zero where it is NaN."""
        zeros = self._logits.pinned
        part_bytes = zeros.capacity_bytes
        zeros.view((part_bytes,), np.dtype(np.uint8))[:] = 0
        for start in range(0, size_bytes, part_bytes):
            count = min(part_bytes, size_bytes - start)
            self._driver.copy_to_device(cache.address + start, zeros.address, count, self._stream)
        self._driver.synchronise(self._stream)


def check_language_plan(name: str, plan: Plan, graph: Graph, aliases: Mapping[str, str | None]) -> None:
    """The plan is of the kind that is decoded here. `aliases`: the input in whose memory an output is. Raises ModelRefused."""
    inputs, outputs = ({tensor.name for tensor in tensors} for tensors in (plan.inputs, plan.outputs))
    pairs = _pairs(graph)
    wanted = {graph.input_ids, LENGTHS, *pairs}
    if inputs != wanted or not outputs >= {graph.logits, *pairs.values()}:
        raise ModelRefused(f"the plan of model {name!r} has inputs {sorted(inputs)}; a language model's are {sorted(wanted)}")
    if len(plan.profiles) != 2:
        raise ModelRefused(f"the plan of model {name!r} has {len(plan.profiles)} profiles; a language model's are two")
    for past, present in pairs.items():
        if aliases.get(present) != past:
            raise ModelRefused(
                f"the plan of model {name!r} does not write {past!r} in place; make it with penstock build-engine"
            )
    tensor = next(tensor for tensor in plan.inputs if tensor.name in pairs)
    if tensor.size_bytes(tensor.shape[1:]) % _ALIGNMENT_BYTES:
        raise ModelRefused(
            f"rows of the cache of model {name!r} are not multiples of {_ALIGNMENT_BYTES} bytes; build it with a context length"
            " that is a multiple of 64"
        )


def check_context(name: str, plan: Plan, graph: Graph, context_length: int) -> None:
    """Sequences of this length fit into the plan's cache. Raises ModelRefused."""
    past = graph.past_key % 0
    held = next(tensor.shape[2] for tensor in plan.inputs if tensor.name == past)
    if context_length > held:
        raise ModelRefused(
            f"model {name!r} has a context of {context_length} tokens, and its plan's cache holds {held}; set parameter"
            f" 'context_length' to {held}, or build it anew"
        )


def _pairs(graph: Graph) -> dict[str, str]:
    """Past's name → present's."""
    names = ((graph.past_key, graph.present_key), (graph.past_value, graph.present_value))
    return {past % layer: present % layer for layer in range(graph.layers) for past, present in names}


def _states(graph: Graph, tensors: Mapping[str, Tensor], driver: Driver) -> dict[str, tuple[str, DeviceBuffer]]:
    return {past: (present, DeviceBuffer(driver)) for past, present in _pairs(graph).items() if past in tensors}
