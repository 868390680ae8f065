"""The generated client calls a grpcio server over a socket: one call, a stream both ways, an error with its code."""

from collections.abc import AsyncIterator, Awaitable

import grpc
import pytest
from grpc import aio
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from inference import grpc_service_pb2, grpc_service_pb2_grpc
from penstock_client import inference as client

Request = grpc_service_pb2.ModelInferRequest
Response = grpc_service_pb2.ModelInferResponse
StreamResponse = grpc_service_pb2.ModelStreamInferResponse

TENSOR = bytes(range(256)) * 8


class Echo(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers two calls with what they were sent; the others stay unimplemented."""

    async def ModelInfer(self, request: Request, context: aio.ServicerContext[Request, Awaitable[Response]]) -> Response:
        if request.model_name == "missing":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return Response(model_name=request.model_name, id=request.id, raw_output_contents=request.raw_input_contents)

    async def ModelStreamInfer(
        self,
        request_iterator: AsyncIterator[Request],
        context: aio.ServicerContext[AsyncIterator[Request], AsyncIterator[StreamResponse]],
    ) -> AsyncIterator[StreamResponse]:
        async for request in request_iterator:
            yield StreamResponse(infer_response=Response(id=request.id))


@pytest.fixture
async def stub() -> AsyncIterator[client.GrpcInferenceServiceStub]:
    server = aio.server()
    grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = Channel("127.0.0.1", port)
    try:
        yield client.GrpcInferenceServiceStub(channel)
    finally:
        channel.close()
        await server.stop(grace=None)


async def test_one_call(stub: client.GrpcInferenceServiceStub) -> None:
    answer = await stub.model_infer(
        client.ModelInferRequest(model_name="digits", id="7", raw_input_contents=[TENSOR]), timeout=10
    )
    assert (answer.model_name, answer.id, answer.raw_output_contents) == ("digits", "7", [TENSOR])


async def test_a_stream_both_ways(stub: client.GrpcInferenceServiceStub) -> None:
    requests = [client.ModelInferRequest(id=str(number)) for number in range(20)]
    answers = [answer.infer_response async for answer in stub.model_stream_infer(requests, timeout=10)]
    assert [answer.id for answer in answers if answer is not None] == [request.id for request in requests]


async def test_an_error_keeps_its_code(stub: client.GrpcInferenceServiceStub) -> None:
    with pytest.raises(GRPCError) as raised:
        await stub.model_infer(client.ModelInferRequest(model_name="missing"), timeout=10)
    assert (raised.value.status, raised.value.message) == (Status.NOT_FOUND, "no such model")
    with pytest.raises(GRPCError) as raised:
        await stub.server_live(timeout=10)
    assert raised.value.status is Status.UNIMPLEMENTED
