"""A second worker for requests that take long: who wins, what becomes of the loser, and when there is no second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

import pytest

from gateway.hedging import MAX_MODELS, MIN_DELAY_S, Hedges
from gateway.links.types import CallContext
from placement.routing.retry_budget import RetryBudget
from placement.rules import Rule
from placement.types import Request, Worker
from runtime.errors import Internal, InvalidArgument, PenstockError
from runtime.ids import ModelName
from tests.gateway.detoured import Detoured, detoured, exchange_of
from tests.gateway.fakes import FakeLink, copy_of, worker_of
from tests.gateway.routed import CALL, M, pair
from tests.support.waiting import eventually

RULES = (Rule(models=("m",), hedge_quantile=0.95),)


def gated(*script: PenstockError) -> FakeLink:
    return FakeLink("127.0.0.1:1", list(script), gate=asyncio.Event())


def let_answer(link: FakeLink) -> None:
    assert link.gate is not None
    link.gate.set()


def learn(hedges: Hedges, took_s: float = 0.0005) -> None:
    for _ in range(100):
        hedges.observe("m", "1", took_s)


def first_and_second(mesh: Detoured) -> tuple[FakeLink, FakeLink]:
    """The link that was asked first, and the other one."""
    a, b = mesh.links["a"], mesh.links["b"]
    return (a, b) if a.calls else (b, a)


@contextmanager
def counted_tasks() -> Iterator[list[object]]:
    """The tasks that are made meanwhile."""
    made: list[object] = []
    loop = asyncio.get_running_loop()

    def make(loop: asyncio.AbstractEventLoop, coroutine: object, **rest: object) -> asyncio.Task[object]:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **rest)  # type: ignore[arg-type]

    loop.set_task_factory(make)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        loop.set_task_factory(None)


async def settled(mesh: Detoured) -> None:
    """Nothing is left at any worker."""
    assert set(mesh.mesh.in_flight().values()) <= {0}
    assert not any(link.in_flight for link in mesh.links.values())


async def test_who_is_slow_is_overtaken_and_cancelled() -> None:
    async with detoured(*pair(), rules=RULES, links={"a": gated(), "b": gated()}) as mesh:
        learn(mesh.hedges)
        asking = asyncio.create_task(mesh.dispatch.infer(M, b"x", CALL, mesh.exchange))
        await eventually(lambda: mesh.links["a"].calls == mesh.links["b"].calls == 1)
        winner = mesh.links["b"]
        let_answer(winner)
        assert await asking == b"x"
        await settled(mesh)
        exchange = mesh.exchange
        assert (exchange.hedged, exchange.worker_id, exchange.version, exchange.attempts) == (True, "b", "1", 2)
        assert mesh.hedged("won") == 1


async def test_the_first_may_still_win() -> None:
    async with detoured(*pair(), rules=RULES, links={"a": gated(), "b": gated()}) as mesh:
        learn(mesh.hedges)
        asking = asyncio.create_task(mesh.dispatch.infer(M, b"x", CALL, mesh.exchange))
        await eventually(lambda: mesh.links["a"].calls == mesh.links["b"].calls == 1)
        let_answer(mesh.links["a"])
        assert await asking == b"x"
        await settled(mesh)
        assert (mesh.exchange.hedged, mesh.exchange.worker_id) == (True, "a")
        assert (mesh.hedged("lost"), mesh.hedged("won")) == (1, 0)


async def test_nothing_is_hedged_of_which_nothing_is_known() -> None:
    async with detoured(*pair(), rules=RULES, links={"a": gated(), "b": gated()}) as mesh:
        with counted_tasks() as made:
            asking = asyncio.ensure_future(mesh.dispatch.infer(M, b"x", CALL, mesh.exchange))
            await asyncio.sleep(0.05)
            first, second = first_and_second(mesh)
            assert (first.calls, second.calls) == (1, 0)
            let_answer(first)
            assert await asking == b"x"
        assert len(made) == 1  # the test's own
        assert not mesh.exchange.hedged


async def test_a_request_that_is_answered_in_time_makes_no_task() -> None:
    async with detoured(*pair(), rules=RULES) as mesh:
        learn(mesh.hedges, 10.0)
        with counted_tasks() as made:
            for _ in range(10):
                await mesh.dispatch.infer(M, b"x", CALL, mesh.exchange)
        assert not made
        assert (mesh.exchange.hedged, mesh.exchange.attempts) == (False, 10)


async def test_a_second_that_fails_leaves_the_first_running() -> None:
    links = {"a": gated(), "b": FakeLink("127.0.0.1:1", [InvalidArgument("shape")])}
    async with detoured(*pair(), rules=RULES, links=links) as mesh:
        learn(mesh.hedges)
        asking = asyncio.create_task(mesh.dispatch.infer(M, b"x", CALL, mesh.exchange))
        await eventually(lambda: links["b"].calls == 1 and not links["b"].in_flight)
        assert not asking.done()
        let_answer(links["a"])
        assert await asking == b"x"
        await settled(mesh)
        assert mesh.exchange.worker_id == "a"


async def test_a_first_that_fails_does_not_win_over_a_second_that_runs() -> None:
    links = {"a": gated(Internal("a bug")), "b": gated()}
    async with detoured(*pair(), rules=RULES, links=links) as mesh:
        learn(mesh.hedges)
        asking = asyncio.create_task(mesh.dispatch.infer(M, b"x", CALL, mesh.exchange))
        await eventually(lambda: links["b"].calls == 1)
        let_answer(links["a"])
        await eventually(lambda: not links["a"].in_flight)
        assert not asking.done()
        let_answer(links["b"])
        assert await asking == b"x"
        await settled(mesh)
        assert mesh.exchange.worker_id == "b"


async def test_where_both_fail_the_first_ones_error_is_raised() -> None:
    links = {"a": gated(Internal("the first")), "b": gated(InvalidArgument("the second"))}
    async with detoured(*pair(), rules=RULES, links=links) as mesh:
        learn(mesh.hedges)
        asking = asyncio.create_task(mesh.dispatch.infer(M, b"x", CALL, mesh.exchange))
        await eventually(lambda: links["b"].calls == 1)
        for link in links.values():
            let_answer(link)
        with pytest.raises(Internal, match="the first"):
            await asking
        await settled(mesh)
        assert (mesh.hedged("won"), mesh.hedged("lost")) == (0, 0)


@pytest.mark.parametrize(
    ("workers", "budget", "outcome"),
    [
        (pair(), RetryBudget(0.0, 0.0), "no_budget"),
        (pair()[:1], RetryBudget(), "no_worker"),
        ((pair()[0], worker_of("b", copy_of("n"))), RetryBudget(), "no_worker"),
        ((pair()[0], worker_of("b", copy_of("m", "2"))), RetryBudget(), "no_worker"),
    ],
)
async def test_there_may_be_no_second(workers: tuple[Worker, ...], budget: RetryBudget, outcome: str) -> None:
    links = {"a": gated(), "b": gated()}
    async with detoured(*workers, rules=RULES, links=links, budget=budget) as mesh:
        learn(mesh.hedges)
        request = Request(ModelName("m"), M.version if outcome == "no_budget" else copy_of("m").version)
        asking = asyncio.create_task(mesh.dispatch.infer(request, b"x", CALL, mesh.exchange))
        await eventually(lambda: mesh.hedged(outcome) == 1)
        first, second = first_and_second(mesh)
        assert second.calls == 0
        let_answer(first)
        assert await asking == b"x"
        assert not mesh.exchange.hedged


async def test_hedges_and_retries_share_one_budget() -> None:
    budget = RetryBudget(0.0, 0.1)  # one in its ten seconds
    async with detoured(*pair(), rules=RULES, links={"a": gated(), "b": gated()}, budget=budget) as mesh:
        learn(mesh.hedges)
        asking = [asyncio.create_task(mesh.dispatch.infer(M, b"x", CALL, exchange_of())) for _ in range(3)]
        await eventually(lambda: mesh.hedged("no_budget") == 2)
        assert sum(link.calls for link in mesh.links.values()) == 4
        for link in mesh.links.values():
            let_answer(link)
        await asyncio.gather(*asking)
        await settled(mesh)


async def test_who_goes_away_takes_both_attempts_along() -> None:
    async with detoured(*pair(), rules=RULES, links={"a": gated(), "b": gated()}) as mesh:
        learn(mesh.hedges)
        before = asyncio.all_tasks()
        asking = asyncio.create_task(mesh.dispatch.infer(M, b"x", CALL, mesh.exchange))
        await eventually(lambda: mesh.links["a"].calls == mesh.links["b"].calls == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await settled(mesh)
        assert asyncio.all_tasks() == before


async def test_both_attempts_have_the_callers_deadline() -> None:
    async with detoured(*pair(), rules=RULES, links={"a": gated(), "b": FakeLink("127.0.0.1:1")}) as mesh:
        learn(mesh.hedges)
        call = CallContext(deadline_s=asyncio.get_running_loop().time() + 60)
        await mesh.dispatch.infer(M, b"x", call, mesh.exchange)
        assert [each.deadline_s for link in mesh.links.values() for each in link.seen] == [call.deadline_s] * 2


async def test_requests_of_a_sequence_are_never_asked_twice() -> None:
    async with detoured(*pair(), rules=RULES, links={"a": gated(), "b": gated()}) as mesh:
        learn(mesh.hedges)
        for sticky in (True, False):
            request = Request(ModelName("m"), session_key="t/m/1", sticky=sticky)
            asking = asyncio.create_task(mesh.dispatch.infer(request, b"x", CALL, mesh.exchange))
            await asyncio.sleep(0.03)
            assert sum(link.in_flight for link in mesh.links.values()) == 1
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


async def test_a_given_up_attempt_counts_as_long_as_it_was_waited_for() -> None:
    """Else only the quick ones would count, and ever more requests would be hedged."""
    async with detoured(*pair(), rules=RULES, links={"a": gated(), "b": FakeLink("127.0.0.1:1")}) as mesh:
        learn(mesh.hedges)
        for _ in range(40):
            await mesh.dispatch.infer(M, b"x", CALL, mesh.exchange)
        assert mesh.hedged("won") >= 15  # every other one begins at the worker that never answers
        assert (mesh.hedges._latencies["m", "1"].at(0.9) or 0.0) >= MIN_DELAY_S * 1000


async def test_as_many_models_are_remembered_as_there_is_room_for() -> None:
    async with detoured(rules=RULES) as mesh:
        for number in range(MAX_MODELS + 5):
            mesh.hedges.observe(f"m{number}", "1", 0.01)
        assert len(mesh.hedges._latencies) == 5


@dataclass
class Moody(FakeLink):
    """Takes a while that is drawn anew for every call."""

    rng: Random = field(default_factory=lambda: Random(5))
    is_bad: bool = False
    """Fails one in ten as well, and never answers one in five."""

    async def call(self, model: str, version: str, payload: bytes, context: CallContext) -> bytes:
        self.calls += 1
        self.in_flight += 1
        mood = self.rng.random() if self.is_bad else 0.5
        try:
            await asyncio.sleep(self.rng.random() * 0.006 if mood > 0.2 else 3600)
            if mood > 0.9:
                raise InvalidArgument("one in ten")
            return payload
        finally:
            self.in_flight -= 1


async def test_whatever_happens_nothing_is_left_behind() -> None:
    workers = [worker_of(each, copy_of("m"), max_in_flight=100) for each in "abc"]
    links: dict[str, FakeLink] = {each: Moody("127.0.0.1:1", is_bad=each == "a") for each in "abc"}
    rules, budget = (Rule(hedge_quantile=0.5),), RetryBudget(1.0, 1000.0)
    async with detoured(*workers, rules=rules, links=links, budget=budget) as mesh:
        learn(mesh.hedges, 0.002)
        before, rng = asyncio.all_tasks(), Random(7)

        async def ask(number: int) -> bytes:
            async with asyncio.timeout(rng.random() * 0.02 if number % 4 == 0 else None):
                return await mesh.dispatch.infer(M, str(number).encode(), CALL, exchange_of())

        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(ask(number) for number in range(200)), return_exceptions=True)
        for number, answer in enumerate(answers):
            assert answer == str(number).encode() or isinstance(answer, InvalidArgument | TimeoutError)
            assert number % 4 == 0 or not isinstance(answer, TimeoutError)  # who never answers is overtaken
        assert mesh.hedged("won") > 0
        await eventually(lambda: asyncio.all_tasks() == before)  # one whose caller left as it lost ends just after
        await settled(mesh)
