"""Both halves of the inner hop over mTLS on loopback: a WorkerLink of a gateway and the Execution of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import pytest
from penstock.worker.v1 import worker_pb2
from penstock.worker.v1.worker_pb2_grpc import WorkerServiceStub

from gateway.links.link import WorkerLink
from gateway.links.types import CallContext as LinkCall
from gateway.links.types import LinkLost, LinkSettings, Method
from runtime.channel import inner_channel
from runtime.errors import DeadlineExceeded, Internal, PenstockError, ResourceExhausted
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import WorkerId
from runtime.serving import Listen, RoleRequired, serving
from runtime.streams import PayloadTooLarge
from worker.execute.execution import SERVICE, Execution
from worker.execute.execution_stream import Draining, StreamLimits
from worker.types import CallContext, Load


@dataclass
class Engine:
    """Answers by what the model's name asks for; tells what it saw."""

    calls: list[CallContext] = field(default_factory=list)
    running: int = 0
    made: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def infer(self, model: str, version: str, payload: bytes, call: CallContext) -> bytes:
        self.calls.append(call)
        self.running += 1
        try:
            self.entered.set()
            if model == "full":
                raise ResourceExhausted("the queue of full holds 4", retry_after_s=0.25)
            if model == "bug":
                raise KeyError("a bug")
            if model == "gate":
                await self.gate.wait()
            return payload
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.running -= 1

    async def stream_infer(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        self.running += 1
        try:
            for number in range(int(payload or b"0")):
                self.made += 1
                yield str(number).encode() if model != "large" else bytes([number]) * 700_000
            if model == "gate":
                self.entered.set()
                await self.gate.wait()
            if model == "fails":
                raise ResourceExhausted("no more memory")
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise
        finally:
            self.running -= 1

    def generate(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        return self.stream_infer(model, version, payload, call)

    @property
    def load(self) -> Load:
        return Load(self.running, 0)


@dataclass
class Mesh:
    engine: Engine
    execution: Execution
    stop: asyncio.Event
    port: int
    worker: NodeIdentity
    gateway: NodeIdentity
    authority: Authority
    folder: Path
    server: grpc.aio.Server

    def link(self, settings: LinkSettings | None = None) -> WorkerLink:
        return WorkerLink(f"127.0.0.1:{self.port}", self.gateway, WorkerId(self.worker.node_id), settings=settings)

    def stub(self, role: Role) -> tuple[grpc.aio.Channel, WorkerServiceStub]:
        identity = self.authority.enrol(self.folder / role.value, role)
        channel = inner_channel(f"127.0.0.1:{self.port}", identity, Role.WORKER)
        return channel, WorkerServiceStub(channel)


@asynccontextmanager
async def a_mesh(folder: Path, limits: StreamLimits | None = None) -> AsyncIterator[Mesh]:
    authority = Authority.open(folder)
    worker = authority.enrol(folder / "worker", Role.WORKER)
    gateway = authority.enrol(folder / "gateway", Role.GATEWAY)
    engine, stop = Engine(), asyncio.Event()
    copies = (worker_pb2.ModelCopy(model="digits", version="1"),)
    execution = Execution(engine, WorkerId(worker.node_id), stop, copies=lambda: copies, limits=limits)
    async with serving([Listen("127.0.0.1", 0, worker)], [execution.register], [SERVICE], drain_grace_s=0.2) as running:
        yield Mesh(engine, execution, stop, running.ports[0], worker, gateway, authority, folder, running.server)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with a_mesh(tmp_path) as made:
        yield made


@pytest.fixture
async def link(mesh: Mesh) -> AsyncIterator[WorkerLink]:
    async with mesh.link() as made:
        assert await made.wait_connected(5)
        yield made


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_call_is_answered_with_its_own_payload(link: WorkerLink) -> None:
    assert await link.call("echo", "1", b"three", LinkCall()) == b"three"
    assert await link.call("echo", "1", b"", LinkCall()) == b""
    assert link.in_flight == 0


async def test_what_travels_with_a_call_reaches_the_engine(link: WorkerLink, mesh: Mesh) -> None:
    deadline_s = asyncio.get_running_loop().time() + 5
    sent = LinkCall("id-1", "acme", 3, deadline_s, "00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    await link.call("echo", "", b"x", sent)
    seen = mesh.engine.calls[0]
    assert (seen.request_id, seen.tenant, seen.priority, seen.traceparent) == ("id-1", "acme", 3, sent.traceparent)
    assert seen.deadline_s is not None
    assert abs(seen.deadline_s - deadline_s) < 0.5


@pytest.mark.parametrize("streams", [1, 2])
async def test_many_calls_at_once_each_get_their_own_answer(mesh: Mesh, streams: int) -> None:
    async with mesh.link(LinkSettings(streams=streams)) as link:
        assert await link.wait_connected(5)
        payloads = [f"payload {n}".encode() * (1 + n % 50) for n in range(800)]
        answers = await asyncio.gather(*(link.call("echo", "1", payload, LinkCall()) for payload in payloads))
        assert answers == payloads
        assert link.in_flight == 0
        assert mesh.execution.open_calls == 0


async def test_large_payloads_come_whole_and_small_ones_pass_them(link: WorkerLink) -> None:
    large = bytes(range(256)) * (16 * 4096)  # 16 MiB
    order: list[str] = []

    async def run(name: str, payload: bytes) -> None:
        assert await link.call("echo", "1", payload, LinkCall()) == payload
        order.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(run("large", large))
        group.create_task(run("large", large[::-1]))
        await asyncio.sleep(0)
        for _ in range(20):
            group.create_task(run("small", b"s" * 100))
    assert order == ["small"] * 20 + ["large"] * 2


async def test_a_payload_over_the_limit_is_refused_before_it_comes(tmp_path: Path) -> None:
    async with a_mesh(tmp_path, StreamLimits(payload_bytes=1_000_000)) as mesh, mesh.link() as link:
        assert await link.wait_connected(5)
        with pytest.raises(PayloadTooLarge, match="1000001 bytes"):
            await link.call("echo", "1", b"x" * 1_000_001, LinkCall())
        assert await link.call("echo", "1", b"x" * 1_000_000, LinkCall()) == b"x" * 1_000_000
        assert mesh.execution.open_calls == 0


async def test_an_answer_over_the_limit_fails_and_frees_the_call(mesh: Mesh) -> None:
    async with mesh.link(LinkSettings(answer_bytes=400_000)) as link:
        assert await link.wait_connected(5)
        with pytest.raises(PayloadTooLarge):
            await link.call("echo", "1", b"x" * 600_000, LinkCall())
        assert await link.call("echo", "1", b"ok", LinkCall()) == b"ok"
        await eventually(lambda: mesh.execution.open_calls == 0)


async def test_a_failure_comes_back_as_the_same_error(link: WorkerLink) -> None:
    with pytest.raises(ResourceExhausted, match="holds 4") as caught:
        await link.call("full", "1", b"x", LinkCall())
    assert caught.value.retry_after_s == 0.25
    with pytest.raises(Internal) as opaque:
        await link.call("bug", "1", b"x", LinkCall())
    assert "KeyError" not in opaque.value.message


async def test_cancelling_the_caller_cancels_the_call_at_the_worker(link: WorkerLink, mesh: Mesh) -> None:
    task = asyncio.create_task(link.call("gate", "1", b"x", LinkCall()))
    await mesh.engine.entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await mesh.engine.cancelled.wait()
    await eventually(lambda: mesh.execution.open_calls == 0)
    assert link.in_flight == 0


async def test_a_call_without_time_left_is_refused_on_either_side(link: WorkerLink, mesh: Mesh) -> None:
    now_s = asyncio.get_running_loop().time()
    with pytest.raises(DeadlineExceeded, match="before the request was sent"):
        await link.call("echo", "1", b"x", LinkCall(deadline_s=now_s - 1))
    channel, stub = mesh.stub(Role.OPERATOR)
    async with channel:
        opened = worker_pb2.RequestOpen(method=worker_pb2.METHOD_INFER, model="echo", timeout_us=1)
        frame = worker_pb2.RequestFrame(call_id=1, open=opened, payload_end=True)
        stream = stub.Execute()
        await stream.write(worker_pb2.ExecuteRequest(frames=[frame]))
        failures = [f.failure async for message in take(stream, 2) for f in message.frames]
        assert [failure.reason for failure in failures] == ["DEADLINE_EXCEEDED"]
        stream.cancel()
    assert not mesh.engine.calls


async def take(stream: grpc.aio.StreamStreamCall, count: int) -> AsyncIterator[worker_pb2.ExecuteResponse]:  # type: ignore[type-arg]
    for _ in range(count):
        message = await stream.read()
        assert isinstance(message, worker_pb2.ExecuteResponse)
        yield message


async def read_to_end(stream: grpc.aio.StreamStreamCall) -> None:  # type: ignore[type-arg]
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_a_silent_worker_does_not_hang_a_call(link: WorkerLink, mesh: Mesh) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(DeadlineExceeded, match="had not finished"):
        await link.call("gate", "1", b"x", LinkCall(deadline_s=began_s + 0.1))
    assert loop.time() - began_s < 2
    async with asyncio.timeout(5):
        await mesh.engine.cancelled.wait()


async def test_a_stream_gives_its_answers_in_order_and_ends(link: WorkerLink, mesh: Mesh) -> None:
    answers = link.stream(Method.STREAM_INFER, "many", "1", b"500", LinkCall())
    assert [answer async for answer in answers] == [str(n).encode() for n in range(500)]
    assert [answer async for answer in link.stream(Method.GENERATE, "none", "1", b"0", LinkCall())] == []
    await eventually(lambda: mesh.execution.open_calls == 0)


async def test_large_answers_of_a_stream_come_whole_and_in_order(link: WorkerLink) -> None:
    answers = [answer async for answer in link.stream(Method.GENERATE, "large", "1", b"9", LinkCall())]
    assert answers == [bytes([n]) * 700_000 for n in range(9)]


async def test_the_engine_stops_when_nobody_reads(mesh: Mesh) -> None:
    async with mesh.link(LinkSettings(credit=8)) as link:
        assert await link.wait_connected(5)
        answers = link.stream(Method.GENERATE, "many", "1", b"1000", LinkCall())
        assert await anext(answers) == b"0"
        await link.call("echo", "1", b"the worker has had its turn", LinkCall())
        await asyncio.sleep(0.05)
        assert mesh.engine.made == 9  # eight on credit, one ready to leave
        rest = [answer async for answer in answers]
        assert rest == [str(n).encode() for n in range(1, 1000)]


async def test_leaving_a_stream_early_cancels_it(link: WorkerLink, mesh: Mesh) -> None:
    answers = link.stream(Method.GENERATE, "many", "1", b"1000", LinkCall())
    assert await anext(answers) == b"0"
    await answers.aclose()
    async with asyncio.timeout(5):
        await mesh.engine.cancelled.wait()
    await eventually(lambda: mesh.execution.open_calls == 0)
    mesh.engine.cancelled.clear()
    async for _ in link.stream(Method.GENERATE, "many", "1", b"1000", LinkCall()):
        break  # nobody holds the iterator any more
    async with asyncio.timeout(5):
        await mesh.engine.cancelled.wait()


async def test_a_stream_that_fails_gives_what_it_had_first(link: WorkerLink) -> None:
    answers = link.stream(Method.GENERATE, "fails", "1", b"2", LinkCall())
    assert [await anext(answers), await anext(answers)] == [b"0", b"1"]
    with pytest.raises(ResourceExhausted, match="no more memory"):
        await anext(answers)


async def test_losing_the_worker_fails_every_open_call_and_the_link_comes_back(mesh: Mesh) -> None:
    async with mesh.link() as link:
        assert await link.wait_connected(5)
        unary = [asyncio.create_task(link.call("gate", "1", b"x", LinkCall())) for _ in range(5)]
        untouched = link.stream(Method.GENERATE, "gate", "1", b"0", LinkCall())
        begun = link.stream(Method.GENERATE, "gate", "1", b"2", LinkCall())
        assert await anext(begun) == b"0"
        await eventually(lambda: mesh.engine.running == 7)
        await mesh.server.stop(0)
        for task in unary:
            with pytest.raises(LinkLost) as lost:
                await task
            assert not lost.value.started
        with pytest.raises(LinkLost) as lost:
            await anext(untouched)
        assert not lost.value.started
        assert await anext(begun) == b"1"
        with pytest.raises(LinkLost) as lost:
            await anext(begun)
        assert lost.value.started
        assert not link.ready
        with pytest.raises(LinkLost, match="not connected"):
            await link.call("echo", "1", b"x", LinkCall())
        await eventually(lambda: mesh.execution.open_calls == 0)
        listen = Listen("127.0.0.1", mesh.port, mesh.worker)
        async with serving([listen], [mesh.execution.register], [SERVICE], drain_grace_s=0.1):
            assert await link.wait_connected(10)
            assert await link.call("echo", "1", b"again", LinkCall()) == b"again"


async def test_closing_the_link_cancels_its_calls_at_the_worker(mesh: Mesh) -> None:
    link = mesh.link()
    link.start()
    assert await link.wait_connected(5)
    task = asyncio.create_task(link.call("gate", "1", b"x", LinkCall()))
    await mesh.engine.entered.wait()
    await link.close()
    with pytest.raises(LinkLost):
        await task
    async with asyncio.timeout(5):
        await mesh.engine.cancelled.wait()
    await eventually(lambda: mesh.execution.open_calls == 0)


async def test_a_drain_finishes_what_is_open_and_refuses_what_is_new(link: WorkerLink, mesh: Mesh) -> None:
    task = asyncio.create_task(link.call("gate", "1", b"x", LinkCall()))
    await mesh.engine.entered.wait()
    channel, stub = mesh.stub(Role.OPERATOR)
    async with channel:
        drain = asyncio.ensure_future(stub.Drain(worker_pb2.DrainRequest(grace_ms=10_000)))
        await eventually(lambda: link.load.draining)
        assert not link.ready
        with pytest.raises(Draining):
            await link.call("echo", "1", b"x", LinkCall())
        assert not mesh.stop.is_set()
        mesh.engine.gate.set()
        assert await task == b"x"
        await drain
    assert mesh.stop.is_set()
    await eventually(lambda: link.in_flight == 0 and not link.ready)


async def test_a_drain_cuts_off_what_outlasts_the_grace(link: WorkerLink, mesh: Mesh) -> None:
    task = asyncio.create_task(link.call("gate", "1", b"x", LinkCall()))
    await mesh.engine.entered.wait()
    await mesh.execution.drain(0.05)
    with pytest.raises(Draining, match="before the call was done"):
        await task
    assert mesh.stop.is_set()


async def test_status_tells_load_and_copies(link: WorkerLink, mesh: Mesh) -> None:
    task = asyncio.create_task(link.call("gate", "1", b"x", LinkCall()))
    await mesh.engine.entered.wait()
    channel, stub = mesh.stub(Role.SCHEDULER)
    async with channel:
        status = await stub.Status(worker_pb2.StatusRequest())
    assert status.worker_id == mesh.worker.node_id
    assert (status.load.in_flight, status.load.draining) == (1, False)
    assert [copy.model for copy in status.models] == ["digits"]
    mesh.engine.gate.set()
    await task


async def test_garbage_ends_the_stream_with_a_status_and_the_worker_lives(link: WorkerLink, mesh: Mesh) -> None:
    channel = inner_channel(f"127.0.0.1:{mesh.port}", mesh.gateway, Role.WORKER)
    async with channel:
        for garbage in (b"\xff\xff\xff\xff", b"\x0a\x02\x08\x01", b"GET / HTTP/1.1"):
            execute: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/Execute")
            stream = execute()
            await stream.write(garbage)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await read_to_end(stream)
            assert ended.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert await link.call("echo", "1", b"alive", LinkCall()) == b"alive"


async def test_only_gateways_and_operators_may_execute(mesh: Mesh) -> None:
    channel, stub = mesh.stub(Role.REGISTRY)
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Execute().read()
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Drain(worker_pb2.DrainRequest())
    assert not mesh.execution.draining
    registry = mesh.authority.enrol(mesh.folder / "registry", Role.REGISTRY)
    async with WorkerLink(f"127.0.0.1:{mesh.port}", registry, WorkerId(mesh.worker.node_id)) as link:
        assert not await link.wait_connected(0.5)
        with pytest.raises(LinkLost, match=str(RoleRequired.__name__) + "|may not call"):
            await link.call("echo", "1", b"x", LinkCall())


async def test_a_link_believes_only_the_worker_it_is_for(mesh: Mesh) -> None:
    settings = LinkSettings(connect_timeout_s=0.3)
    async with WorkerLink(f"127.0.0.1:{mesh.port}", mesh.gateway, WorkerId("0" * 20), settings=settings) as link:
        assert not await link.wait_connected(0.8)
        with pytest.raises(PenstockError):
            await link.call("echo", "1", b"x", LinkCall())
