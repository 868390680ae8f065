"""What a copy counts: every request once, whatever became of it, and the sums agree to the unit."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inference import grpc_service_pb2 as pb

from runtime.errors import DeadlineExceeded, InvalidArgument, PenstockError
from tests.worker.onnx_models import spec
from worker.batching.batcher import QueueTimeout
from worker.batching.queue import QueueFull
from worker.batching.tensor_model import TensorModel
from worker.engine import Array, EngineFailed
from worker.inference import TableInference
from worker.kserve.descriptions import statistics_of
from worker.lane import ThreadLane
from worker.models import ModelTable
from worker.quota import Quota, QuotaPolicy, TenantQuotaReached
from worker.statistics import CopyStatistics, Failure
from worker.types import BatchingSpec, CallContext, TensorSpec

PLACES = 12
REASONS: Mapping[type[BaseException], Failure] = {
    InvalidArgument: Failure.OTHER,
    QueueFull: Failure.REJECTED,
    QueueTimeout: Failure.REJECTED,
    DeadlineExceeded: Failure.REJECTED,
    TenantQuotaReached: Failure.REJECTED,
    EngineFailed: Failure.BACKEND,
    asyncio.CancelledError: Failure.CANCELED,
}


@dataclass(slots=True)
class GatedEngine:
    """Doubles, when the test lets it; fails what is negative."""

    utf8_bytes: bool = False
    slots: int = 1
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)

    def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
        self.entered.set()
        assert self.gate.wait(20)
        if (inputs["x"] < 0).any():
            raise EngineFailed("it is negative")
        return [inputs["x"] * 2]

    def close(self) -> None:
        return


@asynccontextmanager
async def gated(quota: QuotaPolicy | None = None) -> AsyncIterator[tuple[TableInference, TensorModel, GatedEngine]]:
    engine, table = GatedEngine(), ModelTable()
    batching = BatchingSpec(max_queue_size=PLACES)
    model_spec = spec(
        inputs=(TensorSpec("x", "FP32", (1,)),), outputs=(TensorSpec("y", "FP32", (1,)),), max_batch_size=4, batching=batching
    )
    model = TensorModel(model_spec, engine, ThreadLane("gated"))
    table.add(model)
    try:
        yield TableInference(table, quota=quota), model, engine
    finally:
        engine.gate.set()
        model.close()


def payload(value: float = 1, rows: int = 1, *, shape: tuple[int, ...] = (), timeout_us: int = 0) -> bytes:
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="FP32", shape=shape or (rows, 1))
    message.raw_input_contents.append(np.full((rows, 1), value, np.float32).tobytes())
    if timeout_us:
        message.parameters["timeout"].int64_param = timeout_us
    return message.SerializeToString()


KINDS: Mapping[str, bytes] = {
    "ok": payload(),
    "two rows": payload(rows=2),
    "failing": payload(-1),
    "malformed": payload(shape=(1, 2)),
    "expired": payload(timeout_us=1000),
    "cancelled": payload(),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kinds=st.lists(st.sampled_from(sorted(KINDS)), max_size=30), plug_is_cancelled=st.booleans())
async def test_every_counter_adds_up_whatever_becomes_of_the_requests(kinds: list[str], plug_is_cancelled: bool) -> None:
    async with gated() as (inference, model, engine):
        ask = [asyncio.ensure_future(inference.infer("", "", payload(rows=3), CallContext()))]
        await asyncio.to_thread(engine.entered.wait, 20)
        ask += [asyncio.ensure_future(inference.infer("", "", KINDS[kind], CallContext())) for kind in kinds]
        await asyncio.sleep(0)  # each has its place, or was refused
        for task, kind in zip(ask[1:], kinds, strict=True):
            if kind == "cancelled":
                task.cancel()
        if plug_is_cancelled:
            ask[0].cancel()
        await asyncio.wait([task for task, kind in zip(ask[1:], kinds, strict=True) if kind == "expired"] or [ended()])
        engine.gate.set()
        outcomes = await asyncio.gather(*ask, return_exceptions=True)
        await model.drained()
        told = statistics_of(model)
    answered = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
    failures = Counter(REASONS[type(outcome)] for outcome in outcomes if isinstance(outcome, BaseException))
    failed = sum(isinstance(outcome, EngineFailed) for outcome in outcomes)
    rows = sum(pb.ModelInferResponse.FromString(answer).outputs[0].shape[0] for answer in answered)
    seen = told.inference_stats
    assert model.statistics.failures == {reason: failures[reason] for reason in Failure}
    assert (seen.success.count, seen.fail.count) == (len(answered), sum(failures.values()))
    assert seen.success.count + seen.fail.count == len(outcomes)
    ran = len(answered) + plug_is_cancelled
    assert seen.compute_input.count == seen.compute_infer.count == seen.compute_output.count == ran
    assert seen.queue.count == ran + failed
    assert told.inference_count == rows + 3 * plug_is_cancelled
    assert told.inference_count == sum(each.batch_size * each.compute_infer.count for each in told.batch_stats)
    assert told.execution_count == sum(each.compute_infer.count for each in told.batch_stats)
    assert inference.load.in_flight == 0


async def ended_at_once() -> None:
    return


def ended() -> asyncio.Task[None]:
    return asyncio.ensure_future(ended_at_once())


async def test_a_flood_at_a_models_queue_is_refused_for_its_tenant_and_counted() -> None:
    async with gated(QuotaPolicy(max_in_flight=1000, tenant_share=0.75)) as (inference, model, engine):
        plug = asyncio.ensure_future(inference.infer("", "", payload(), CallContext(tenant="greedy")))
        await asyncio.to_thread(engine.entered.wait, 20)
        flood = [asyncio.ensure_future(inference.infer("", "", payload(), CallContext(tenant="greedy"))) for _ in range(PLACES)]
        await asyncio.sleep(0)
        refused = [task for task in flood if task.done()]
        assert all(isinstance(task.exception(), TenantQuotaReached) for task in refused)
        assert len(refused) == PLACES - 9  # three quarters of the places
        other = asyncio.ensure_future(inference.infer("", "", payload(), CallContext(tenant="modest")))
        await asyncio.sleep(0)
        assert not other.done()
        engine.gate.set()
        outcomes = await asyncio.gather(plug, other, *flood, return_exceptions=True)
        statistics = model.statistics
    assert sum(isinstance(outcome, bytes) for outcome in outcomes) == statistics.success.count == 2 + 9
    assert statistics.failures[Failure.REJECTED] == statistics.fail.count == inference.guard.refused[Quota.QUEUE] == 3
    assert inference.guard.tenants == 0


async def test_what_never_reached_a_model_is_counted_by_the_worker_alone() -> None:
    async with gated(QuotaPolicy(max_in_flight=1)) as (inference, model, engine):
        plug = asyncio.ensure_future(inference.infer("", "", payload(), CallContext()))
        await asyncio.to_thread(engine.entered.wait, 20)
        for _ in range(3):
            try:
                await inference.infer("", "", payload(), CallContext())
            except PenstockError as error:
                assert error.reason == "WORKER_FULL"
        engine.gate.set()
        await plug
        assert (model.statistics.success.count, model.statistics.fail.count) == (1, 0)
        assert inference.guard.refused[Quota.WORKER] == 3


def test_responses_are_told_apart_by_their_index_up_to_a_bound() -> None:
    statistics = CopyStatistics()
    for index in range(1000):
        statistics.responded(index, 5, empty=index == 2)
    statistics.response_failed(1, Failure.CANCELED, 7)
    statistics.response_failed(1, Failure.BACKEND, 8)
    assert len(statistics.responses) == 128
    assert sum(each.success.count for each in statistics.responses) == 1000
    second, third = statistics.responses[1:3]
    assert (second.compute_infer.ns, second.cancel.ns, second.fail.ns) == (5, 7, 8)
    assert (third.compute_infer.count, third.empty_response.count) == (0, 1)
