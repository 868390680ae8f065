"""Who may call on a sealed port, what strangers are told, and what happens to a call that was let in."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import grpc.aio
import pytest
from penstock.worker.v1 import worker_pb2

from runtime.errors import Code, DeadlineExceeded, Internal, InvalidArgument, PenstockError, ResourceExhausted
from runtime.ids import WorkerId
from runtime.sealing import REFUSED, reservation_id, reservation_parts
from runtime.serving import ServerLimits
from runtime.status import error_of
from tests.support.waiting import eventually
from tests.worker.sealed.rig import FULL, MODEL, TENANT, VERSION, SealedPort, infer_request, sealed_port
from worker.execute.execution_stream import Draining
from worker.holds import Hold, HoldBusy, HoldId
from worker.sealed.types import SealedLimits


async def told(port: SealedPort, reservation: str, box: bytes) -> PenstockError:
    """What whoever sends this is told outside of any box."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await port.send(reservation, box)
    return error_of(caught.value)


async def test_a_call_is_served_on_the_reserved_place_as_one_of_its_tenant(port: SealedPort) -> None:
    reservation = await port.reserve()
    request = infer_request(content=b"pixels")
    answer = await port.client(reservation).infer(request, timeout_s=30)
    assert answer.model_name == MODEL
    ((model, version, payload, call),) = port.engine.seen
    assert (model, version, payload) == (MODEL, VERSION, request.SerializeToString())
    assert call.tenant == TENANT
    assert call.deadline_s is not None
    assert port.guard.in_flight == 1, "the place is still kept"
    assert (port.door.answered, port.door.refused) == (1, 0)


async def test_one_after_another_as_often_as_is_liked_until_it_is_released(port: SealedPort) -> None:
    reservation = await port.reserve()
    client = port.client(reservation)
    for _ in range(5):
        await client.infer(infer_request())
    port.holds.release(HoldId(reservation_parts(reservation)[1]))
    with pytest.raises(PenstockError) as caught:
        await client.infer(infer_request())
    assert (caught.value.reason, caught.value.message) == ("SEALED_REFUSED", REFUSED)
    assert port.guard.in_flight == 0


@pytest.mark.parametrize("method", ["stream_infer", "generate"])
async def test_streams_come_piece_by_piece(port: SealedPort, method: str) -> None:
    port.engine.waits = True
    client = port.client(await port.reserve())
    payload = worker_pb2.GenerateRequest(prompt="a secret") if method == "generate" else infer_request()
    number = worker_pb2.METHOD_GENERATE if method == "generate" else worker_pb2.METHOD_STREAM_INFER
    found: list[bytes] = []
    async with aclosing(client.call(number, payload.SerializeToString())) as answers:
        async for answer in answers:
            found.append(answer)
            if len(found) == port.engine.pieces:
                assert not port.engine.gate.is_set(), "all came before the engine had ended"
                port.engine.gate.set()
    assert found == [b"0", b"1", b"2"]


Wrong = Callable[[SealedPort, str], tuple[str, bytes]]


def sealed_elsewhere(port: SealedPort, name: str) -> tuple[str, bytes]:
    box = bytearray(port.box(name))
    box[-1] ^= 1
    return name, bytes(box)


STRANGERS: dict[str, Wrong] = {
    "unknown": lambda port, _: ((other := reservation_id(port.worker_id, "0" * 32)), port.box(other)),
    "no name": lambda port, name: ("whatever", port.box(name)),
    "another worker's": lambda port, name: (
        (other := reservation_id(WorkerId("f" * 20), reservation_parts(name)[1])),
        port.box(other),
    ),
    "wrong secret": lambda port, name: (name, port.box(name, token=b"g" * 32)),
    "no secret": lambda port, name: (name, port.box(name, token=b"")),
    "for another reservation": lambda port, name: (name, port.box(reservation_id(port.worker_id, "0" * 32))),
    "for another worker": lambda port, name: (name, port.box(name, worker_id="f" * 20)),
    "altered": sealed_elsewhere,
    "no box": lambda _, name: (name, b"hello"),
    "empty": lambda _, name: (name, b""),
}


@pytest.mark.parametrize("wrong", STRANGERS)
async def test_a_stranger_is_told_one_sentence_whatever_was_wrong(port: SealedPort, wrong: str) -> None:
    error = await told(port, *STRANGERS[wrong](port, await port.reserve()))
    assert (error.code, error.reason, error.message) == (Code.UNAUTHENTICATED, "SEALED_REFUSED", REFUSED)
    assert not port.engine.seen
    assert port.door.refused == 1


async def test_a_reservation_that_ended_is_as_unknown_as_one_that_never_was(port: SealedPort) -> None:
    reservation = await port.reserve(ttl_s=0.01)
    await eventually(lambda: port.holds.kept == 0)
    error = await told(port, reservation, port.box(reservation))
    assert (error.reason, error.message) == ("SEALED_REFUSED", REFUSED)


async def test_a_hold_of_a_gateway_is_none_of_a_client(port: SealedPort) -> None:
    hold_id = HoldId(secrets.token_hex(16))
    await port.holds.hold(Hold(hold_id, MODEL, VERSION, TENANT, 60.0), wait_s=0)
    name = reservation_id(port.worker_id, hold_id)
    assert (await told(port, name, port.box(name, token=b""))).reason == "SEALED_REFUSED"


async def test_a_recorded_box_is_opened_once(port: SealedPort) -> None:
    reservation = await port.reserve()
    box = port.box(reservation)
    assert len(await port.send(reservation, box)) == 2
    error = await told(port, reservation, box)
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "SEALED_REPLAYED")
    assert len(port.engine.seen) == 1


async def test_two_at_once_on_one_reservation_are_one_too_many(port: SealedPort) -> None:
    port.engine.waits = True
    client = port.client(await port.reserve())
    first = asyncio.ensure_future(client.infer(infer_request()))
    async with asyncio.timeout(10):
        await port.engine.entered.wait()
    with pytest.raises(HoldBusy):
        await client.infer(infer_request())
    port.engine.gate.set()
    await first
    await client.infer(infer_request())


async def test_the_reserved_model_alone_may_be_called(port: SealedPort) -> None:
    client = port.client(await port.reserve())
    for wrong in (infer_request("sums"), infer_request(version="4"), infer_request("sums", "4")):
        with pytest.raises(InvalidArgument, match="reserved is 'digits' version 3"):
            await client.infer(wrong)
    for right in (infer_request(), infer_request(""), infer_request(version=VERSION)):
        await client.infer(right)
    assert {(model, version) for model, version, _, _ in port.engine.seen} == {(MODEL, VERSION)}


async def test_what_goes_wrong_once_the_box_is_open_travels_in_the_box(port: SealedPort) -> None:
    reservation = await port.reserve()
    client = port.client(reservation)
    port.engine.fails = FULL
    with pytest.raises(ResourceExhausted, match="holds 4") as caught:
        await client.infer(infer_request())
    assert caught.value.retry_after_s == 0.25
    port.engine.fails = KeyError("a bug that quotes the payload")
    with pytest.raises(Internal) as broke:
        await client.infer(infer_request())
    assert "quotes" not in broke.value.message
    for payload, method in ((b"\xff", 1), (b"\xff", 3), (b"", 3), (b"", 9)):
        with pytest.raises(InvalidArgument):
            _ = [each async for each in client.call(method, payload)]  # type: ignore[arg-type]
    parts = await port.send(reservation, port.box(reservation, method=9))
    assert not any(b"method" in part.message for part in parts), "sealed, like any answer"


async def test_a_failure_within_a_stream_comes_after_what_was_made(port: SealedPort) -> None:
    port.engine.fails = FULL
    client = port.client(await port.reserve())
    answers = client.call(worker_pb2.METHOD_STREAM_INFER, infer_request().SerializeToString())
    assert [await anext(answers) for _ in range(port.engine.pieces)] == [b"0", b"1", b"2"]
    with pytest.raises(ResourceExhausted):
        await anext(answers)


async def test_a_client_that_leaves_ends_its_call_and_keeps_its_place(port: SealedPort) -> None:
    port.engine.waits = True
    client = port.client(await port.reserve())
    calling = asyncio.ensure_future(client.infer(infer_request()))
    async with asyncio.timeout(10):
        await port.engine.entered.wait()
        calling.cancel()
        await port.engine.cancelled.wait()
    await eventually(lambda: port.intake.open_calls == 0)
    port.engine.waits = False
    await client.infer(infer_request())


async def test_time_that_runs_out_is_told_in_the_box_and_frees_the_place(port: SealedPort) -> None:
    port.engine.waits = True
    reservation = await port.reserve()
    parts = await port.send(reservation, port.box(reservation, timeout_s=0.05))
    assert [bool(part.header) for part in parts] == [True]
    assert port.engine.cancelled.is_set()
    for method in (worker_pb2.METHOD_INFER, worker_pb2.METHOD_STREAM_INFER):
        with pytest.raises(DeadlineExceeded):
            _ = [
                each async for each in port.client(reservation).call(method, infer_request().SerializeToString(), timeout_s=0.2)
            ]
    await eventually(lambda: port.intake.open_calls == 0)
    port.engine.waits = False
    await port.client(reservation).infer(infer_request())


async def test_a_worker_that_drains_takes_none_and_tells_those_it_breaks_off(port: SealedPort) -> None:
    port.engine.waits = True
    client = port.client(await port.reserve())
    calling = asyncio.ensure_future(client.infer(infer_request()))
    async with asyncio.timeout(10):
        await port.engine.entered.wait()
    port.intake.refuses = Draining("this worker is draining")
    with pytest.raises(Draining):
        await client.infer(infer_request())
    port.door.cut_off()
    with pytest.raises(Draining, match="left before the call was done"):
        await calling
    assert port.engine.cancelled.is_set()


async def test_large_calls_and_answers_go_through_whole(port: SealedPort) -> None:
    reservation = await port.reserve()
    content = secrets.token_bytes(3 * 1024 * 1024)
    await port.client(reservation).infer(infer_request(content=content))
    assert port.engine.seen[0][2].endswith(content)


async def test_one_reservation_has_so_many_calls(tmp_path: Path) -> None:
    async with sealed_port(tmp_path, limits=SealedLimits(boxes=2)) as port:
        reservation = await port.reserve()
        client = port.client(reservation)
        for _ in range(2):
            await client.infer(infer_request())
        error = await told(port, reservation, port.box(reservation))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "RESERVATION_WORN")


async def test_the_port_takes_so_many_calls_and_bytes(tmp_path: Path) -> None:
    async with sealed_port(tmp_path, server=ServerLimits(message_bytes=10_000, concurrent_rpcs=1)) as port:
        reservation = await port.reserve()
        error = await told(port, reservation, port.box(reservation, payload=bytes(20_000)))
        assert error.code is Code.RESOURCE_EXHAUSTED
        port.engine.waits = True
        calling = asyncio.ensure_future(port.client(reservation).infer(infer_request()))
        async with asyncio.timeout(10):
            await port.engine.entered.wait()
        assert (await told(port, reservation, port.box(reservation))).code is Code.RESOURCE_EXHAUSTED
        port.engine.gate.set()
        await calling


async def test_nothing_of_a_box_reaches_the_log(port: SealedPort, capsys: pytest.CaptureFixture[str]) -> None:
    client = port.client(await port.reserve())
    port.engine.fails = KeyError("MARKER-in-an-error")
    with pytest.raises(Internal):
        await client.infer(infer_request(content=b"MARKER-in-a-tensor"))
    with pytest.raises(InvalidArgument):
        await client.infer(infer_request("MARKER-as-a-model"))
    printed = "".join(capsys.readouterr())
    assert "sealed_call_broke" in printed, "the log was captured at all"
    assert "MARKER" not in printed
