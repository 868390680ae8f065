"""Several schedulers as one: which is watched, which is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from gateway.schedulers import FIRST_WORD_S, STALE_PATIENCE_S, Schedulers
from gateway.types import CapacityAsk, FleetNews, Held, Leader
from placement.rules import RoutingPolicy, Rule
from runtime.clock import SystemClock
from runtime.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable, Unimplemented
from runtime.ids import ModelName, ModelVersion, Region, WorkerId
from tests.gateway.fakes import FakeScheduler, wish_of
from tests.support.manual_clock import ManualClock

EUROPE, ASIA = Region("europe"), Region("asia")
HELD = Held(WorkerId("w"), ModelVersion("1"), "h")
WHOLE = FleetNews(True)


def ask(region: Region = EUROPE) -> CapacityAsk:
    return CapacityAsk(ModelName("m"), ModelVersion(""), region, "t", 1e9)


def several(*names: str, clock: ManualClock | None = None, opened: dict[str, FakeScheduler] | None = None) -> Schedulers:
    def open_scheduler(address: str) -> FakeScheduler:
        return (opened if opened is not None else {}).setdefault(address, FakeScheduler(address))

    return Schedulers([FakeScheduler(name) for name in names], open_scheduler, EUROPE, clock or SystemClock())


def fake(schedulers: Schedulers, number: int) -> FakeScheduler:
    known = schedulers.known[number]
    assert isinstance(known, FakeScheduler)
    return known


async def watched_to_its_end(schedulers: Schedulers) -> None:
    async with aclosing(schedulers.watch()) as watch:
        async for _ in watch:
            pass


async def first_word(schedulers: Schedulers) -> FleetNews:
    async with aclosing(schedulers.watch()) as watch:
        return await anext(watch)


async def test_the_next_is_watched_where_one_fails() -> None:
    schedulers = several("a", "b")
    fake(schedulers, 0).news.put_nowait(Unavailable("gone"))
    with pytest.raises(Unavailable):
        await first_word(schedulers)
    fake(schedulers, 1).news.put_nowait(WHOLE)
    assert await first_word(schedulers) == WHOLE
    assert fake(schedulers, 1).watched == [EUROPE]


async def test_one_that_says_nothing_is_left_where_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.schedulers.FIRST_WORD_S", 0.01)
    schedulers = several("a", "b")
    with pytest.raises(Unavailable, match="another one is asked"):
        await first_word(schedulers)
    fake(schedulers, 1).news.put_nowait(WHOLE)
    assert await first_word(schedulers) == WHOLE
    assert FIRST_WORD_S > 1


async def test_the_only_one_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.schedulers.FIRST_WORD_S", 0.01)
    schedulers = several("a")
    waiting = asyncio.create_task(first_word(schedulers))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    fake(schedulers, 0).news.put_nowait(WHOLE)
    assert await waiting == WHOLE


async def test_one_that_tells_from_memory_is_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.schedulers.STALE_PATIENCE_S", 0.01)
    schedulers = several("a", "b")
    fake(schedulers, 0).news.put_nowait(FleetNews(True, stale=True))
    async with aclosing(schedulers.watch()) as watch:
        assert (await anext(watch)).stale
        with pytest.raises(Unavailable):
            await anext(watch)
    fake(schedulers, 1).news.put_nowait(WHOLE)
    assert await first_word(schedulers) == WHOLE
    assert STALE_PATIENCE_S > 1


async def test_where_nobody_sees_etcd_the_next_one_is_asked_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.schedulers.STALE_PATIENCE_S", 0.01)
    schedulers = several("a", "b")
    loop, watched_s = asyncio.get_running_loop(), list[float]()
    for number in (0, 1, 0, 1):
        fake(schedulers, number).news.put_nowait(FleetNews(True, stale=True))
        began_s = loop.time()
        with pytest.raises(Unavailable):
            await watched_to_its_end(schedulers)
        watched_s.append(loop.time() - began_s)
    assert [taken_s >= 0.01 * 2**number for number, taken_s in enumerate(watched_s)] == [True] * 4
    fake(schedulers, 0).news.put_nowait(WHOLE)
    await first_word(schedulers)
    assert schedulers._stale_ones == 0


async def test_a_rule_that_crosses_regions_has_all_of_them_watched_and_no_rule_one_again() -> None:
    schedulers = several("a")
    crossing = RoutingPolicy(1, (Rule(cross_region=True),))
    for policy in (crossing, RoutingPolicy(2), None):
        fake(schedulers, 0).news.put_nowait(FleetNews(True, policy=policy))
    async with aclosing(schedulers.watch()) as watch:
        for _ in range(3):
            await anext(watch)
    assert fake(schedulers, 0).watched == [EUROPE, "", EUROPE]


async def told(schedulers: Schedulers, *leaders: Leader) -> None:
    fake(schedulers, 0).news.put_nowait(FleetNews(True, leaders=leaders))
    await first_word(schedulers)


async def test_the_regions_own_leader_is_asked_for_room() -> None:
    schedulers = several("a", "b", "c")
    for number in range(3):
        fake(schedulers, number).answer = lambda _: HELD
    await told(schedulers, Leader("b", term=9), Leader("c", frozenset({ASIA}), term=1))
    assert await schedulers.await_capacity(ask(EUROPE)) == HELD
    assert await schedulers.await_capacity(ask(ASIA)) == HELD
    assert [len(fake(schedulers, number).asks) for number in range(3)] == [0, 1, 1]


async def test_where_the_leader_leads_no_more_the_others_are_asked() -> None:
    schedulers = several("a", "b")
    await told(schedulers, Leader("a"))
    fake(schedulers, 0).answer = Unavailable("leads no more")
    fake(schedulers, 1).answer = lambda _: HELD
    assert await schedulers.await_capacity(ask()) == HELD
    fake(schedulers, 1).answer = Unimplemented("an older one")
    assert await schedulers.await_capacity(ask()) is None


async def test_what_the_leader_says_to_the_caller_is_not_asked_of_another() -> None:
    schedulers = several("a", "b")
    await told(schedulers, Leader("a"))
    for said in (ResourceExhausted("the queue is full", retry_after_s=3.0), DeadlineExceeded("too late")):
        fake(schedulers, 0).answer = said
        with pytest.raises(type(said)):
            await schedulers.await_capacity(ask())
    assert not fake(schedulers, 1).asks


async def test_who_cannot_be_reached_is_left_alone_for_a_moment() -> None:
    clock = ManualClock()
    schedulers = several("a", clock=clock)
    fake(schedulers, 0).is_reachable = False
    for _ in range(5):
        assert await schedulers.await_capacity(ask()) is None
    assert (fake(schedulers, 0).tried, fake(schedulers, 0).asks) == (1, [])
    await clock.advance(3.0)
    fake(schedulers, 0).is_reachable, fake(schedulers, 0).answer = True, lambda _: HELD
    assert await schedulers.await_capacity(ask()) == HELD


async def test_a_leader_that_the_settings_do_not_name_is_called_and_let_go_when_it_leads_no_more() -> None:
    opened: dict[str, FakeScheduler] = {}
    schedulers = several("a", opened=opened)
    await told(schedulers, Leader("z"))
    assert await schedulers.await_capacity(ask()) is None
    assert len(opened["z"].asks) == 1
    await told(schedulers, Leader("a"))
    await asyncio.sleep(0)
    assert opened["z"].channel.closed
    await schedulers.close()


async def test_a_wish_goes_to_whichever_takes_it() -> None:
    schedulers = several("a", "b")
    fake(schedulers, 0).refuses = Unavailable("away")
    assert await schedulers.place(wish_of("m")) == wish_of("m")
    assert len(fake(schedulers, 1).placed) == 1
    fake(schedulers, 0).refuses = InvalidArgument("no such tier")
    with pytest.raises(InvalidArgument):
        await schedulers.place(wish_of("m"))
    for number in range(2):
        fake(schedulers, number).refuses = Unavailable("away")
    with pytest.raises(Unavailable):
        await schedulers.place(wish_of("m"))


async def test_any_other_question_goes_to_whichever_answers() -> None:
    schedulers = several("a", "b")
    asked: list[object] = []

    async def question(channel: object) -> str:
        asked.append(channel)
        if len(asked) == 1:
            raise Unavailable("away")
        return "an answer"

    put: Callable[[object], Awaitable[str]] = question
    assert await schedulers.ask(put) == "an answer"
    assert asked == [fake(schedulers, 0).channel, fake(schedulers, 1).channel]
