"""Models of sequences over a virtual clock: controls, states, rows without a request, failures, and who may come in."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidArgument, PenstockError
from tests.worker.onnx_models import spec
from tests.worker.virtual_time import VirtualLane, VirtualLoop, run_virtually
from worker.batching.batcher import Batcher, QueueTimeout
from worker.batching.jobs import Executor
from worker.batching.queue import QueueFull
from worker.batching.sequencer import SequenceAssembly, sequence_policy
from worker.batching.sequences import SequenceBroken, SequenceNotStarted, SequenceQueue
from worker.engine import Array, EngineFailed
from worker.kserve.parameters import Parameters, SequenceMark
from worker.statistics import CopyStatistics, Failure
from worker.types import (
    BatchingSpec,
    CallContext,
    ModelSpec,
    QueuePolicy,
    SequenceControl,
    SequenceControlKind,
    SequenceSpec,
    SequenceState,
    SequenceStrategy,
    TensorSpec,
)

DIRECT, OLDEST = SequenceStrategy.DIRECT, SequenceStrategy.OLDEST
CONTROLS = (
    SequenceControl("START", SequenceControlKind.START, "INT32"),
    SequenceControl("END", SequenceControlKind.END, "BOOL"),
    SequenceControl("READY", SequenceControlKind.READY, "FP32"),
    SequenceControl("CORRID", SequenceControlKind.CORRID, "INT64"),
)
STATES = (SequenceState("sum_in", "sum_out", "FP32", (1,)), SequenceState("count_in", "count_out", "INT32", ()))


def summing(sequences: SequenceSpec, max_batch_size: int = 4, **batching: Any) -> ModelSpec:
    return spec(
        inputs=(TensorSpec("x", "FP32", (1,)),),
        outputs=(TensorSpec("y", "FP32", (1,)),),
        max_batch_size=max_batch_size,
        sequences=sequences,
        batching=BatchingSpec(**batching),
    )


class SummingEngine:
    """y is the sum of the sequence so far. It believes only what it is given, and notes that."""

    utf8_bytes = False
    slots = 1

    def __init__(self) -> None:
        self.given: list[Mapping[str, Array]] = []
        self.fails_on: set[float] = set()

    def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
        self.given.append({name: array.copy() for name, array in inputs.items()})
        if self.fails_on & set(inputs["x"].reshape(-1).tolist()):
            raise EngineFailed("not this one")
        total = inputs["x"] + inputs["sum_in"]
        return [total, total.copy(), inputs["count_in"] + 1]

    def close(self) -> None:
        return

    def column(self, name: str) -> list[list[float]]:
        return [each[name].reshape(-1).tolist() for each in self.given]


@dataclass(slots=True)
class Rig:
    loop: VirtualLoop
    engine: SummingEngine
    batcher: Batcher
    statistics: CopyStatistics
    row: tuple[int, ...] = (1, 1)

    async def send(self, sequence_id: int | str, flags: str, value: float, **asked: Any) -> float:
        """`flags` may hold s for START and e for END."""
        mark = SequenceMark(sequence_id, "s" in flags, "e" in flags)
        call = CallContext(deadline_s=asked.pop("deadline_s", None))
        inputs = {"x": np.full(self.row, value, np.float32)}
        (answer,) = await self.batcher.infer(inputs, 1, (1,), call, Parameters(sequence=mark, **asked))
        assert answer.shape == self.row
        return float(answer.reshape(-1)[0])


async def together(*sent: Coroutine[Any, Any, float]) -> list[float]:
    return list(await asyncio.gather(*sent))


def rig(
    loop: VirtualLoop, described: ModelSpec, duration_s: float = 1.0, slots: int = 1, durations_s: Iterator[float] | None = None
) -> Rig:
    engine, statistics = SummingEngine(), CopyStatistics()
    assert described.sequences is not None
    queue: Any = SequenceQueue(sequence_policy(described, described.sequences, slots))
    executor = Executor(engine, SequenceAssembly(described, described.sequences, engine), clock_ns=loop.clock_ns)
    lanes = [VirtualLane(loop, duration_s, durations_s) for _ in range(slots)]
    batcher = Batcher(queue, executor, lanes, statistics, clock_ns=loop.clock_ns)
    return Rig(loop, engine, batcher, statistics, (1, 1) if described.max_batch_size else (1,))


def test_direct_gives_every_row_and_keeps_the_states() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, summing(SequenceSpec(DIRECT, max_idle_s=9, controls=CONTROLS, states=STATES)))
        assert await together(r.send(7, "s", 1), r.send(8, "s", 10)) == [1, 10]
        assert await r.send(8, "", 20) == 30
        assert await together(r.send(8, "e", 30), r.send(7, "", 2)) == [60, 3]
        assert await r.send(7, "e", 3) == 6
        engine = r.engine
        assert engine.column("x") == [[1, 10], [0, 20], [2, 30], [3]]
        assert engine.column("START") == [[1, 1], [0, 0], [0, 0], [0]]
        assert engine.column("END") == [[False, False], [False, False], [False, True], [True]]
        assert engine.column("READY") == [[1, 1], [0, 1], [1, 1], [1]]
        assert engine.column("CORRID") == [[7, 8], [0, 8], [7, 8], [7]]
        assert engine.column("sum_in") == [[0, 0], [0, 10], [1, 30], [3]]
        assert engine.column("count_in") == [[0, 0], [0, 1], [1, 2], [2]]
        assert engine.given[0]["START"].dtype == np.int32
        assert engine.given[0]["READY"].shape == (2, 1)
        assert r.statistics.inference_count == r.statistics.success.count == 6
        assert r.statistics.execution_count == 4

    run_virtually(body)


def test_oldest_gives_only_the_rows_that_have_a_request() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, summing(SequenceSpec(OLDEST, controls=CONTROLS, states=STATES)))
        assert await together(r.send(1, "s", 1), r.send(2, "s", 10)) == [1, 10]
        assert await r.send(2, "", 20) == 30
        assert r.engine.column("x") == [[1, 10], [20]]
        assert r.engine.column("sum_in") == [[0, 0], [10]]

    run_virtually(body)


def test_without_a_batch_dimension_a_slot_has_one_sequence() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, summing(SequenceSpec(DIRECT, controls=CONTROLS, states=STATES), max_batch_size=0))
        assert await together(r.send(1, "s", 1), r.send(1, "e", 2), r.send(2, "s", 10)) == [1, 3, 10]
        assert r.engine.given[0]["START"].shape == (1,)
        assert r.engine.given[0]["count_in"].shape == ()

    run_virtually(body)


def test_start_and_end_in_one_request_and_pipelined_ones_keep_their_order() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, summing(SequenceSpec(DIRECT, controls=CONTROLS, states=STATES)))
        assert await r.send(3, "se", 5) == 5
        answers = await together(*(r.send(1, flags, 1) for flags in ("s", "", "", "e")), r.send(2, "se", 9))
        assert answers == [1, 2, 3, 4, 9]
        assert await r.send(1, "s", 1) == 1, "it begins with zeros again"

    run_virtually(body)


def test_ids_may_be_texts() -> None:
    async def body(loop: VirtualLoop) -> None:
        told = (SequenceControl("CORRID", SequenceControlKind.CORRID, "BYTES"),)
        r = rig(loop, summing(SequenceSpec(DIRECT, controls=told, states=STATES)))
        assert await together(r.send("a", "s", 1), r.send("é", "s", 2)) == [1, 2]
        assert r.engine.given[0]["CORRID"].tolist() == [[b"a"], ["é".encode()]]
        await r.send("é", "", 2)
        assert r.engine.given[1]["CORRID"].tolist() == [[b""], ["é".encode()]]

    run_virtually(body)


@pytest.mark.parametrize("strategy", [DIRECT, OLDEST])
def test_a_failed_request_leaves_the_state_and_its_neighbours_as_they_were(strategy: SequenceStrategy) -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, summing(SequenceSpec(strategy, controls=CONTROLS, states=STATES)))
        r.engine.fails_on = {13.0}
        await asyncio.gather(r.send(1, "s", 1), r.send(2, "s", 10))
        results = await asyncio.gather(r.send(1, "", 13), r.send(2, "", 20), return_exceptions=True)
        assert isinstance(results[0], EngineFailed)
        assert results[1] == 30
        assert await together(r.send(1, "", 2), r.send(2, "", 30)) == [3, 60]
        assert r.statistics.failures[Failure.BACKEND] == 1

    run_virtually(body)


def test_a_start_that_fails_still_forgets_what_was_before() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, summing(SequenceSpec(DIRECT, controls=CONTROLS, states=STATES)))
        r.engine.fails_on = {13.0}
        await r.send(1, "s", 100)
        with pytest.raises(EngineFailed):
            await r.send(1, "s", 13)
        assert await r.send(1, "", 1) == 1

    run_virtually(body)


def test_a_model_that_keeps_its_own_state_is_not_run_again_after_a_failure() -> None:
    class Keeping(SummingEngine):
        def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
            self.given.append(inputs)
            raise EngineFailed("no")

    async def body(loop: VirtualLoop) -> None:
        described = summing(SequenceSpec(DIRECT, controls=CONTROLS))
        r = rig(loop, described)
        engine = Keeping()
        assert described.sequences is not None
        assembly = SequenceAssembly(described, described.sequences, engine)
        queue: Any = SequenceQueue(sequence_policy(described, described.sequences, 1))
        r.batcher = Batcher(queue, Executor(engine, assembly), [VirtualLane(loop, 1)], r.statistics, clock_ns=loop.clock_ns)
        results = await asyncio.gather(r.send(1, "s", 1), r.send(2, "s", 1), return_exceptions=True)
        assert [type(result) for result in results] == [EngineFailed, EngineFailed]
        assert len(engine.given) == 1

    run_virtually(body)


def test_a_state_of_another_shape_is_refused_and_not_kept() -> None:
    class Growing(SummingEngine):
        def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
            total, _, count = super().run(inputs, slot)
            return [total, np.zeros((len(total), 2), np.float32), count]

    async def body(loop: VirtualLoop) -> None:
        described = summing(SequenceSpec(DIRECT, states=STATES))
        r = rig(loop, described)
        assert described.sequences is not None
        engine = Growing()
        executor = Executor(engine, SequenceAssembly(described, described.sequences, engine))
        queue: Any = SequenceQueue(sequence_policy(described, described.sequences, 1))
        r.batcher = Batcher(queue, executor, [VirtualLane(loop, 1)], r.statistics, clock_ns=loop.clock_ns)
        with pytest.raises(EngineFailed, match=r"state 'sum_out' with shape \[2\] where its manifest says \[1\]"):
            await r.send(1, "s", 1)

    run_virtually(body)


def test_sequences_are_gathered_straight_into_the_engines_memory() -> None:
    class Staging(SummingEngine):
        def staging(self, shapes: Mapping[str, tuple[tuple[int, ...], str]], slot: int = 0) -> Mapping[str, Array] | None:
            told = {control.input: control.datatype for control in CONTROLS}
            kept = {state.input: state.datatype for state in STATES}
            assert {name: datatype for name, (_, datatype) in shapes.items()} == {"x": "FP32"} | told | kept
            dtypes = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
            return {name: np.full(shape, 77, dtypes[datatype]) for name, (shape, datatype) in shapes.items()}

    async def body(loop: VirtualLoop) -> None:
        described = summing(SequenceSpec(DIRECT, controls=CONTROLS, states=STATES))
        r = rig(loop, described)
        assert described.sequences is not None
        r.engine = Staging()
        executor = Executor(r.engine, SequenceAssembly(described, described.sequences, r.engine))
        queue: Any = SequenceQueue(sequence_policy(described, described.sequences, 1))
        r.batcher = Batcher(queue, executor, [VirtualLane(loop, 1)], r.statistics, clock_ns=loop.clock_ns)
        assert await together(r.send(1, "s", 1), r.send(2, "s", 10)) == [1, 10]
        assert await r.send(2, "", 10) == 20
        assert r.engine.column("x") == [[1, 10], [0, 10]]
        assert r.engine.column("READY") == [[1, 1], [0, 1]]

    run_virtually(body)


def test_who_is_idle_for_too_long_makes_room() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, summing(SequenceSpec(DIRECT, max_idle_s=5, states=STATES), max_batch_size=1))
        begun_s = loop.time()
        assert await together(r.send(1, "s", 1), r.send(2, "s", 10)) == [1, 10]
        assert loop.time() == pytest.approx(begun_s + 1 + 5 + 1, abs=0.01)
        with pytest.raises(SequenceNotStarted):
            await r.send(1, "", 2)
        assert r.statistics.failures[Failure.OTHER] == 1

    run_virtually(body)


def test_a_request_that_expires_takes_those_behind_it_along() -> None:
    async def body(loop: VirtualLoop) -> None:
        policy = QueuePolicy(default_timeout_s=3)
        r = rig(loop, summing(SequenceSpec(DIRECT, states=STATES), default_queue_policy=policy), duration_s=10)
        first = asyncio.ensure_future(r.send(1, "s", 1))
        await asyncio.sleep(1)
        behind = asyncio.gather(r.send(1, "", 2, timeout_s=1), r.send(1, "", 3), r.send(2, "s", 4), return_exceptions=True)
        expired, broken, other = await behind
        assert (type(expired), type(broken), type(other)) == (QueueTimeout, SequenceBroken, QueueTimeout)
        assert await first == 1
        with pytest.raises(SequenceNotStarted):
            await r.send(1, "", 5)
        assert await r.send(1, "s", 5) == 5

    run_virtually(body)


def test_cancelling_gives_the_place_to_those_who_wait() -> None:
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, summing(SequenceSpec(DIRECT, max_idle_s=1000, states=STATES), max_batch_size=1))
        assert await r.send(1, "s", 1) == 1
        waiting = asyncio.ensure_future(r.send(2, "s", 10))
        mine = [asyncio.ensure_future(r.send(1, "", value)) for value in (2, 3)]
        await asyncio.sleep(0.5)
        mine[1].cancel()
        begun_s = loop.time()
        assert await mine[0] == 3
        assert await waiting == 10
        assert loop.time() < begun_s + 5
        assert not r.batcher.busy

    run_virtually(body)


def test_draining_ends_what_was_admitted_and_closing_the_rest() -> None:
    async def body(loop: VirtualLoop) -> None:
        described = summing(SequenceSpec(DIRECT, max_idle_s=1000, states=STATES), max_batch_size=1)
        r = rig(loop, described)
        admitted = [asyncio.ensure_future(r.send(number, "s", number)) for number in (1, 2, 3)]
        await asyncio.sleep(0.1)
        await r.batcher.drained()
        assert [task.result() for task in admitted] == [1, 2, 3]
        r = rig(loop, described)
        left = asyncio.gather(r.send(1, "s", 1), r.send(2, "s", 2), return_exceptions=True)
        await asyncio.sleep(0.1)
        r.batcher.close()
        assert [getattr(error, "code", None) for error in await left] == [14, 14]

    run_virtually(body)


def test_limits_hold_for_sequences() -> None:  # triton-inference-server/server#5467
    async def body(loop: VirtualLoop) -> None:
        r = rig(loop, summing(SequenceSpec(DIRECT, states=STATES), max_queue_size=2))
        running = asyncio.ensure_future(r.send(1, "s", 1))
        await asyncio.sleep(0.1)
        waiting = [asyncio.ensure_future(r.send(number, "s", 1)) for number in (2, 3)]
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFull):
            await r.send(4, "s", 1)
        with pytest.raises(InvalidArgument):
            await r.batcher.infer({"x": np.ones((1, 1), np.float32)}, 1, (1,), CallContext())
        await asyncio.gather(running, *waiting)

    run_virtually(body)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a random scenario. Times in tenths of a second."""

    at: int
    sequence_id: int
    flags: str
    timeout: int | None
    cancel_after: int | None


ASKED = st.builds(
    Asked,
    at=st.integers(0, 30),
    sequence_id=st.integers(1, 4),
    flags=st.sampled_from(("", "", "s", "e", "se")),
    timeout=st.none() | st.none() | st.integers(1, 30),
    cancel_after=st.none() | st.none() | st.integers(0, 30),
)
SEQUENCES = st.builds(
    SequenceSpec,
    strategy=st.sampled_from(SequenceStrategy),
    max_idle_s=st.sampled_from((0.4, 9.0)),
    max_sequences=st.sampled_from((0, 1, 3)),
    max_waiting_sequences=st.sampled_from((0, 1)),
    controls=st.just(CONTROLS),
    states=st.just(STATES),
)


@dataclass(slots=True)
class Story:
    rig: Rig
    ends: list[str] = field(default_factory=list)

    async def tell(self, number: int, asked: Asked) -> None:
        await asyncio.sleep(asked.at / 10)
        timeout_s = None if asked.timeout is None else asked.timeout / 10
        try:
            async with asyncio.timeout(None if asked.cancel_after is None else asked.cancel_after / 10):
                await self.rig.send(asked.sequence_id, asked.flags, 2.0**number, timeout_s=timeout_s)
        except TimeoutError:
            self.ends.append("cancelled")
        except PenstockError as error:
            self.ends.append(error.reason)
        else:
            self.ends.append("answered")


@settings(max_examples=100, deadline=None)
@given(
    SEQUENCES,
    st.sampled_from((0, 1, 3)),
    st.integers(1, 2),
    st.lists(st.sampled_from((0.05, 0.5)), min_size=1, max_size=3),
    st.lists(ASKED, max_size=20),
)
def test_every_request_ends_once_and_every_execution_has_the_state_of_the_one_before(
    sequences: SequenceSpec, max_batch_size: int, slots: int, durations_s: list[float], scenario: list[Asked]
) -> None:
    async def body(loop: VirtualLoop) -> None:
        described = summing(sequences, max_batch_size, max_queue_size=6)
        r = rig(loop, described, slots=slots, durations_s=cycle(durations_s))
        story = Story(r)
        await asyncio.gather(*(story.tell(number, asked) for number, asked in enumerate(scenario)))
        await r.batcher.drained()
        statistics = r.statistics
        assert len(story.ends) == len(scenario)
        assert statistics.success.count == story.ends.count("answered")
        assert statistics.success.count + sum(statistics.failures.values()) == len(scenario), "each ends once"
        assert not r.batcher.busy
        sums: dict[float, float] = {}
        latest: dict[float, int] = {}
        for given_ in r.engine.given:
            assert len(given_["x"]) <= max(1, max_batch_size)
            columns = (given_[name].reshape(-1).tolist() for name in ("CORRID", "READY", "START", "END", "x", "sum_in"))
            for sequence_id, ready, start, end, value, sum_in in zip(*columns, strict=True):
                if not ready:
                    assert (sequence_id, value, sum_in) == (0, 0, 0)
                    continue
                number = int(np.log2(value))
                asked = scenario[number]
                assert (sequence_id, start, end) == (asked.sequence_id, "s" in asked.flags, "e" in asked.flags)
                assert start or sequence_id in sums, "it has begun"
                assert sum_in == (0 if start else sums[sequence_id]), "the state of the one before"
                if sequence_id in latest:
                    assert scenario[latest[sequence_id]].at <= asked.at, "in order"
                latest[sequence_id] = number
                sums[sequence_id] = sum_in + value
                if end:
                    del sums[sequence_id]

    run_virtually(body)
