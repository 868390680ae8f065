"""A copy of a tensor model on real threads: slots side by side, limits for calls and for streams, real graphs of sequences."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from inference import grpc_service_pb2 as pb
from onnx import TensorProto, helper

from runtime.errors import InvalidArgument
from tests.support.waiting import eventually
from tests.worker.onnx_models import identity, save, spec
from worker.batching.queue import QueueFull
from worker.batching.sequences import SequenceNotStarted
from worker.batching.tensor_model import TensorModel
from worker.copies import open_model
from worker.engine import Array
from worker.inference import TableInference
from worker.lane import ThreadLane
from worker.models import ModelTable
from worker.types import (
    BatchingSpec,
    CallContext,
    Kind,
    ModelSpec,
    SequenceControl,
    SequenceControlKind,
    SequenceSpec,
    SequenceState,
    SequenceStrategy,
    TensorSpec,
)

CALL = CallContext()


class Gated:
    """Gives back what it is given, once it is let."""

    utf8_bytes = False

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self.gate = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.running: dict[int, str] = {}
        self.most = 0
        self.closed_while_running: bool | None = None

    def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
        with self.lock:
            assert slot not in self.running, "one execution in a slot"
            self.running[slot] = threading.current_thread().name
            self.most = max(self.most, len(self.running))
        assert self.gate.acquire(timeout=10)
        with self.lock:
            del self.running[slot]
        return [inputs["x"]]

    def close(self) -> None:
        self.closed_while_running = bool(self.running)


def request(value: float, **parameters: int) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", id=str(value))
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    message.raw_input_contents.append(np.full((1, 2), value, np.float32).tobytes())
    for key, given in parameters.items():
        if isinstance(given, bool):
            message.parameters[key].bool_param = given
        else:
            message.parameters[key].int64_param = given
    return message


def value_of(response: pb.ModelInferResponse) -> float:
    return float(np.frombuffer(response.raw_output_contents[0], np.float32)[0])


@asynccontextmanager
async def opened(engine: Gated, described: ModelSpec) -> AsyncIterator[TensorModel]:
    model = TensorModel(described, engine, ThreadLane("first"))
    try:
        yield model
    finally:
        model.close()


async def test_slots_run_side_by_side_each_on_a_thread_of_its_own() -> None:
    engine = Gated(slots=3)
    async with opened(engine, spec(max_batch_size=1)) as model:
        asked = [asyncio.ensure_future(model.infer(request(value), CALL)) for value in range(7)]
        await eventually(lambda: len(engine.running) == 3)
        assert sorted(engine.running.values()) == ["engine-m-1-1", "engine-m-1-2", "first"]
        assert model.busy
        assert model.pending_requests == 4
        engine.gate.release(100)
        assert [value_of(each) for each in await asyncio.gather(*asked)] == list(range(7))
        assert engine.most == 3
        assert model.statistics.execution_count == model.statistics.success.count == 7
        assert not model.busy


async def test_the_engine_is_closed_when_no_slot_runs_any_more() -> None:
    engine = Gated(slots=2)
    async with opened(engine, spec(max_batch_size=1)) as model:
        asked = [asyncio.ensure_future(model.infer(request(value), CALL)) for value in range(2)]
        await eventually(lambda: len(engine.running) == 2)
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [getattr(error, "code", None) for error in results] == [14, 14]
    assert engine.closed_while_running is None
    engine.gate.release(2)
    await eventually(lambda: engine.closed_while_running is not None)
    assert engine.closed_while_running is False
    await eventually(lambda: not any(thread.name in ("first", "engine-m-1-1") for thread in threading.enumerate()))


async def test_preserved_order_over_slots_and_requests_that_fail() -> None:
    described = spec(max_batch_size=1, batching=BatchingSpec(preserve_ordering=True))
    engine = Gated(slots=4)
    ends: list[float] = []

    async def one(model: TensorModel, value: float) -> None:
        ends.append(value_of(await model.infer(request(value), CALL)))

    async with opened(engine, described) as model:
        asked = [asyncio.ensure_future(one(model, value)) for value in range(20)]
        for count in range(1, 21):
            engine.gate.release()
            await eventually(lambda count=count: model.statistics.execution_count >= count)  # type: ignore[misc]
        await asyncio.gather(*asked)
    assert ends == list(range(20))


@pytest.mark.parametrize("max_batch_size", [0, 1])
@pytest.mark.parametrize("streamed", [False, True])
async def test_limits_hold_for_unary_calls_and_for_streams(max_batch_size: int, streamed: bool) -> None:
    """triton-inference-server/server#6368 and #5467: without a batcher, and for streams, nothing was refused there."""
    described = spec(
        max_batch_size=max_batch_size,
        inputs=(TensorSpec("x", "FP32", (2,) if max_batch_size else (1, 2)),),
        batching=BatchingSpec(max_queue_size=2),
    )
    engine, table = Gated(), ModelTable()
    inference = TableInference(table)

    async def ask(value: float) -> float:
        if not streamed:
            payload = await inference.infer("", "", request(value).SerializeToString(), CALL)
            return value_of(pb.ModelInferResponse.FromString(payload))
        answers = [each async for each in inference.stream_infer("", "", request(value).SerializeToString(), CALL)]
        (answer,) = (pb.ModelStreamInferResponse.FromString(each) for each in answers)
        return value_of(answer.infer_response)

    async with opened(engine, described) as model:
        table.add(model)
        asked = [asyncio.ensure_future(ask(1))]
        await eventually(lambda: bool(engine.running))
        asked += [asyncio.ensure_future(ask(value)) for value in (2, 3)]
        await eventually(lambda: model.pending_requests == 2)
        with pytest.raises(QueueFull, match="Exceeds maximum queue size"):
            await ask(4)
        engine.gate.release(100)
        assert await asyncio.gather(*asked) == [1, 2, 3]


async def test_priorities_come_with_the_request_or_with_the_call() -> None:
    batching = BatchingSpec(priority_levels=2, default_priority_level=2)
    engine = Gated()
    ends: list[float] = []

    async def one(model: TensorModel, value: float, priority: int = 0, of_call: int = 0) -> None:
        await model.infer(request(value, priority=priority), CallContext(priority=of_call))
        ends.append(value)

    async with opened(engine, spec(max_batch_size=1, batching=batching)) as model:
        asked = [asyncio.ensure_future(one(model, 0))]
        await eventually(lambda: bool(engine.running))
        asked += [asyncio.ensure_future(one(model, *each)) for each in ((1,), (2, 1), (3, 0, 1), (4, 9, 1), (5, 2, 1))]
        await eventually(lambda: model.pending_requests == 5)
        engine.gate.release(100)
        await asyncio.gather(*asked)
    assert ends == [0, 2, 3, 1, 4, 5]


STATES = (SequenceState("before", "after", "FP32", (2,)),)
CONTROLS = (
    SequenceControl("START", SequenceControlKind.START, "FP32"),
    SequenceControl("READY", SequenceControlKind.READY, "FP32"),
)


def running_sum(folder: Path) -> Path:
    """after = before + x where READY; y = after + 100 where START."""
    kind = TensorProto.FLOAT
    hundred = helper.make_tensor("hundred", kind, [1], [100.0])
    return save(
        folder,
        [
            helper.make_node("Mul", ["x", "READY"], ["counted"]),
            helper.make_node("Add", ["before", "counted"], ["after"]),
            helper.make_node("Mul", ["START", "hundred"], ["greeting"]),
            helper.make_node("Add", ["after", "greeting"], ["y"]),
        ],
        [helper.make_tensor_value_info(name, kind, ["n", 2]) for name in ("x", "before")]
        + [helper.make_tensor_value_info(name, kind, ["n", 1]) for name in ("START", "READY")],
        [helper.make_tensor_value_info(name, kind, ["n", 2]) for name in ("y", "after")],
        [hundred],
    )


@pytest.mark.parametrize("strategy", list(SequenceStrategy))
@pytest.mark.parametrize("instances", [1, 2])
async def test_a_real_graph_of_sequences(tmp_path: Path, strategy: SequenceStrategy, instances: int) -> None:
    described = spec(
        max_batch_size=2,
        instances=instances,
        sequences=SequenceSpec(strategy, max_idle_s=60, controls=CONTROLS, states=STATES),
    )
    model = await open_model(described, running_sum(tmp_path))
    assert model.kind is Kind.TENSORS

    async def talk(sequence_id: int, *values: int) -> list[float]:
        last = len(values) - 1
        flags = [{"sequence_start": index == 0, "sequence_end": index == last} for index in range(len(values))]
        requests = (request(value, sequence_id=sequence_id, **each) for value, each in zip(values, flags, strict=True))
        return [value_of(await model.infer(each, CALL)) for each in requests]

    answers = list(await asyncio.gather(talk(1, 1, 2, 3), talk(2, 10, 20), talk(3, 100), talk(4, 5, 5, 5, 5)))
    assert answers == [[101, 3, 6], [110, 30], [200], [105, 10, 15, 20]]
    with pytest.raises(InvalidArgument, match="works on sequences"):
        await model.infer(request(1), CALL)
    with pytest.raises(SequenceNotStarted):
        await model.infer(request(1, sequence_id=1), CALL)
    await model.drained()
    model.close()


async def test_a_graph_whose_states_are_not_described_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="needs inputs"):
        await open_model(spec(max_batch_size=2, sequences=SequenceSpec(states=STATES)), running_sum(tmp_path))


async def test_a_model_without_sequences_takes_no_notice_of_their_ids(tmp_path: Path) -> None:
    model = await open_model(spec(), identity(tmp_path, "FP32"))
    assert model.kind is Kind.TENSORS
    assert value_of(await model.infer(request(3, sequence_id=5), CALL)) == 3
    model.close()
