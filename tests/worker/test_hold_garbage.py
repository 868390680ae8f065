"""Whatever is asked of a worker's places, on the inner port and on the sealed one: answered with what is wrong, the places as
many as before, nothing of a box in the log; and clients that stop reading lose their place to others.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog.testing
from google.protobuf.message import Message
from penstock.worker.v1 import sealed_pb2, worker_pb2

import worker.sealed.servicer
from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.identity import Role
from runtime.sealing import reservation_parts
from tests.fuzz.choices import Choices
from tests.fuzz.nonsense import TEXTS, spoilt_everywhere
from tests.registry.garbage import garbage
from tests.scheduler.mesh import Mesh
from tests.scheduler.whole import MODEL, WORKER_METHODS, Answer, RealWorker, called, methods_of, real_worker, request_class
from tests.support.waiting import eventually
from tests.worker.sealed.rig import TOKEN, SealedPort, infer_request, sealed_port
from worker.holds import HoldId

HOLD = "0123456789abcdef" * 2
HIDDEN = b"hush-9f3c"
"""In every box, and in nothing else."""

BUGS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
GOOD: Mapping[str, Mapping[str, Any]] = {
    "WorkerService/HoldSlot": {"hold_id": HOLD, "model": MODEL, "version": "1", "tenant": "acme", "ttl_ms": 1},
    "WorkerService/ReleaseSlot": {"hold_id": HOLD},
}
(SEALED,) = methods_of(sealed_pb2).values()


@dataclass(slots=True)
class Places:
    """A worker's places, asked by a scheduler."""

    worker: RealWorker
    channel: grpc.aio.Channel

    async def ask(self, method: str, request: Message | bytes) -> Answer:
        answer = await called(self.channel, WORKER_METHODS[method], request)
        assert answer.code not in BUGS, answer
        assert answer.error is None or answer.error.message
        return answer

    async def hold(self, **fields: Any) -> Answer:
        asked = {**GOOD["WorkerService/HoldSlot"], "hold_id": secrets.token_hex(16), **fields}
        return await self.ask("WorkerService/HoldSlot", worker_pb2.HoldSlotRequest(**asked))


@asynccontextmanager
async def opened(folder: Path, places: int = 4) -> AsyncIterator[Places]:
    mesh = Mesh(folder, SystemClock())
    async with real_worker(mesh, places=places) as running:
        scheduler = mesh.node("scheduler", Role.SCHEDULER)
        async with inner_channel(f"127.0.0.1:{running.port}", scheduler, Role.WORKER) as channel:
            yield Places(running, channel)


@pytest.fixture
async def places(tmp_path: Path) -> AsyncIterator[Places]:
    with structlog.testing.capture_logs() as logged:
        async with opened(tmp_path) as made:
            yield made
            guard = made.worker.inference.guard
            await eventually(lambda: guard.in_flight == 0 and made.worker.inference.holds.waiting == 0)
            assert (await made.hold()).code is grpc.StatusCode.OK
    assert [entry for entry in logged if entry["log_level"] in ("error", "critical")] == []


@pytest.mark.parametrize("method", GOOD)
async def test_each_field_at_its_worst(places: Places, method: str) -> None:
    """Also waits without end, and places kept for ever: both are given back, or never given."""
    good = request_class(WORKER_METHODS[method])(**GOOD[method])
    for what, bad in spoilt_everywhere(good):
        answer = await places.ask(method, bad)
        hold_id = getattr(bad, "hold_id", HOLD)
        if answer.code is grpc.StatusCode.OK:
            await places.ask("WorkerService/ReleaseSlot", worker_pb2.ReleaseSlotRequest(hold_id=hold_id))
        elif what.startswith(("hold_id", "ttl_ms", "wait_ms", "token")):
            assert answer.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED), what


@pytest.mark.parametrize("method", GOOD)
async def test_any_message(places: Places, method: str) -> None:
    for seed in range(200):
        choices = Choices(seed.to_bytes(2, "big") * 200)
        request: Any = garbage(choices, WORKER_METHODS[method].input_type, [MODEL, "1", HOLD, "f" * 32])
        if method.endswith("HoldSlot"):
            request.wait_ms, request.ttl_ms = min(request.wait_ms, 2), min(request.ttl_ms, 2)
        await places.ask(method, request)


@pytest.mark.parametrize("raw", [b"\x08", b"\xff" * 1_000, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xc3\x28"])
async def test_what_is_no_message(places: Places, raw: bytes) -> None:
    for method in GOOD:
        assert (await places.ask(method, raw)).code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("field", ["model", "version", "tenant"])
async def test_names_are_bounded(places: Places, field: str) -> None:
    """They are kept for as long as the place is."""
    assert (await places.hold(**{field: "9" * 257})).code is grpc.StatusCode.INVALID_ARGUMENT
    within = await places.hold(**{field: "9" * 256})
    assert within.code is (grpc.StatusCode.OK if field == "tenant" else grpc.StatusCode.NOT_FOUND)


async def test_a_scheduler_that_asks_without_end_finds_a_bound_and_its_leaving_frees_all(tmp_path: Path) -> None:
    async with opened(tmp_path, places=2) as places:
        guard, holds = places.worker.inference.guard, places.worker.inference.holds
        with guard.enter("somebody"), guard.enter("somebody"):
            asking = [asyncio.create_task(places.hold(wait_ms=600_000, ttl_ms=600_000)) for _ in range(600)]
            await eventually(lambda: holds.waiting + sum(each.done() for each in asking) == 600)
            assert holds.waiting <= 256
            assert {each.result().code for each in asking if each.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            for each in asking:
                each.cancel()
            await eventually(lambda: holds.waiting == 0)
        assert guard.in_flight == 0


async def test_one_id_is_one_place(places: Places) -> None:
    """Of two that hold under one id the second is refused, and takes nothing."""
    first = await places.hold(hold_id=HOLD, ttl_ms=60_000)
    second = await places.hold(hold_id=HOLD, ttl_ms=60_000)
    assert (first.code, second.code) == (grpc.StatusCode.OK, grpc.StatusCode.ALREADY_EXISTS)
    assert places.worker.inference.guard.in_flight == 1
    await places.ask("WorkerService/ReleaseSlot", worker_pb2.ReleaseSlotRequest(hold_id=HOLD))
    assert places.worker.inference.guard.in_flight == 0


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[SealedPort]:
    with structlog.testing.capture_logs() as logged:
        async with sealed_port(tmp_path) as made:
            yield made
            reservation = await made.reserve()
            assert (await made.client(reservation).infer(infer_request(), timeout_s=20)).model_name
            await eventually(lambda: made.intake.open_calls == 0)
    for entry in logged:
        assert entry["log_level"] not in ("error", "critical"), entry
        assert HIDDEN.decode() not in str(entry)


async def sealed(port: SealedPort, request: Message | bytes) -> Answer:
    answer = await called(port.channel, SEALED, request, at_most=10)
    assert answer.code not in BUGS, answer
    return answer


def boxed(port: SealedPort, reservation: str, **changes: Any) -> sealed_pb2.CallSealedRequest:
    payload = infer_request(content=HIDDEN).SerializeToString()
    return sealed_pb2.CallSealedRequest(
        reservation_id=reservation, box=port.box(reservation, **{"payload": payload, **changes})
    )


async def test_a_sealed_call_at_its_worst(port: SealedPort) -> None:
    """Strangers are told one sentence, however wrong it was."""
    sentences = set()
    for what, bad in spoilt_everywhere(boxed(port, await port.reserve())):
        answer = await sealed(port, bad)
        assert answer.code is grpc.StatusCode.UNAUTHENTICATED, what
        assert answer.error is not None
        sentences.add(answer.error.message)
    assert len(sentences) == 1


async def test_a_box_with_anything_in_it(port: SealedPort) -> None:
    """From the reservation's owner: what is wrong is told in the answer, under its own key."""
    reservation = await port.reserve()
    contents = [text.encode() for text in TEXTS] + [HIDDEN * 1_000, b"\xff" * 1_000]
    for payload in contents:
        for method in (0, 1, 2, 3, 4, 99, 2**31 - 1):
            answer = await sealed(port, boxed(port, reservation, payload=payload, method=method))
            assert answer.code is grpc.StatusCode.OK
    for changes in (
        {"token": b""},
        {"token": TOKEN + b"x"},
        {"reply_key": b""},
        {"reply_key": b"k" * 33},
        {"worker_id": "b" * 20},
    ):
        assert (await sealed(port, boxed(port, reservation, **changes))).code is grpc.StatusCode.UNAUTHENTICATED
    for timeout_s in (1e-6, 1e12):
        assert (await sealed(port, boxed(port, reservation, timeout_s=timeout_s, request_id="r" * 100_000))).messages
    assert port.guard.in_flight == 1, "the reservation's own place, and no other"


async def test_a_client_that_stops_reading_midway_lets_the_next_one_in(
    port: SealedPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is broken off; the place is the reservation's still, and nobody else's meanwhile."""
    monkeypatch.setattr(worker.sealed.servicer, "WRITE_S", 0.2)
    port.engine.pieces, port.engine.padding = 1_000, bytes(1_000_000)
    reservation = await port.reserve()
    call = port.stub.CallSealed(boxed(port, reservation, method=worker_pb2.METHOD_STREAM_INFER), timeout=60)
    await call.read()
    await eventually(lambda: port.intake.open_calls == 1)
    await eventually(lambda: port.intake.open_calls == 0, patience_s=30)
    assert port.guard.in_flight == 1
    port.engine.pieces = 1
    assert (await port.client(reservation).infer(infer_request(), timeout_s=20)).model_name
    call.cancel()
    port.holds.release(HoldId(reservation_parts(reservation)[1]))
    assert port.guard.in_flight == 0
