"""A revoked node is served nothing any more: what it calls is refused, what it holds is cut, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.sdk.trace import TracerProvider

from runtime.channel import inner_channel
from runtime.errors import ResourceExhausted
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import NodeId
from runtime.peer_gate import also_held_by
from runtime.records import RecordRefused, RecordVerifier, sign_record
from runtime.revocations import NodeRevoked, Revocations
from runtime.server_spans import server_spans
from runtime.serving import Listen, serving
from runtime.status import error_of
from tests.support.waiting import PATIENCE_S

SERVICE = "test.Held"
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Handlers:
    """One of each kind. What happens, in order, is in `happened`."""

    happened: list[str] = field(default_factory=list)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def unary(self, request: bytes, _: Context) -> bytes:
        self.happened.append("unary")
        if request == b"wait":
            self.began.set()
            await self.go.wait()
        return request

    async def generator(self, _: bytes, __: Context) -> AsyncIterator[bytes]:
        with self._watched():
            yield b"one"
            self.began.set()
            await asyncio.Event().wait()

    async def writer(self, _: bytes, context: Context) -> None:
        with self._watched():
            await context.write(b"one")
            self.began.set()
            await asyncio.Event().wait()

    async def flooding_writer(self, _: bytes, context: Context) -> None:
        with self._watched():
            await context.write(b"one")
            self.began.set()
            while True:  # until the caller, who reads no more, takes no more
                await context.write(bytes(100_000))

    async def flooding_generator(self, _: bytes, __: Context) -> AsyncIterator[bytes]:
        with self._watched():
            yield b"one"
            self.began.set()
            while True:
                yield bytes(100_000)

    async def reader(self, _: AsyncIterator[bytes], context: Context) -> bytes:
        with self._watched():
            while await context.read() is not grpc.aio.EOF:
                self.began.set()
        return b""

    async def both(self, _: AsyncIterator[bytes], context: Context) -> None:
        with self._watched():
            while (request := await context.read()) is not grpc.aio.EOF:
                await context.write(request)
                self.began.set()

    async def for_another(self, request: bytes, context: Context) -> None:
        with self._watched():
            also_held_by(NodeId(request.decode()))
            await context.write(b"one")
            self.began.set()
            await asyncio.Event().wait()

    async def refusing(self, _: bytes, __: Context) -> AsyncIterator[bytes]:
        yield b"one"
        raise ResourceExhausted("enough")

    def _watched(self) -> _Watched:
        return _Watched(self)

    def register(self, server: grpc.aio.Server) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "generator": grpc.unary_stream_rpc_method_handler(self.generator),
            "writer": grpc.unary_stream_rpc_method_handler(self.writer),
            "flooding_writer": grpc.unary_stream_rpc_method_handler(self.flooding_writer),
            "flooding_generator": grpc.unary_stream_rpc_method_handler(self.flooding_generator),
            "reader": grpc.stream_unary_rpc_method_handler(self.reader),
            "both": grpc.stream_stream_rpc_method_handler(self.both),
            "for_another": grpc.unary_stream_rpc_method_handler(self.for_another),
            "refusing": grpc.unary_stream_rpc_method_handler(self.refusing),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class _Watched:
    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    def __enter__(self) -> None:
        self._handlers.happened.append("began")

    def __exit__(self, kind: type[BaseException] | None, _: object, __: object) -> None:
        # A generator that waits for its answer to be taken is closed; everybody else is cancelled.
        cut = kind in (asyncio.CancelledError, GeneratorExit)
        self._handlers.happened.append("cancelled" if cut else f"ended {kind}")
        self._handlers.ended.set()


@dataclass(slots=True)
class Served:
    handlers: Handlers
    revocations: Revocations
    nodes: dict[str, NodeIdentity]
    channels: dict[str, grpc.aio.Channel]

    def unary(self, name: str) -> Any:
        return self.channels[name].unary_unary(f"/{SERVICE}/unary")

    def stream(self, name: str, method: str) -> Any:
        channel: Any = self.channels[name]
        path = f"/{SERVICE}/{method}"
        if method == "reader":
            return channel.stream_unary(path)()
        return channel.stream_stream(path)() if method == "both" else channel.unary_stream(path)(b"")

    def revoke(self, name: str) -> None:
        self.revocations.add(self.nodes[name].node_id)


@pytest.fixture(params=[False, True], ids=["", "traced"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    authority = Authority.open(tmp_path / "ca")
    own = authority.enrol(tmp_path / "own", Role.REGISTRY)
    nodes = {name: authority.enrol(tmp_path / name, Role.WORKER) for name in ("good", "bad")}
    handlers, revocations = Handlers(), Revocations()
    interceptors = [server_spans(TracerProvider().get_tracer("test"))] if request.param else []
    listen = Listen("127.0.0.1", 0, own)
    async with AsyncExitStack() as stack:
        opening = serving(
            [listen], [handlers.register], [], interceptors=interceptors, revocations=revocations, drain_grace_s=0.2
        )
        running = await stack.enter_async_context(opening)
        address = f"127.0.0.1:{running.ports[0]}"
        channels = {
            name: await stack.enter_async_context(inner_channel(address, node, Role.REGISTRY)) for name, node in nodes.items()
        }
        yield Served(handlers, revocations, nodes, channels)
    assert revocations.listeners == []


async def ending(call: Any) -> Exception:
    """What a stream ends with, read to its end."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await read_out(call)
    return error_of(failure.value)


async def read_out(call: Any) -> None:
    if isinstance(call, grpc.aio.StreamUnaryCall):
        await call
        return
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_what_a_revoked_node_calls_is_refused_before_its_handler_runs(served: Served) -> None:
    assert await served.unary("bad")(b"x") == b"x"
    served.revoke("bad")
    served.handlers.happened.clear()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await served.unary("bad")(b"x")
    assert isinstance(error_of(failure.value), NodeRevoked)
    for method in ("generator", "writer", "both"):
        assert isinstance(await ending(served.stream("bad", method)), NodeRevoked)
    assert served.handlers.happened == []
    assert await served.unary("good")(b"x") == b"x"


@pytest.mark.parametrize("method", ["generator", "writer", "flooding_writer", "flooding_generator", "reader", "both"])
async def test_a_stream_is_cut_when_its_holder_is_revoked(served: Served, method: str) -> None:
    call = served.stream("bad", method)
    if method in ("reader", "both"):
        await call.write(b"one")
    async with asyncio.timeout(PATIENCE_S):
        await served.handlers.began.wait()
        served.revoke("bad")
        await served.handlers.ended.wait()
        assert served.handlers.happened == ["began", "cancelled"]
        assert isinstance(await ending(call), NodeRevoked)


async def test_the_cut_comes_with_the_revocation_and_not_with_the_next_call(served: Served) -> None:
    """The handler hears of it within the turns of the loop that a cancellation takes: nothing is waited for."""
    call = served.stream("bad", "writer")
    async with asyncio.timeout(PATIENCE_S):
        await served.handlers.began.wait()
    served.revoke("bad")
    for _ in range(3):
        await asyncio.sleep(0)
    assert served.handlers.ended.is_set()
    assert isinstance(await ending(call), NodeRevoked)


async def test_a_stream_that_is_held_for_another_node_is_cut_when_that_one_is_revoked(served: Served) -> None:
    """As Envoy holds those of the nodes behind it."""
    bad, channel = served.nodes["bad"].node_id, served.channels["good"]
    start: Any = channel.unary_stream(f"/{SERVICE}/for_another")
    call = start(bad.encode())
    async with asyncio.timeout(PATIENCE_S):
        await served.handlers.began.wait()
        served.revoke("bad")
        await served.handlers.ended.wait()
    assert served.handlers.happened == ["began", "cancelled"]
    error = await ending(call)
    assert isinstance(error, NodeRevoked)
    assert bad in str(error)
    assert isinstance(await ending(start(bad.encode())), NodeRevoked)
    assert await served.unary("good")(b"x") == b"x"


async def test_streams_of_others_go_on(served: Served) -> None:
    call = served.stream("good", "both")
    await call.write(b"one")
    assert await call.read() == b"one"
    served.revoke("bad")
    await call.write(b"two")
    assert await call.read() == b"two"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert served.handlers.happened == ["began", "ended None"]


async def test_a_holder_that_left_and_is_revoked_later_harms_nothing(served: Served) -> None:
    call = served.stream("bad", "writer")
    async with asyncio.timeout(PATIENCE_S):
        await served.handlers.began.wait()
        call.cancel()
        await served.handlers.ended.wait()
    served.revoke("bad")
    assert await served.unary("good")(b"x") == b"x"


async def test_a_unary_call_that_had_begun_is_answered(served: Served) -> None:
    call = asyncio.ensure_future(served.unary("bad")(b"wait"))
    async with asyncio.timeout(PATIENCE_S):
        await served.handlers.began.wait()
        served.revoke("bad")
        served.handlers.go.set()
        assert await call == b"wait"


async def test_errors_of_streams_still_arrive(served: Served) -> None:
    call = served.stream("good", "refusing")
    assert await call.read() == b"one"
    assert isinstance(await ending(call), ResourceExhausted)


async def test_a_plaintext_port_has_no_nodes_to_revoke() -> None:
    handlers, revocations = Handlers(), Revocations()
    revocations.add(NodeId(""))
    revocations.add(NodeId("0" * 20))
    async with serving([Listen("127.0.0.1", 0)], [handlers.register], [], revocations=revocations) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            echo: Any = channel.unary_unary(f"/{SERVICE}/unary")
            assert await echo(b"x") == b"x"
            refusing: Any = channel.unary_stream(f"/{SERVICE}/refusing")
            assert await refusing(b"").read() == b"one"


def test_each_node_is_told_of_once() -> None:
    revocations, heard = Revocations(), list[NodeId]()
    revocations.listeners.append(heard.append)
    for _ in range(2):
        revocations.add(NodeId("a"))
    assert heard == ["a"]
    assert "a" in revocations
    assert "b" not in revocations


def test_records_of_a_revoked_node_are_not_believed_even_if_they_were_before(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "ca")
    worker, other = (authority.enrol(tmp_path / name, Role.WORKER) for name in ("worker", "other"))
    revocations = Revocations()
    verifier = RecordVerifier(authority.certificate_pem, revocations=revocations)
    raw = sign_record(worker, b"here")
    assert verifier.open(raw, now_wall_s=0).payload == b"here"
    revocations.add(worker.node_id)
    with pytest.raises(RecordRefused, match="revoked"):
        verifier.open(raw, now_wall_s=0)
    assert verifier.open(sign_record(other, b"here"), now_wall_s=0).payload == b"here"
