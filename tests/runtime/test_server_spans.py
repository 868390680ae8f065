"""Every way of writing a handler works while spans are made, and each RPC has one; a connection's stream has none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runtime.errors import InvalidArgument
from runtime.server_spans import server_spans
from runtime.status import StatusInterceptor


async def unary(request: bytes, context: Any) -> bytes:
    if request == b"bad":
        raise InvalidArgument("it is bad")
    return request


async def generator(requests: Any, context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def reader_and_writer(_: Any, context: Any) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request)


SERVICES: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {
    "test.Echo": {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Generator": grpc.stream_stream_rpc_method_handler(generator),
        "ReaderAndWriter": grpc.stream_stream_rpc_method_handler(reader_and_writer),
    },
    "penstock.worker.v1.WorkerService": {"Execute": grpc.stream_stream_rpc_method_handler(reader_and_writer)},
}


async def test_spans_of_every_kind_of_handler() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    server = grpc.aio.server(interceptors=[server_spans(provider.get_tracer("test")), StatusInterceptor()])
    for service, handlers in SERVICES.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo: Any = channel.unary_unary("/test.Echo/Unary")
        assert await echo(b"x") == b"x"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await echo(b"bad")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        for method in ("/test.Echo/Generator", "/test.Echo/ReaderAndWriter", "/penstock.worker.v1.WorkerService/Execute"):
            stream: Any = channel.stream_stream(method)()
            await stream.write(b"one")
            assert await stream.read() == b"one"
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
    await server.stop(None)
    names = sorted(span.name for span in exporter.get_finished_spans())
    assert names == ["/test.Echo/Generator", "/test.Echo/ReaderAndWriter", "/test.Echo/Unary", "/test.Echo/Unary"]
