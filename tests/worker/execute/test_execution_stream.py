"""One Execute stream without a network: what a gateway writes, what comes back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.worker.v1 import worker_pb2

from runtime.errors import Aborted, InvalidArgument, PenstockError
from runtime.gathering import AtOnce
from worker.execute.execution_stream import BEAT_S, Draining, ExecuteStream, StreamLimits
from worker.execute.frames import load_message
from worker.types import CallContext, Load


@dataclass
class Engine:
    """Calls end when the test says so, by request id."""

    verdicts: dict[str, asyncio.Future[bytes]] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    payloads: dict[str, bytes] = field(default_factory=dict)
    contexts: dict[str, CallContext] = field(default_factory=dict)

    async def infer(self, model: str, version: str, payload: bytes, call: CallContext) -> bytes:
        self.payloads[call.request_id] = payload
        self.contexts[call.request_id] = call
        verdict = self.verdicts.setdefault(call.request_id, asyncio.get_running_loop().create_future())
        return await verdict

    async def stream_infer(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        for number in range(4):
            self.made[call.request_id] += 1
            yield str(number).encode()

    def generate(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        return self.stream_infer(model, version, payload, call)

    @property
    def load(self) -> Load:
        return Load(len(self.verdicts), 0)


@dataclass
class Intake:
    open: int = 0
    why: PenstockError | None = None

    def refusal(self) -> PenstockError | None:
        return self.why

    def began(self, hold_id: str = "") -> None:
        self.open += 1

    def ended(self, hold_id: str = "") -> None:
        self.open -= 1


class Gateway:
    """The other end: a queue in, frames out."""

    def __init__(self, limits: StreamLimits | None = None) -> None:
        self.engine, self.intake = Engine(), Intake()
        self.frames: list[worker_pb2.ResponseFrame] = []
        self._in: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.stream = ExecuteStream(self.engine, self.intake, limits or StreamLimits(), self._take, lambda: b"", AtOnce())

    async def _take(self, message: bytes) -> None:
        self.frames.extend(worker_pb2.ExecuteResponse.FromString(message).frames)

    def send(self, *frames: worker_pb2.RequestFrame) -> None:
        self._in.put_nowait(worker_pb2.ExecuteRequest(frames=frames).SerializeToString())

    def close(self) -> None:
        self._in.put_nowait(None)

    async def run(self) -> None:
        async with asyncio.timeout(5):
            await self.stream.run(self._in.get)

    def of(self, call_id: int) -> list[worker_pb2.ResponseFrame]:
        return [frame for frame in self.frames if frame.call_id == call_id]


def opening(
    call_id: int,
    method: worker_pb2.Method.ValueType = worker_pb2.METHOD_INFER,
    *,
    credit: int = 0,
    payload: bytes = b"p",
    payload_bytes: int = 0,
    end: bool = True,
) -> worker_pb2.RequestFrame:
    opened = worker_pb2.RequestOpen(
        method=method, request_id=str(call_id), credit=credit, payload=payload, payload_bytes=payload_bytes
    )
    return worker_pb2.RequestFrame(call_id=call_id, open=opened, payload_end=end)


def part(call_id: int, data: bytes, *, end: bool) -> worker_pb2.RequestFrame:
    return worker_pb2.RequestFrame(call_id=call_id, data=data, payload_end=end)


def cancel(call_id: int) -> worker_pb2.RequestFrame:
    return worker_pb2.RequestFrame(call_id=call_id, cancel=worker_pb2.RequestCancel())


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_load_says_how_much_is_taken_and_how_much_may_be() -> None:
    told = load_message(Load(in_flight=3, queued_rows=7, max_in_flight=11), draining=True)
    assert (told.in_flight, told.queued_rows, told.max_in_flight, told.draining) == (3, 7, 11, True)


async def test_a_stream_without_answers_hears_how_busy_the_worker_is() -> None:
    """Another gateway's calls are nothing that this stream writes of; a timer tells it, and only what changed."""
    told: list[bytes] = []
    busy = asyncio.Event()
    inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
    loads = iter((b"\x12\x02\x08\x01", b"", b"\x12\x02\x08\x09"))

    async def take(message: bytes) -> None:
        told.append(message)
        if len(told) == 2:
            busy.set()

    stream = ExecuteStream(Engine(), Intake(), StreamLimits(), take, lambda: next(loads, b""), AtOnce())
    running = asyncio.ensure_future(stream.run(inbox.get))
    async with asyncio.timeout(10):
        await busy.wait()
        inbox.put_nowait(None)
        await running
    assert [worker_pb2.ExecuteResponse.FromString(message).load.in_flight for message in told] == [1, 9]


async def test_a_gateway_that_waits_for_an_answer_hears_that_the_worker_is_there_and_an_idle_one_hears_nothing() -> None:
    told: list[bytes] = []
    beaten = asyncio.Event()
    inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
    engine = Engine()

    async def take(message: bytes) -> None:
        told.append(message)
        if len(told) == 3:
            beaten.set()

    stream = ExecuteStream(engine, Intake(), StreamLimits(), take, lambda: b"", AtOnce(), lambda: b"\x12\x02\x08\x05")
    running = asyncio.ensure_future(stream.run(inbox.get))
    async with asyncio.timeout(20):
        await asyncio.sleep(3 * BEAT_S)
        assert not told
        inbox.put_nowait(worker_pb2.ExecuteRequest(frames=[opening(1)]).SerializeToString())
        await beaten.wait()
        assert {worker_pb2.ExecuteResponse.FromString(message).load.in_flight for message in told} == {5}
        engine.verdicts["1"].set_result(b"done")
        inbox.put_nowait(None)
        await running
    assert worker_pb2.ExecuteResponse.FromString(told[-1]).frames[0].data == b"done"


async def test_the_place_that_is_kept_for_a_call_is_named_to_whoever_lets_it_in() -> None:
    gateway, frame = Gateway(), opening(1)
    frame.open.hold_id = "f" * 32
    gateway.send(frame, opening(2))
    gateway.close()
    running = asyncio.ensure_future(gateway.run())
    while len(gateway.engine.verdicts) < 2:
        await asyncio.sleep(0)
    for verdict in gateway.engine.verdicts.values():
        verdict.set_result(b"")
    await running
    assert [gateway.engine.contexts[each].hold_id for each in "12"] == ["f" * 32, ""]


plans = st.lists(
    st.one_of(
        st.tuples(st.just("unary"), st.integers(1, 200)),
        st.tuples(st.just("streaming"), st.integers(1, 200)),
        st.tuples(st.just("parts"), st.integers(1, 200)),
        st.tuples(st.sampled_from(["finish part", "cancel", "answer", "fail", "grant", "turn"]), st.integers(0, 20)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(plans, st.booleans())
def test_every_call_ends_exactly_once(plan: list[tuple[str, int]], cut_off: bool) -> None:
    asyncio.run(_every_call_ends_exactly_once(plan, cut_off))


async def _every_call_ends_exactly_once(plan: list[tuple[str, int]], cut_off: bool) -> None:
    gateway, opened, cancelled, finished = Gateway(), list[int](), set[int](), set[int]()
    running = asyncio.create_task(gateway.run())
    for kind, number in plan:
        known = opened[number % len(opened)] if opened else 0
        if kind in ("unary", "streaming", "parts") and number not in opened:
            opened.append(number)
            method = worker_pb2.METHOD_GENERATE if kind == "streaming" else worker_pb2.METHOD_INFER
            whole = kind != "parts"
            gateway.send(opening(number, method, credit=number % 3, payload_bytes=3, payload=b"ab", end=whole))
        elif kind == "finish part":
            # Frames wait in a queue: what was sent and not read yet still looks as if it were uploading.
            if _uploading(gateway, known) and known not in finished:
                finished.add(known)
                gateway.send(part(known, b"c", end=True))
        elif kind == "cancel":
            cancelled.add(known)
            gateway.send(cancel(known))
        elif kind in ("answer", "fail"):
            verdict = gateway.engine.verdicts.get(str(known))
            if verdict is not None and not verdict.done():
                verdict.set_result(b"ok") if kind == "answer" else verdict.set_exception(Aborted("no"))
        elif kind == "grant":
            gateway.send(worker_pb2.RequestFrame(call_id=known, grant=1))
        else:
            await settle()
    await settle()
    if cut_off:
        gateway.stream.cut_off()
        gateway.close()
    else:
        await _finish(gateway, opened)
    await running
    assert gateway.intake.open == 0
    for call_id in opened:
        ends = [frame for frame in gateway.of(call_id) if frame.end]
        assert len(ends) == 1 or (call_id in cancelled and not ends), (call_id, ends)
        if ends:
            assert gateway.of(call_id)[-1] is ends[0]


def _uploading(gateway: Gateway, call_id: int) -> bool:
    call = gateway.stream._calls.get(call_id)
    return call is not None and call.upload is not None


async def _finish(gateway: Gateway, opened: list[int]) -> None:
    for call_id in opened:
        if _uploading(gateway, call_id):
            gateway.send(part(call_id, b"c", end=True))
        gateway.send(worker_pb2.RequestFrame(call_id=call_id, grant=10))
    await settle()
    for verdict in gateway.engine.verdicts.values():
        if not verdict.done():
            verdict.set_result(b"ok")
    gateway.close()


async def test_answers_outlast_the_gateways_side_being_closed() -> None:
    gateway = Gateway()
    running = asyncio.create_task(gateway.run())
    gateway.send(opening(1))
    gateway.close()
    await settle()
    gateway.engine.verdicts["1"].set_result(b"late")
    await running
    assert [(frame.data, frame.end) for frame in gateway.of(1)] == [(b"late", True)]


@pytest.mark.parametrize(
    "open_call",
    [opening(1, payload=b"ab", payload_bytes=6, end=False), opening(1, worker_pb2.METHOD_GENERATE, credit=1)],
    ids=["half a payload", "out of credit"],
)
async def test_what_no_frame_can_end_any_more_ends_with_the_gateways_side(open_call: worker_pb2.RequestFrame) -> None:
    gateway = Gateway()
    running = asyncio.create_task(gateway.run())
    gateway.send(open_call)
    await settle()
    gateway.close()
    await running
    assert gateway.of(1)[-1].failure.reason == "INVALID_ARGUMENT"
    assert gateway.intake.open == 0


async def test_a_payload_in_parts_is_put_together() -> None:
    gateway = Gateway()
    running = asyncio.create_task(gateway.run())
    gateway.send(opening(1, payload=b"ab", payload_bytes=6, end=False), part(1, b"cd", end=False), part(1, b"ef", end=True))
    await settle()
    assert gateway.engine.payloads["1"] == b"abcdef"
    gateway.engine.verdicts["1"].set_result(b"")
    gateway.close()
    await running


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([opening(1, payload_bytes=101, end=False)], "PAYLOAD_TOO_LARGE"),
        ([opening(1, payload=b"x" * 101)], "PAYLOAD_TOO_LARGE"),
        ([opening(1, payload=b"ab", payload_bytes=3, end=False), part(1, b"cd", end=True)], "PAYLOAD_TOO_LARGE"),
        ([opening(1, payload=b"ab", payload_bytes=0, end=False)], "INVALID_ARGUMENT"),
        ([opening(2, payload_bytes=90, end=False), opening(1, payload_bytes=90, end=False)], "STREAM_FULL"),
        ([opening(2), opening(3), opening(1)], "STREAM_FULL"),
        ([opening(1, worker_pb2.METHOD_UNSPECIFIED)], "INVALID_ARGUMENT"),
    ],
)
async def test_what_goes_beyond_a_limit_is_refused(frames: list[worker_pb2.RequestFrame], reason: str) -> None:
    gateway = Gateway(StreamLimits(payload_bytes=100, upload_bytes=150, calls=2))
    running = asyncio.create_task(gateway.run())
    gateway.send(*frames)
    await settle()
    assert [frame.failure.reason for frame in gateway.of(1)] == [reason]
    gateway.stream.cut_off()
    gateway.close()
    await running
    assert gateway.intake.open == 0


async def test_credit_is_what_a_stream_may_send() -> None:
    gateway = Gateway()
    running = asyncio.create_task(gateway.run())
    gateway.send(opening(1, worker_pb2.METHOD_GENERATE, credit=1))
    await settle()
    assert [frame.data for frame in gateway.of(1)] == [b"0"]
    assert gateway.engine.made["1"] == 2
    gateway.send(worker_pb2.RequestFrame(call_id=1, grant=2))
    await settle()
    assert [frame.data for frame in gateway.of(1)] == [b"0", b"1", b"2"]
    gateway.send(worker_pb2.RequestFrame(call_id=1, grant=1))
    gateway.close()
    await running
    assert [(frame.data, frame.end) for frame in gateway.of(1)][3:] == [(b"3", False), (b"", True)]


@pytest.mark.parametrize(
    "frames",
    [
        [opening(1), opening(1)],
        [opening(1), part(1, b"x", end=True)],
        [worker_pb2.RequestFrame(call_id=1)],
    ],
)
async def test_a_gateway_that_breaks_the_protocol_loses_its_stream_and_its_calls(
    frames: list[worker_pb2.RequestFrame],
) -> None:
    gateway = Gateway()
    gateway.send(opening(7), *frames)
    with pytest.raises(InvalidArgument):
        await gateway.run()
    assert gateway.intake.open == 0


async def test_a_lost_stream_cancels_its_calls() -> None:
    gateway = Gateway()
    running = asyncio.create_task(gateway.run())
    gateway.send(opening(1), opening(2, payload_bytes=9, end=False))
    await settle()
    assert gateway.intake.open == 2
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert gateway.intake.open == 0
    assert gateway.engine.verdicts["1"].cancelled()


async def test_a_refused_call_is_told_why() -> None:
    gateway = Gateway()
    gateway.intake.why = Draining("leaving")
    gateway.send(opening(1, payload_bytes=9, end=False), part(1, b"x", end=True))
    gateway.close()
    await gateway.run()
    assert [(frame.failure.code, frame.failure.reason, frame.end) for frame in gateway.of(1)] == [(14, "DRAINING", True)]
