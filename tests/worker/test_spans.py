"""One trace from the client to the engine: over the KServe port, in Execute frames, and of generations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as rpc
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from penstock.worker.v1 import worker_pb2

from runtime.gathering import AtOnce
from runtime.ids import WorkerId
from runtime.server_spans import server_spans
from runtime.serving import Listen, serving
from tests.worker.onnx_models import identity, spec
from worker.copies import open_model
from worker.execute.execution import Execution
from worker.execute.execution_stream import ExecuteStream, StreamLimits
from worker.inference import TableInference
from worker.kserve.servicer import SERVICE, register_inference
from worker.models import ModelTable
from worker.spans import ExecutionTimes, GenerationTimes, trace_execution, trace_generation
from worker.types import CallContext

TRACE_ID, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER}-01"
STAGES = ["queue", "batch", "execute"]


@dataclass(slots=True)
class Exported:
    provider: TracerProvider
    exporter: InMemorySpanExporter

    def spans(self) -> list[ReadableSpan]:
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans() if span.name == name]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Exported:
    """Spans of this test alone: a process has one provider, which cannot be taken back."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return Exported(provider, exporter)


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.span_id:016x}"


def id_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"{context.span_id:016x}"


def times(arrived_ns: int) -> ExecutionTimes:
    return ExecutionTimes(arrived_ns, arrived_ns + 1000, arrived_ns + 1500, arrived_ns + 5000, arrived_ns + 6000)


def test_the_stages_follow_each_other_at_the_times_they_were_taken(exported: Exported) -> None:
    arrived_ns, before_ns = time.monotonic_ns() - 1_000_000, time.time_ns()
    trace_execution(CallContext(traceparent=TRACEPARENT), "m", "3", times(arrived_ns), rows=2, batch_rows=8)
    whole, *stages = [*exported.named("infer"), *(exported.named(name)[0] for name in STAGES)]
    assert parent_of(whole) == CALLER
    assert all(parent_of(stage) == id_of(whole) for stage in stages)
    assert {f"{span.context.trace_id:032x}" for span in exported.spans() if span.context} == {TRACE_ID}
    edges = [(span.start_time, span.end_time) for span in stages]
    begin = whole.start_time or 0
    assert edges == [(begin, begin + 1000), (begin + 1000, begin + 1500), (begin + 1500, begin + 5000)]
    assert (whole.end_time or 0) - begin == 6000
    assert abs(begin - (before_ns - 1_000_000)) < 1_000_000_000
    expected = {"penstock.model": "m", "penstock.version": "3", "penstock.rows": 2, "penstock.batch_rows": 8}
    assert all(dict(span.attributes or {}) == expected for span in exported.spans())


def test_generations(exported: Exported) -> None:
    start_ns = time.monotonic_ns()
    of_generation = GenerationTimes(start_ns, start_ns + 10, start_ns + 30, start_ns + 100)
    trace_generation(CallContext(traceparent=TRACEPARENT), "m", "1", of_generation, prompt_tokens=5, completion_tokens=7)
    whole = exported.named("generate")[0]
    assert (whole.attributes or {})["gen_ai.usage.output_tokens"] == 7
    stages = [exported.named(name)[0] for name in ("queue", "prefill", "decode")]
    assert [(span.end_time or 0) - (span.start_time or 0) for span in stages] == [10, 20, 70]


@pytest.mark.parametrize("flags", ["00", "02", "fe"])
def test_what_nobody_follows_is_not_traced(exported: Exported, flags: str) -> None:
    for traceparent in ("", TRACEPARENT[:-2] + flags):
        trace_execution(CallContext(traceparent=traceparent), "m", "1", times(0), rows=1, batch_rows=1)
    assert not exported.spans()


@given(traceparent=st.text(max_size=60))
def test_whatever_a_caller_sends_as_a_traceparent_is_borne(traceparent: str) -> None:
    trace_execution(CallContext(traceparent=traceparent), "m", "1", times(0), rows=1, batch_rows=1)


def test_a_process_that_exports_nothing_makes_no_spans() -> None:
    trace_execution(CallContext(traceparent=TRACEPARENT), "m", "1", times(0), rows=1, batch_rows=1)


def request(request_id: str = "") -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", id=request_id)
    message.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    message.raw_input_contents.append(np.zeros(2, np.float32).tobytes())
    return message


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[ModelTable, TableInference]]:
    table = ModelTable()
    table.add(await open_model(spec(), identity(folder / "m", "FP32")))
    yield table, TableInference(table)
    for loaded in table:
        loaded.close()


def check_tree(exported: Exported, caller: str, requests: int = 1) -> None:
    """infer under the caller, the stages under infer."""
    whole = exported.named("infer")
    assert [parent_of(span) for span in whole] == [caller] * requests
    for stage in STAGES:
        assert sorted(parent_of(span) for span in exported.named(stage)) == sorted(id_of(span) for span in whole)
    assert {f"{span.context.trace_id:032x}" for span in exported.spans() if span.context} == {TRACE_ID}


async def test_over_the_kserve_port(exported: Exported, tmp_path: Path) -> None:
    interceptors = [server_spans(exported.provider.get_tracer("rpc"))]
    async with opened(tmp_path) as (table, inference):
        register = register_inference(inference, table, inner=False, traced=True)
        opening = serving([Listen("127.0.0.1", 0)], [register], [SERVICE], interceptors=interceptors, drain_grace_s=1.0)
        async with opening as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            stub = rpc.GRPCInferenceServiceStub(channel)
            metadata = (("traceparent", TRACEPARENT),)
            await stub.ModelInfer(request(), metadata=metadata)
            (call,) = exported.named(f"/{SERVICE}/ModelInfer")
            assert parent_of(call) == CALLER
            check_tree(exported, id_of(call))
            exported.exporter.clear()
            stream: Any = stub.ModelStreamInfer(metadata=metadata)
            for number in range(3):
                await stream.write(request(str(number)))
            await stream.done_writing()
            assert [answer.infer_response.id async for answer in stream] == ["0", "1", "2"]
    (call,) = exported.named(f"/{SERVICE}/ModelStreamInfer")
    check_tree(exported, id_of(call), 3)


async def test_in_execute_frames(exported: Exported, tmp_path: Path) -> None:
    answers: asyncio.Queue[worker_pb2.ResponseFrame] = asyncio.Queue()
    inbox: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def take(message: bytes) -> None:
        for frame in worker_pb2.ExecuteResponse.FromString(message).frames:
            answers.put_nowait(frame)

    async with opened(tmp_path) as (_, inference):
        intake = Execution(inference, WorkerId("w"), asyncio.Event())
        stream = ExecuteStream(inference, intake, StreamLimits(), take, lambda: b"", AtOnce())
        running = asyncio.ensure_future(stream.run(inbox.get))
        opening = worker_pb2.RequestOpen(
            method=worker_pb2.METHOD_INFER, traceparent=TRACEPARENT, payload=request().SerializeToString()
        )
        frame = worker_pb2.RequestFrame(call_id=1, open=opening, payload_end=True)
        inbox.put_nowait(worker_pb2.ExecuteRequest(frames=[frame]).SerializeToString())
        async with asyncio.timeout(10):
            answer = await answers.get()
        assert not answer.HasField("failure")
        inbox.put_nowait(None)
        await running
    check_tree(exported, CALLER)
