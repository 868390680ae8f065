"""Spans leave a real process: a worker tells a collector what it did for each call, under the caller's trace."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import grpc.aio
from inference import grpc_service_pb2, grpc_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.support.mesh import ROOT, environment
from tests.support.waiting import eventually

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def digit() -> grpc_service_pb2.ModelInferRequest:
    message = grpc_service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(256)])
    message.inputs.add(name="image", datatype="FP32", shape=(1, 1, 8, 8))
    return message


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What an OTLP collector is for the exporter."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, str]] = []
        """Service, span name, trace id in hex."""

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            service = next(each.value.string_value for each in resource.resource.attributes if each.key == "service.name")
            for scope in resource.scope_spans:
                self.spans += [(service, span.name, span.trace_id.hex()) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_a_served_call_becomes_a_span_of_the_callers_trace(tmp_path: Path) -> None:
    collector, server, ready = Collector(), grpc.aio.server(), tmp_path / "ready.json"
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    words = ["worker", "--standalone", "--model-folder", str(ROOT / "cli" / "demo" / "digits"), "--kserve-port=0"]
    words += [f"--ready-file={ready}", f"--otlp-endpoint=http://127.0.0.1:{port}"]
    worker = await asyncio.create_subprocess_exec(sys.executable, "-m", "cli", *words, env=environment(), cwd=ROOT)
    try:
        await eventually(ready.exists, patience_s=30)
        address = f"127.0.0.1:{json.loads(ready.read_text())['kserve_port']}"
        async with grpc.aio.insecure_channel(address) as channel:
            stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
            metadata = (("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-01"),)
            await stub.ServerLive(grpc_service_pb2.ServerLiveRequest(), metadata=metadata, timeout=10)
            await stub.ModelInfer(digit(), metadata=metadata, timeout=10)
            stream: Any = stub.ModelStreamInfer(metadata=metadata, timeout=10)
            await stream.write(digit())
            assert not (await stream.read()).error_message
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
    finally:
        worker.send_signal(signal.SIGTERM)  # what is not exported yet leaves with the process
        await asyncio.wait_for(worker.wait(), 30)
    await server.stop(None)
    found = Counter(name for service, name, trace_id in collector.spans if (service, trace_id) == ("penstock-worker", TRACE_ID))
    rpcs = {f"/inference.GRPCInferenceService/{name}": 1 for name in ("ServerLive", "ModelInfer", "ModelStreamInfer")}
    assert found == {**rpcs, "infer": 2, "queue": 2, "batch": 2, "execute": 2}
