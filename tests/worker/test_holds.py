"""Places kept for requests that are to come: they go to those who waited, and every one comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import AlreadyExists, Code, Unavailable
from tests.worker.virtual_time import VirtualLoop, run_virtually
from worker.holds import Hold, HoldBusy, HoldGone, HoldId, Holds
from worker.quota import Admission, QuotaGuard, QuotaPolicy, TenantQuotaReached, WorkerFull

TOKEN = b"t" * 32
NOT_TOLD_APART = 1.0


def asked(number: int, tenant: str = "a", *, ttl_s: float = 2.0, token: bytes = b"", model: str = "m") -> Hold:
    return Hold(HoldId(f"{number:032x}"), model, "1", tenant, ttl_s, token)


class Worker:
    """A guard, its holds, and requests in flight."""

    def __init__(self, places: int = 1, share: float = NOT_TOLD_APART, most: int = 0, max_waiting: int = 256) -> None:
        self.guard = QuotaGuard(QuotaPolicy(places, share, most))
        self.holds = Holds(self.guard, max_waiting=max_waiting)
        self.granted: list[int] = []

    def ask(self, number: int, tenant: str = "a", *, wait_s: float = 60.0, **options: Any) -> asyncio.Task[None]:
        async def waits() -> None:
            room: Callable[[], float] = options.pop("room", lambda: float("inf"))
            await self.holds.hold(asked(number, tenant, **options), wait_s=wait_s, room=room)
            self.granted.append(number)

        return asyncio.get_running_loop().create_task(waits())

    def enter(self, number: int, tenant: str = "a") -> Admission:
        return self.holds.enter(tenant, asked(number).hold_id)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def virtually(body: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """The test, over a loop whose hours pass in no time."""

    def test() -> None:
        run_virtually(lambda _: body())

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


@virtually
async def test_a_free_place_is_kept_at_once_and_counts_as_in_flight() -> None:
    worker = Worker(places=2)
    await worker.ask(1)
    assert (worker.guard.in_flight, worker.holds.kept, worker.holds.waiting) == (1, 1, 0)


@virtually
async def test_a_place_that_comes_back_goes_to_the_oldest_that_waits_and_to_no_new_request() -> None:
    worker = Worker()
    running = worker.guard.enter("a")
    waits = [worker.ask(1), worker.ask(2)]
    await settle()
    running.__exit__()
    with pytest.raises(WorkerFull):
        worker.guard.enter("quick")
    await settle()
    assert worker.granted == [1]
    assert (worker.guard.in_flight, worker.holds.waiting) == (1, 1)
    with worker.enter(1), pytest.raises(WorkerFull):
        worker.guard.enter("quick")
    await settle()
    assert worker.granted == [1, 2]
    await asyncio.gather(*waits)


@virtually
async def test_a_request_enters_once_on_its_place_and_then_as_any_other() -> None:
    worker = Worker(places=2)
    await worker.ask(1)
    with worker.enter(1):
        assert (worker.guard.in_flight, worker.holds.kept) == (1, 0)
        with worker.enter(1):
            assert worker.guard.in_flight == 2
            with pytest.raises(WorkerFull):
                worker.enter(1)
    assert worker.guard.in_flight == 0


@virtually
async def test_an_unused_place_comes_back_when_its_time_is_over() -> None:
    worker = Worker()
    await worker.ask(1, ttl_s=2.0)
    waits = worker.ask(2)
    await asyncio.sleep(1.9)
    assert worker.granted == [1]
    await asyncio.sleep(0.2)
    assert worker.granted == [1, 2]
    assert worker.holds.expired == 1
    await waits
    with worker.enter(2):
        await asyncio.sleep(10)  # its time does not run while it is used
        assert worker.guard.in_flight == 1


@virtually
async def test_a_place_stays_while_its_request_comes_in_parts_and_comes_back_if_that_never_enters() -> None:
    worker = Worker()
    await worker.ask(1, ttl_s=2.0)
    worker.holds.expect(asked(1).hold_id)
    await asyncio.sleep(10)
    assert worker.guard.in_flight == 1
    worker.holds.forgo(asked(1).hold_id)
    assert worker.guard.in_flight == 0
    await worker.ask(2)
    worker.holds.expect(asked(2).hold_id)
    with worker.enter(2):
        worker.holds.forgo(asked(2).hold_id)  # it has entered: nothing is kept for it
        assert worker.guard.in_flight == 1
    await worker.ask(3, token=TOKEN, ttl_s=5.0)
    worker.holds.forgo(asked(3).hold_id)
    worker.holds.expect(asked(3).hold_id)
    await asyncio.sleep(6)  # a reservation's time is its own
    assert (worker.guard.in_flight, worker.holds.expired) == (0, 1)


@virtually
async def test_one_that_got_no_place_in_time_is_told_what_was_seen() -> None:
    worker = Worker()
    with worker.guard.enter("a"):
        with pytest.raises(WorkerFull, match=r"no place came free within 0 s; 1 requests are in flight") as refused:
            await worker.ask(1, wait_s=0)
        assert refused.value.code is Code.RESOURCE_EXHAUSTED
        with pytest.raises(WorkerFull, match="within 3 s"):
            await worker.ask(2, wait_s=3)
    assert (worker.guard.in_flight, worker.holds.waiting) == (0, 0)


@virtually
async def test_so_many_may_wait_and_no_more() -> None:
    worker = Worker(max_waiting=2)
    with worker.guard.enter("a"):
        waits = [worker.ask(1), worker.ask(2)]
        await settle()
        with pytest.raises(WorkerFull, match="2 holds wait for a place here, as many as may"):
            await worker.ask(3)
        assert worker.holds.waiting == 2
    await settle()
    assert worker.granted == [1]
    worker.holds.release(asked(1).hold_id)
    await asyncio.gather(*waits)


@virtually
async def test_who_goes_away_has_withdrawn_also_as_its_place_comes() -> None:
    worker = Worker()
    running = worker.guard.enter("a")
    waits = [worker.ask(1), worker.ask(2)]
    await settle()
    waits[0].cancel()
    await settle()
    assert worker.holds.waiting == 1
    running.__exit__()  # grants 2, which is cancelled before it runs
    waits[1].cancel()
    await settle()
    assert (worker.guard.in_flight, worker.holds.kept, worker.granted) == (0, 0, [])


@virtually
async def test_release_ends_a_hold_that_waits_one_that_is_kept_and_none() -> None:
    worker = Worker()
    await worker.ask(1)
    waits = worker.ask(2)
    await settle()
    worker.holds.release(asked(2).hold_id)
    with pytest.raises(HoldGone):
        await waits
    worker.holds.release(asked(1).hold_id)
    worker.holds.release(asked(1).hold_id)
    assert (worker.guard.in_flight, worker.holds.kept) == (0, 0)


@virtually
async def test_an_id_is_used_once_at_a_time() -> None:
    worker = Worker()
    await worker.ask(1)
    with pytest.raises(AlreadyExists):
        await worker.ask(1)
    waits = worker.ask(2)
    await settle()
    with pytest.raises(AlreadyExists):
        await worker.ask(2)
    waits.cancel()
    await settle()


@virtually
async def test_a_tenant_that_has_its_part_is_passed_over_until_it_has_less() -> None:
    worker = Worker(places=4, most=2)
    first, second = worker.guard.enter("greedy"), worker.guard.enter("greedy")
    waits = [worker.ask(1, "greedy"), worker.ask(2, "modest")]
    await settle()
    assert worker.granted == [2]
    first.__exit__()
    await asyncio.gather(*waits)
    assert worker.granted == [2, 1]
    with pytest.raises(TenantQuotaReached):
        worker.guard.enter("greedy")
    second.__exit__()


@virtually
async def test_a_place_counts_for_the_tenant_whose_request_came_within_that_ones_bound() -> None:
    worker = Worker(places=4, most=1)
    await worker.ask(1, "a")
    await worker.ask(2, "b")
    with worker.enter(1, "c"):
        worker.guard.enter("a")  # nothing of a's is counted any more
        with pytest.raises(TenantQuotaReached):
            worker.enter(2, "c")
    assert worker.holds.kept == 0  # whoever was refused does not come again: its place came back
    assert worker.guard.in_flight == 1


@virtually
async def test_a_hold_waits_for_room_in_the_models_own_queue_too() -> None:
    worker, pending = Worker(places=8), [1]
    waits = [worker.ask(number, room=lambda: 2 - pending[0]) for number in (1, 2)]
    await worker.ask(3, model="other")
    await settle()
    assert worker.granted == [1, 3]
    pending[0] = 0
    worker.guard.enter("a").__exit__()  # something ended, so those that wait are asked again
    await asyncio.gather(*waits)
    assert worker.granted == [1, 3, 2]


@virtually
async def test_a_reservation_stays_while_its_requests_come_and_go_one_at_a_time() -> None:
    worker = Worker(share=0.9, places=4)
    await worker.ask(1, ttl_s=60, token=TOKEN)
    reserved = worker.holds.reserved(asked(1).hold_id)
    assert reserved is not None
    assert (reserved.tenant, reserved.model, reserved.token_sha256) == ("a", "m", TOKEN)
    for _ in range(3):
        with worker.holds.enter_reserved(asked(1).hold_id) as admission:
            admission.queue("m", waiting=0, places=2)
            assert worker.guard.in_flight == 1
            with pytest.raises(HoldBusy):
                worker.holds.enter_reserved(asked(1).hold_id)
    assert worker.guard.in_flight == 1
    await asyncio.sleep(61)
    assert (worker.guard.in_flight, worker.guard.tenants) == (0, 0)
    assert worker.holds.reserved(asked(1).hold_id) is None
    with pytest.raises(HoldGone):
        worker.holds.enter_reserved(asked(1).hold_id)


@virtually
async def test_a_reservations_request_goes_on_to_its_end_when_the_reservation_has_ended() -> None:
    worker = Worker()
    await worker.ask(1, ttl_s=5, token=TOKEN)
    with worker.holds.enter_reserved(asked(1).hold_id):
        await asyncio.sleep(6)
        assert (worker.guard.in_flight, worker.holds.kept) == (1, 0)
    assert worker.guard.in_flight == 0


@virtually
async def test_a_gateway_gets_nothing_by_a_reservations_id_nor_a_stranger_by_a_holds() -> None:
    worker = Worker()
    await worker.ask(1, ttl_s=60, token=TOKEN)
    with pytest.raises(WorkerFull):
        worker.enter(1)
    worker.holds.release(asked(1).hold_id)
    await worker.ask(2)
    assert worker.holds.reserved(asked(2).hold_id) is None
    with pytest.raises(HoldGone):
        worker.holds.enter_reserved(asked(2).hold_id)


@virtually
async def test_a_drain_ends_what_waits_and_what_is_kept() -> None:
    worker = Worker(places=2)
    await worker.ask(1)
    await worker.ask(2, token=TOKEN)
    visit = worker.holds.enter_reserved(asked(2).hold_id)
    waits = worker.ask(3)
    await settle()
    worker.holds.close(Unavailable("draining"))
    with pytest.raises(Unavailable, match="draining"):
        await waits
    with pytest.raises(Unavailable, match="draining"):
        await worker.ask(4)
    assert (worker.guard.in_flight, worker.holds.kept) == (1, 0)
    visit.__exit__()
    assert worker.guard.in_flight == 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "reserve", "enter", "enter new", "end", "release", "cancel", "visit", "pass"]),
        st.integers(0, 9),
        st.sampled_from("abc"),
    ),
    max_size=40,
)


@given(places=st.integers(1, 4), share=st.sampled_from([0.5, 0.9, 1.0]), most=st.sampled_from([0, 2]), steps=STEPS)
@settings(max_examples=150, deadline=None)
def test_places_are_conserved_whatever_happens(places: int, share: float, most: int, steps: list[tuple[str, int, str]]) -> None:
    """Never more than there are, never one lost, and none free for somebody new while one who may have it waits."""

    async def body(_: VirtualLoop) -> None:
        worker, asks = Worker(places, share, most, max_waiting=5), dict[int, asyncio.Task[None]]()
        running: list[Admission] = []
        for step, number, tenant in steps:
            try:
                if step in ("ask", "reserve") and (number not in asks or asks[number].done()):
                    token = TOKEN if step == "reserve" else b""
                    asks[number] = worker.ask(number, tenant, wait_s=3.0, ttl_s=5.0, token=token)
                elif step == "enter":
                    running.append(worker.enter(number, tenant))
                elif step == "enter new":
                    running.append(worker.guard.enter(tenant))
                elif step == "visit":
                    running.append(worker.holds.enter_reserved(asked(number).hold_id))
                elif step == "end" and running:
                    running.pop(number % len(running)).__exit__()
                elif step == "release":
                    worker.holds.release(asked(number).hold_id)
                elif step == "cancel" and number in asks:
                    asks[number].cancel()
                elif step == "pass":
                    await asyncio.sleep(number / 2)
            except (WorkerFull, TenantQuotaReached, HoldGone, HoldBusy):
                pass
            await settle()
            assert worker.guard.in_flight <= places
            assert worker.holds.waiting <= 5
            assert worker.holds.kept <= worker.guard.in_flight
        for admission in running:
            admission.__exit__()
        await asyncio.sleep(20)
        outcomes = await asyncio.gather(*asks.values(), return_exceptions=True)
        assert all(isinstance(each, None | WorkerFull | HoldGone | AlreadyExists | asyncio.CancelledError) for each in outcomes)
        assert (worker.guard.in_flight, worker.holds.kept, worker.holds.waiting, worker.guard.tenants) == (0, 0, 0, 0)

    run_virtually(body)


@given(tenants=st.lists(st.sampled_from("ab"), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_those_that_wait_get_their_places_in_the_order_in_which_they_came(tenants: list[str]) -> None:
    async def body(_: VirtualLoop) -> None:
        worker = Worker(places=1)
        running = worker.guard.enter("z")
        for number, tenant in enumerate(tenants):
            worker.ask(number, tenant)
        await settle()
        running.__exit__()
        for number, tenant in enumerate(tenants):
            await settle()
            worker.enter(number, tenant).__exit__()
        assert worker.granted == list(range(len(tenants)))

    run_virtually(body)
