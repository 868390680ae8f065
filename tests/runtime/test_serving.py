"""Serving over real sockets: statuses with details, roles by certificate, health, reflection, drain, garbage on the port."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from runtime.channel import inner_channel
from runtime.errors import Internal, InvalidArgument, ResourceExhausted
from runtime.identity import Authority, NodeIdentity, Role
from runtime.serving import Listen, PortTaken, Register, ServerLimits, inner_peer, serving
from runtime.status import error_of

SERVICE = "test.Echo"


async def _echo(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    if request == b"full":
        raise ResourceExhausted("the queue holds 8 of 8 requests; retry later", retry_after_s=1.5)
    if request == b"bug":
        raise ZeroDivisionError("secret detail")
    if request == b"who":
        return inner_peer(context, Role.GATEWAY).node_id.encode()
    if request.startswith(b"long"):
        raise ResourceExhausted(request.decode())
    if request == b"slow":
        await asyncio.sleep(0.3)
    return request


async def _echo_stream(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.write(request)
    raise ResourceExhausted("enough")


async def _echo_generator(request: bytes, _: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
    yield request
    raise ResourceExhausted("enough")


async def _answer_parsed(request: Duration, _: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    return str(request.seconds).encode()


async def _sum_parsed(requests: AsyncIterator[Duration], _: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    return str(sum([request.seconds async for request in requests])).encode()


def _unary(channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(f"/{SERVICE}/Echo", bytes, bytes)


def _register() -> Register:
    parse: Any = Duration.FromString
    handlers: dict[str, grpc.RpcMethodHandler[Any, bytes]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Stream": grpc.unary_stream_rpc_method_handler(_echo_stream),
        "Generate": grpc.unary_stream_rpc_method_handler(_echo_generator),
        "Parse": grpc.unary_unary_rpc_method_handler(_answer_parsed, parse),
        "ParseAll": grpc.stream_unary_rpc_method_handler(_sum_parsed, parse),
    }
    return lambda server: server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


@pytest.fixture
def nodes(tmp_path: Path) -> dict[Role, NodeIdentity]:
    authority = Authority.open(tmp_path / "ca")
    return {role: authority.enrol(tmp_path / role.value, role) for role in (Role.WORKER, Role.GATEWAY, Role.OPERATOR)}


async def test_our_error_arrives_as_its_class_with_sentence_and_delay() -> None:
    async with serving([Listen("127.0.0.1", 0)], [_register()], []) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await _unary(channel)(b"full")
            error = error_of(failure.value)
            assert isinstance(error, ResourceExhausted)
            assert (error.message, error.retry_after_s) == ("the queue holds 8 of 8 requests; retry later", 1.5)


async def test_an_unmapped_error_is_opaque_and_the_server_lives_on() -> None:
    async with serving([Listen("127.0.0.1", 0)], [_register()], []) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await _unary(channel)(b"bug")
            assert isinstance(error_of(failure.value), Internal)
            assert "secret" not in str(failure.value.details())
            assert await _unary(channel)(b"hello") == b"hello"


@pytest.mark.parametrize("letter", ["x", "%", "\N{GRINNING FACE}", "\0"])
async def test_a_sentence_of_any_length_arrives_as_far_as_it_fits(letter: str) -> None:
    """With more trailers than it takes, a client tells RESOURCE_EXHAUSTED by itself, without a reason."""
    sentence = "long" + letter * 20_000
    async with serving([Listen("127.0.0.1", 0)], [_register()], [SERVICE]) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            for _ in range(20):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await _unary(channel)(sentence.encode())
                error = error_of(caught.value)
                assert error.reason == "RESOURCE_EXHAUSTED"
                assert sentence.startswith(error.message.removesuffix("…"))
                assert error.message.endswith("…")
                assert len(error.message) > 200


async def test_a_request_that_cannot_be_parsed_is_its_senders_fault() -> None:
    async with serving([Listen("127.0.0.1", 0)], [_register()], [SERVICE]) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            one: Any = channel.unary_unary(f"/{SERVICE}/Parse")
            many: Any = channel.stream_unary(f"/{SERVICE}/ParseAll")
            good = Duration(seconds=20).SerializeToString()
            for call in (one(b"\x08"), many(iter([good, b"\x08"]))):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert isinstance(error_of(caught.value), InvalidArgument)
            assert await one(good) == b"20"
            assert await many(iter([good, good, b""])) == b"40"


@pytest.mark.parametrize("method", ["Stream", "Generate"])
async def test_a_stream_gives_what_it_had_and_then_the_error(method: str) -> None:
    async with serving([Listen("127.0.0.1", 0)], [_register()], []) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            start: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/{method}", bytes, bytes)
            call = start(b"one")
            assert await call.read() == b"one"
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await call.read()
            assert isinstance(error_of(failure.value), ResourceExhausted)


async def test_roles_are_read_from_the_certificate(nodes: dict[Role, NodeIdentity]) -> None:
    async with serving([Listen("127.0.0.1", 0, nodes[Role.WORKER])], [_register()], []) as running:
        address = f"127.0.0.1:{running.ports[0]}"
        async with inner_channel(address, nodes[Role.GATEWAY], Role.WORKER) as channel:
            assert await _unary(channel)(b"who") == nodes[Role.GATEWAY].node_id.encode()
        async with inner_channel(address, nodes[Role.OPERATOR], Role.WORKER) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await _unary(channel)(b"who")
            assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_server_of_another_role_or_id_is_not_spoken_to(nodes: dict[Role, NodeIdentity]) -> None:
    async with serving([Listen("127.0.0.1", 0, nodes[Role.WORKER])], [_register()], []) as running:
        address = f"127.0.0.1:{running.ports[0]}"
        for role, node_id in ((Role.REGISTRY, None), (Role.WORKER, nodes[Role.GATEWAY].node_id)):
            async with inner_channel(address, nodes[Role.GATEWAY], role, node_id=node_id) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as failure:
                    await _unary(channel)(b"hello", timeout=5)
                assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        async with inner_channel(address, nodes[Role.GATEWAY], Role.WORKER, node_id=nodes[Role.WORKER].node_id) as channel:
            assert await _unary(channel)(b"hello", timeout=5) == b"hello"


async def test_a_taken_port_is_one_clear_error() -> None:
    async with serving([Listen("127.0.0.1", 0)], [], []) as running:
        with pytest.raises(PortTaken, match=f"127.0.0.1:{running.ports[0]}"):
            async with serving([Listen("127.0.0.1", running.ports[0])], [], []):
                pass


async def test_health_and_reflection_answer() -> None:
    async with serving([Listen("127.0.0.1", 0)], [_register()], [SERVICE]) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", SERVICE):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            answers = [answer async for answer in stub.ServerReflectionInfo(iter([ask]))]
            names = {service.name for service in answers[0].list_services_response.service}
            assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_leaving_waits_for_what_is_in_flight() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1"):  # keeps grpc's own threads up across the drain
        async with serving([Listen("127.0.0.1", 0)], [_register()], []) as running:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}")
            call = _unary(channel)(b"slow")
            await call.wait_for_connection()
            await asyncio.sleep(0.1)
        assert await call == b"slow"
        await channel.close()


async def test_oversized_messages_are_refused() -> None:
    async with serving([Listen("127.0.0.1", 0)], [_register()], [], limits=ServerLimits(message_bytes=1000)) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await _unary(channel)(b"x" * 2000)
            assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await _unary(channel)(b"hello") == b"hello"


async def test_garbage_on_the_port_harms_nobody() -> None:
    async with serving([Listen("127.0.0.1", 0)], [_register()], []) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.ports[0])
        writer.write(b"\x00\xff garbage \r\n\r\n" * 100)
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            assert await _unary(channel)(b"hello") == b"hello"


async def test_a_burst_is_answered_to_its_last_call() -> None:
    """gRPC's core cancels calls by chance where more than 1,000 have come that nobody has taken yet."""
    async with serving([Listen("127.0.0.1", 0)], [_register()], []) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            calls = [_unary(channel)(b"hello") for _ in range(3_000)]
            assert {await call.code() for call in calls} == {grpc.StatusCode.OK}


async def test_two_processes_may_share_a_port_and_no_other() -> None:
    """Two servers stand for two processes: to the kernel they are as different."""
    async with serving([Listen("127.0.0.1", 0, shared=True), Listen("127.0.0.1", 0)], [_register()], []) as first:
        shared, own = first.ports
        with pytest.raises(PortTaken):
            async with serving([Listen("127.0.0.1", shared)], [_register()], []):
                pass
        with pytest.raises(PortTaken):
            async with serving([Listen("127.0.0.1", shared, shared=True), Listen("127.0.0.1", own)], [_register()], []):
                pass
        both = [Listen("127.0.0.1", shared, shared=True), Listen("127.0.0.1", 0)]
        async with serving(both, [_register()], []) as second:
            assert second.ports[0] == shared
            assert second.ports[1] != own
            for port in (shared, own, second.ports[1]):
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    assert await _unary(channel)(b"x", timeout=20) == b"x"


async def test_leaving_waits_for_what_is_in_flight_on_either_port() -> None:
    listens = [Listen("127.0.0.1", 0, shared=True), Listen("127.0.0.1", 0)]
    async with serving(listens, [_register()], [], drain_grace_s=20.0) as running:
        channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}") for port in running.ports]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        calls = [asyncio.ensure_future(_unary(channel)(b"slow", timeout=20)) for channel in channels]
        await asyncio.sleep(0.1)
    assert [await call for call in calls] == [b"slow", b"slow"]
    for channel in channels:
        await channel.close()
