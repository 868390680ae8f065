"""A request that finds no place: the scheduler's queue, and what happens where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import pytest

from gateway.links.types import CallContext, LinkLost, Method, WorkerBusy
from gateway.refusals import FleetFull, ModelCold, ModelUnknown
from gateway.types import CapacityAsk, Held
from placement.types import ANY_REGION, CopyState, Request
from runtime.errors import DeadlineExceeded, FailedPrecondition, NotFound, PenstockError, ResourceExhausted
from runtime.ids import ModelName, ModelVersion, WorkerId
from tests.gateway.fakes import FakeLink, copy_of, wish_of, worker_of
from tests.gateway.routed import CALL, M, Routed, routed

ANSWERS = "penstock_gateway_capacity_waits_total"


def held_at(worker: str, hold_id: str = "h1") -> Held:
    return Held(WorkerId(worker), ModelVersion("1"), hold_id)


@dataclass
class Queue:
    """A scheduler's queue: each ask is answered by the next of `says`, the last one for ever, once the gate is open."""

    says: list[Held | PenstockError | None] = field(default_factory=lambda: [None])
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asks: list[CapacityAsk] = field(default_factory=list)
    withdrawn: int = 0

    async def await_capacity(self, ask: CapacityAsk) -> Held | None:
        self.asks.append(ask)
        said = self.says[min(len(self.asks), len(self.says)) - 1]
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.withdrawn += 1
            raise
        if isinstance(said, PenstockError):
            raise said
        return said


def queue(*says: Held | PenstockError | None, is_open: bool = True) -> Queue:
    made = Queue(list(says))
    if is_open:
        made.gate.set()
    return made


async def until(reached: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not reached():
            await asyncio.sleep(0)


def full() -> dict[str, FakeLink]:
    return {"a": FakeLink("127.0.0.1:1", gate=asyncio.Event())}


async def filled(mesh: Routed) -> asyncio.Task[bytes]:
    first = asyncio.create_task(mesh.router.infer(M, b"first", CALL))
    await until(lambda: mesh.links["a"].in_flight)
    return first


ONE = worker_of("a", copy_of("m"), max_in_flight=1)


async def test_a_full_fleet_is_waited_for_in_the_schedulers_queue_and_the_place_kept_is_used() -> None:
    links, waits = full(), queue(held_at("a"), is_open=False)
    async with routed(ONE, links=links, capacity=waits) as mesh:
        first = await filled(mesh)
        call = CallContext(tenant="t", priority=2, deadline_s=asyncio.get_running_loop().time() + 3)
        waiting = asyncio.create_task(mesh.router.infer(replace(M, session_key="s"), b"x", call))
        await until(lambda: waits.asks)
        assert links["a"].calls == 1
        assert links["a"].gate is not None
        links["a"].gate.set()
        waits.gate.set()
        assert await waiting == b"x"
        await first
    asked, sent = waits.asks[0], links["a"].seen[-1]
    assert (asked.model, asked.tenant, asked.priority, asked.session_key, asked.exclude) == ("m", "t", 2, "s", frozenset())
    assert asked.until_s == call.deadline_s
    assert (sent.hold_id, sent.tenant) == ("h1", "t")
    assert mesh.in_flight() == {"a": 0}


async def test_a_stream_waits_likewise() -> None:
    links, waits = full(), queue(held_at("a"), is_open=False)
    async with routed(ONE, links=links, capacity=waits) as mesh:
        first = await filled(mesh)
        async with aclosing(mesh.router.stream(Method.GENERATE, M, b"x", CALL)) as answers:
            waiting = asyncio.ensure_future(anext(answers))
            await until(lambda: waits.asks)
            assert links["a"].gate is not None
            links["a"].gate.set()
            waits.gate.set()
            assert await waiting == b"x0"
        await first
    assert [context.hold_id for context in links["a"].seen] == ["", "h1"]


async def test_a_kept_place_is_used_outside_of_the_room_that_is_known_here() -> None:
    """The worker keeps it whatever this gateway believes of how full the worker is."""
    links, waits = full(), queue(held_at("a"))
    async with routed(ONE, links=links, capacity=waits) as mesh:
        first = await filled(mesh)
        waiting = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await until(lambda: links["a"].calls == 2)
        assert mesh.in_flight() == {"a": 2}
        assert links["a"].gate is not None
        links["a"].gate.set()
        assert (await first, await waiting) == (b"first", b"x")


async def test_where_the_scheduler_gives_none_a_full_fleet_is_said_at_once() -> None:
    async with routed(ONE, links=full(), capacity=queue(None)) as mesh:
        first = await filled(mesh)
        with pytest.raises(FleetFull) as caught:
            await mesh.router.infer(M, b"x", CALL)
        assert caught.value.retry_after_s is not None
        assert mesh.counted(ANSWERS, outcome="nobody") == 1
        first.cancel()


@pytest.mark.parametrize("said", [ResourceExhausted("queue full", retry_after_s=7.0), FailedPrecondition("no GPU has it")])
async def test_what_the_scheduler_says_to_the_caller_reaches_the_caller(said: PenstockError) -> None:
    async with routed(ONE, links=full(), capacity=queue(said)) as mesh:
        first = await filled(mesh)
        with pytest.raises(type(said)) as caught:
            await mesh.router.infer(M, b"x", CALL)
        assert caught.value.retry_after_s == said.retry_after_s
        first.cancel()


async def test_a_deadline_that_passes_in_the_queue_is_the_callers() -> None:
    async with routed(ONE, links=full(), capacity=queue(DeadlineExceeded("too long"))) as mesh:
        first = await filled(mesh)
        with pytest.raises(FleetFull, match="too long"):  # none was set: the queue's patience ended, not the caller's
            await mesh.router.infer(M, b"x", CALL)
        now_s = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded, match="holds as many"):
            await mesh.router.infer(M, b"x", CallContext(deadline_s=now_s))
        first.cancel()


async def test_a_caller_that_goes_leaves_the_queue() -> None:
    waits = queue(held_at("a"), is_open=False)
    async with routed(ONE, links=full(), capacity=waits) as mesh:
        first = await filled(mesh)
        waiting = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await until(lambda: waits.asks)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waits.withdrawn == 1
        assert mesh.in_flight() == {"a": 1}
        first.cancel()


async def test_only_so_many_wait() -> None:
    waits = queue(held_at("a"), is_open=False)
    async with routed(ONE, links=full(), capacity=waits, waiters=2) as mesh:
        first = await filled(mesh)
        waiting = [asyncio.create_task(mesh.router.infer(M, b"x", CALL)) for _ in range(2)]
        await until(lambda: len(waits.asks) == 2)
        with pytest.raises(FleetFull):
            await mesh.router.infer(M, b"x", CALL)
        assert len(waits.asks) == 2
        assert mesh.counted(ANSWERS, outcome="too_many") == 1
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        waiting[0] = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await until(lambda: len(waits.asks) == 3)  # there is room again
        for each in (*waiting, first):
            each.cancel()


async def test_new_requests_that_find_room_do_not_stand_back_for_those_that_wait() -> None:
    waits = queue(held_at("a"), is_open=False)
    async with routed(ONE, links=full(), capacity=waits) as mesh:
        first = await filled(mesh)
        waiting = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await until(lambda: waits.asks)
        mesh.tell(ONE, worker_of("b", copy_of("m")))
        assert await mesh.router.infer(M, b"y", CALL) == b"y"
        assert mesh.links["b"].calls == 1
        waiting.cancel()
        first.cancel()


async def test_a_worker_that_is_fuller_than_was_known_sends_the_request_to_the_queue() -> None:
    """Other gateways fill it: its own answer is what counts, and it is not excluded from what the scheduler may give."""
    links = {each: FakeLink("127.0.0.1:1", [WorkerBusy("full"), lambda sent: sent]) for each in ("a", "b")}
    waits = queue(held_at("a"))
    async with routed(worker_of("a", copy_of("m")), worker_of("b", copy_of("m")), links=links, capacity=waits) as mesh:
        assert await mesh.router.infer(M, b"x", CALL) == b"x"
    assert (links["a"].calls, links["b"].calls) == (2, 1)
    assert waits.asks[0].exclude == frozenset()
    assert [context.hold_id for context in links["a"].seen] == ["", "h1"]


async def test_a_worker_that_failed_the_request_is_not_asked_for_it_again() -> None:
    links = {
        "a": FakeLink("127.0.0.1:1", [LinkLost("gone")]),
        "b": FakeLink("127.0.0.1:1", [WorkerBusy("full"), lambda sent: sent]),
    }
    waits = queue(held_at("b"))
    async with routed(worker_of("a", copy_of("m")), worker_of("b", copy_of("m")), links=links, capacity=waits) as mesh:
        assert await mesh.router.infer(M, b"x", CALL) == b"x"
    assert waits.asks[0].exclude == {"a"}


async def test_a_model_whose_own_queue_is_full_is_not_waited_for() -> None:
    """Triton's max_queue_size says that its callers rather be refused."""
    links = {"a": FakeLink("127.0.0.1:1", [ResourceExhausted("the model's queue is full")])}
    waits = queue(held_at("a"))
    async with routed(worker_of("a", copy_of("m")), links=links, capacity=waits) as mesh:
        with pytest.raises(ResourceExhausted, match="queue is full"):
            await mesh.router.infer(M, b"x", CALL)
    assert not waits.asks


async def test_a_lost_place_is_asked_for_again_but_not_for_ever() -> None:
    links = {"a": FakeLink("127.0.0.1:1", [WorkerBusy("full")])}
    waits = queue(held_at("a"))
    async with routed(worker_of("a", copy_of("m")), links=links, capacity=waits) as mesh:
        with pytest.raises(WorkerBusy):
            await mesh.router.infer(M, b"x", CALL)
    assert len(waits.asks) == 3


@pytest.mark.parametrize("states", [(), (CopyState.LOADING,)])
async def test_a_cold_model_is_waited_for_in_the_queue(states: tuple[CopyState, ...]) -> None:
    waits = queue(held_at("a"), is_open=False)
    async with routed(capacity=waits) as mesh:
        mesh.tell(worker_of("a", *(copy_of("m", state=state) for state in states)), wishes=(wish_of("m"),))
        waiting = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await until(lambda: waits.asks)
        mesh.tell(worker_of("a", copy_of("m")), wishes=(wish_of("m"),))
        waits.gate.set()
        assert await waiting == b"x"
    assert mesh.links["a"].seen[0].hold_id == "h1"


async def test_a_model_that_is_loaded_on_demand_is_demanded_by_asking() -> None:
    waits = queue(held_at("a"), is_open=False)
    async with routed(capacity=waits) as mesh:
        mesh.tell(worker_of("a"), wishes=(wish_of("m", copies=0, max_copies=2), wish_of("n", copies=0)))
        assert mesh.fleet.placed("m")
        assert not list(mesh.fleet.expected())
        with pytest.raises(ModelUnknown):  # what nobody wants is not loaded for whoever asks
            await mesh.router.infer(Request(ModelName("n")), b"x", CALL)
        waiting = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await until(lambda: waits.asks)
        mesh.tell(worker_of("a", copy_of("m")))
        waits.gate.set()
        assert await waiting == b"x"
        assert mesh.router.ledger.drain(1e9)[ANY_REGION, ModelName("m"), ModelVersion("1")].missed == 1


async def test_a_place_at_a_worker_that_this_gateway_hears_of_later_is_reached_all_the_same() -> None:
    waits = queue(held_at("b"))
    async with routed(capacity=waits) as mesh:
        mesh.tell(worker_of("a"), wishes=(wish_of("m"),))
        waiting = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await asyncio.sleep(0.01)
        mesh.tell(worker_of("a"), worker_of("b", copy_of("m")), wishes=(wish_of("m"),))
        assert await waiting == b"x"
        assert mesh.links["b"].seen[0].hold_id == "h1"


async def test_a_place_that_cannot_be_reached_is_let_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.places._HELD_WAIT_S", 0.01)
    waits = queue(held_at("nowhere"))
    async with routed(capacity=waits, cold_wait_s=0.05) as mesh:
        mesh.tell(worker_of("a"), wishes=(wish_of("m"),))
        with pytest.raises(ModelCold):
            await mesh.router.infer(M, b"x", CALL)
    assert len(waits.asks) <= 3


@pytest.mark.parametrize("said", [None, NotFound("no wish for it"), PenstockError("a bug")])
async def test_without_an_answer_a_cold_model_is_waited_for_here(said: PenstockError | None) -> None:
    async with routed(capacity=queue(said)) as mesh:
        mesh.tell(worker_of("a", copy_of("m", state=CopyState.LOADING)), wishes=(wish_of("m"),))
        waiting = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        mesh.tell(worker_of("a", copy_of("m")), wishes=(wish_of("m"),))
        assert await waiting == b"x"
        assert mesh.links["a"].seen[0].hold_id == ""


async def test_a_sequence_waits_for_nobody_but_its_own_worker() -> None:
    """Its state is there: a place elsewhere is of no use to it."""
    own = replace(M, session_key="t/m/1", sticky=True)
    waits = queue(held_at("b"))
    async with routed(ONE, links=full(), capacity=waits) as mesh:
        first = asyncio.create_task(mesh.router.infer(own, b"x", CALL))
        await until(lambda: mesh.links["a"].in_flight)
        mesh.tell(ONE, worker_of("b", copy_of("m")))
        with pytest.raises(FleetFull):
            await mesh.router.infer(own, b"y", CALL)
        assert not waits.asks
        mesh.fleet.state.forget_session(M.model, own.session_key)
        assert await mesh.router.infer(own, b"z", CALL) == b"z"  # it has ended: another of its name begins anywhere
        first.cancel()


async def test_a_sequence_that_began_on_a_kept_place_stays_there() -> None:
    own, waits = replace(M, session_key="t/m/2", sticky=True), queue(held_at("b"))
    async with routed(capacity=waits) as mesh:
        mesh.tell(worker_of("a"), worker_of("b", copy_of("m", state=CopyState.LOADING)), wishes=(wish_of("m"),))
        waiting = asyncio.create_task(mesh.router.infer(own, b"x", CALL))
        await until(lambda: waits.asks)
        mesh.tell(worker_of("a", copy_of("m")), worker_of("b", copy_of("m")))
        await waiting
        for _ in range(8):
            await mesh.router.infer(own, b"x", CALL)
        assert (mesh.links["a"].calls, mesh.links["b"].calls) == (0, 9)


async def test_a_copy_can_be_waited_for_without_sending_anything() -> None:
    async with routed() as mesh:
        mesh.tell(worker_of("a"), wishes=(wish_of("m", copies=0, max_copies=1),))
        waiting = asyncio.create_task(mesh.router.warm(M, CALL))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        mesh.tell(worker_of("a", copy_of("m")))
        await waiting
        assert mesh.links["a"].calls == 0
        assert mesh.router.ledger.drain(1e9)[ANY_REGION, ModelName("m"), ModelVersion("1")].missed == 1
        await mesh.router.warm(M, CALL)
        assert not mesh.router.ledger.drain(1e9)
        with pytest.raises(ModelUnknown):
            await mesh.router.warm(Request(ModelName("x")), CALL)
