"""The limiter of one gateway: what a request falls under, what it costs, how it is refused, what its headers say."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from gateway.admission import KeyFacts, RateLimited
from gateway.limits.limiter import Limiter
from gateway.limits.purse import Purse
from gateway.limits.telling import duration
from gateway.limits.types import Limit, Scope, WhenUnsure
from placement.limits.types import Ask, Grant
from runtime.ids import KeyId, TenantId

KEY = KeyFacts(KeyId("k"), TenantId("t"))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return 86_400 * 20_000 + 82_800.0  # an hour before midnight

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(0)


class Counts:
    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def limited(self, kind: str) -> None:
        self.kinds[kind] += 1

    def refused(self, reason: str) -> None: ...


class Leader:
    """Gives as many of each as the test says, when it is asked."""

    def __init__(self, limiter: Limiter, clock: Clock) -> None:
        self._limiter, self._clock = limiter, clock
        self.has: dict[str, int] = {}
        self.asked: list[Ask] = []

    def answer(self, retry_after_s: float = 2.5) -> None:
        asks = self._limiter.purse.asks(self._clock.now_s)
        self.asked += asks
        grants = [self._grant(ask, retry_after_s) for ask in asks]
        self._limiter.tell(self._limiter.purse.take(grants, self._clock.now_s))

    def _grant(self, ask: Ask, retry_after_s: float) -> Grant:
        has = self.has.get(ask.allowance, 0) + ask.returned
        given = min(ask.wanted, has)
        self.has[ask.allowance] = has - given
        return Grant(ask.allowance, given, has - given, 0.0 if given == ask.wanted else retry_after_s)


class Bench:
    def __init__(self, *limits: Limit, max_holdings: int = 100) -> None:
        self.clock, self.counts = Clock(), Counts()
        self.limiter = Limiter(Purse(max_holdings), self.clock, self.counts, wait_s=0.2)
        self.leader, self.key = Leader(self.limiter, self.clock), replace(KEY, limits=limits)

    async def admit(self, model: str = "m", tokens: int = 0, key: KeyFacts | None = None) -> object:
        """Let in, with a leader that answers."""
        asking = asyncio.ensure_future(self.limiter.admit(key or self.key, model, tokens))
        await asyncio.sleep(0)
        if not asking.done():
            self.leader.answer()
        return await asking


async def test_what_nothing_limits_costs_nothing() -> None:
    bench = Bench(Limit("l", model="another", requests_per_s=1.0))
    assert await bench.limiter.admit(KEY, "m", 0) is None
    assert await bench.limiter.admit(bench.key, "m", 0) is None
    assert await bench.limiter.admit(bench.key, "", 0) is None


async def test_a_request_has_to_fit_into_all_and_one_that_does_not_costs_nothing() -> None:
    bench = Bench(Limit("a", requests_per_s=100.0), Limit("b", model="m", concurrent_requests=5))
    bench.leader.has = {"a/requests/": 10}
    with pytest.raises(RateLimited, match=r"5 requests under way at once of model 'm'; wait 2\.5s") as refused:
        await bench.admit()
    assert refused.value.retry_after_s == 2.5
    assert dict(refused.value.headers).keys() == {f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")}
    assert bench.counts.kinds == {"concurrent": 1}
    holding = next(each for each in bench.limiter.purse._holdings.values() if each.allowance == "a/requests/")
    assert (holding.held, holding.used) == (1, 0)
    assert await bench.admit("n") is not None, "another model is not what is full"


async def test_while_the_leader_said_that_there_is_none_nobody_waits() -> None:
    bench = Bench(Limit("a", requests_per_s=1.0))
    for _ in range(2):
        with pytest.raises(RateLimited, match="all callers together may ask 1 times a second, all models together"):
            await bench.admit()
    assert len(bench.leader.asked) == 1
    bench.clock.now_s += 3
    bench.leader.has = {"a/requests/": 1}
    assert await bench.admit() is not None


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        (Limit("l", "t", requests_per_s=0.5), "tenant 't' may ask 0.5 times a second, all models together"),
        (Limit("l", key_id="k", tokens_per_min=100_000), "this key may use 100000 tokens a minute"),
        (Limit("l", scope=Scope.EACH_KEY, requests_per_day=7), "this key may ask 7 times a day"),
        (Limit("l", scope=Scope.EACH_TENANT, tokens_per_day=7), "this tenant may use 7 tokens a day"),
        (Limit("l", model="m", concurrent_requests=2), "have 2 requests under way at once of model 'm'"),
    ],
)
async def test_a_refusal_names_its_limit(limit: Limit, sentence: str) -> None:
    with pytest.raises(RateLimited, match=sentence):
        await Bench(limit).admit()


async def test_a_limit_of_somebody_else_does_not_count() -> None:
    bench = Bench(Limit("l", "another", requests_per_s=1.0), Limit("l", key_id="another", requests_per_s=1.0))
    assert await bench.limiter.admit(bench.key, "m", 0) is None


async def test_each_has_its_own_where_the_limit_says_so() -> None:
    bench = Bench(Limit("l", scope=Scope.EACH_TENANT, requests_per_s=1.0))
    bench.leader.has = {"l/requests/t": 1}
    other = replace(bench.key, key_id=KeyId("o"), tenant=TenantId("u"))
    assert await bench.admit() is not None
    with pytest.raises(RateLimited):
        await bench.admit(key=other)


async def test_a_permit_comes_back_once() -> None:
    bench = Bench(Limit("l", concurrent_requests=1))
    bench.leader.has = {"l/concurrent/": 1}
    ticket = await bench.limiter.admit(bench.key, "", 0)
    assert ticket is None, "a call that asks nothing of a model is none of those"
    first = asyncio.ensure_future(bench.limiter.admit(bench.key, "m", 0))
    await asyncio.sleep(0)
    bench.leader.answer()
    ticket = await first
    assert ticket is not None
    second = asyncio.ensure_future(bench.limiter.admit(bench.key, "m", 0))
    await asyncio.sleep(0)
    ticket.close()
    ticket.close()
    assert await second is not None, "who waits is woken by what comes back"
    (holding,) = bench.limiter.purse._holdings.values()
    assert (holding.held, holding.used) == (0, 1)


async def test_tokens_are_charged_as_they_are_thought_to_come_and_set_right() -> None:
    bench = Bench(Limit("l", tokens_per_min=6_000))
    bench.leader.has = {"l/tokens/": 1}
    ticket = await bench.admit(tokens=500)
    (holding,) = bench.limiter.purse._holdings.values()
    assert holding.held == 1 - 500
    ticket.used(30, 20)  # type: ignore[attr-defined]
    ticket.used(30, 20)  # type: ignore[attr-defined]
    assert (holding.held, holding.used) == (1 - 50, 50)
    with pytest.raises(RateLimited):
        await bench.admit()


async def test_what_was_never_said_of_tokens_is_given_back() -> None:
    bench = Bench(Limit("l", tokens_per_min=6_000))
    bench.leader.has = {"l/tokens/": 100}
    ticket = await bench.admit(tokens=500)
    ticket.close()  # type: ignore[attr-defined]
    (holding,) = bench.limiter.purse._holdings.values()
    assert (holding.held, holding.used) == (1, 0)


async def test_headers_tell_of_the_tightest_of_each_kind() -> None:
    bench = Bench(Limit("a", requests_per_s=100.0), Limit("b", requests_per_day=50), Limit("c", tokens_per_min=600))
    bench.leader.has = {"a/requests/": 99, "b/requests_per_day/": 10, "c/tokens/": 301}
    ticket = await bench.admit()
    ticket.used(100, 0)  # type: ignore[attr-defined]
    assert dict(ticket.headers()) == {  # type: ignore[attr-defined]
        "x-ratelimit-limit-requests": "50",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "1h0m0s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "201",
        "x-ratelimit-reset-tokens": "39.9s",
    }


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0ms"), (0.0124, "12ms"), (1.23, "1.23s"), (59.96, "60s"), (360, "6m0s"), (3_725, "1h2m5s")]
)
def test_durations_are_written_as_clients_read_them(seconds: float, told: str) -> None:
    assert duration(seconds) == told


async def test_a_leader_that_says_nothing_is_not_waited_for_longer_than_a_bound() -> None:
    bench = Bench(Limit("l", requests_per_s=5.0, when_unsure=WhenUnsure.REFUSE))
    with pytest.raises(RateLimited, match="how much of that is left cannot be learnt now"):
        await bench.limiter.admit(bench.key, "m", 0)
    open_one = Bench(Limit("l", requests_per_s=5.0))
    assert await open_one.limiter.admit(open_one.key, "m", 0) is not None


async def test_a_deadline_ends_the_wait() -> None:
    bench = Bench(Limit("l", requests_per_s=5.0, when_unsure=WhenUnsure.REFUSE))
    bench.limiter._wait_s = 60.0
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        with pytest.raises(RateLimited):
            await bench.limiter.admit(bench.key, "m", 0, loop.time() + 0.05)


async def test_while_nobody_can_be_asked_it_lends_itself_its_share() -> None:
    bench = Bench(Limit("l", requests_per_s=10.0))
    bench.limiter.unsure()
    bench.limiter.purse.holders = 5
    assert [await bench.limiter.admit(bench.key, "m", 0) is not None for _ in range(2)] == [True, True]
    with pytest.raises(RateLimited, match="wait 500ms"):
        await bench.limiter.admit(bench.key, "m", 0)


async def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    bench = Bench(Limit("l", requests_per_s=5.0))
    asking = asyncio.ensure_future(bench.limiter.admit(bench.key, "m", 0))
    await asyncio.sleep(0)
    assert bench.limiter.waiting == 1
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert bench.limiter.waiting == 0
    assert not bench.limiter._waiting
    (holding,) = bench.limiter.purse._holdings.values()
    assert holding.waiting == 0


async def test_changed_limits_count_from_the_next_request() -> None:
    bench = Bench(Limit("l", requests_per_s=1.0, generation=1))
    bench.leader.has = {"l/requests/": 2}
    assert await bench.admit() is not None
    bench.key = replace(KEY, limits=(Limit("l", requests_per_s=50.0, generation=2),))
    assert await bench.admit() is not None
    assert bench.leader.asked[-1].terms is not None
    assert bench.leader.asked[-1].terms.units == 50.0


async def test_what_is_idle_is_forgotten_where_there_is_too_much() -> None:
    bench = Bench(max_holdings=3)
    for number in range(20):
        key = replace(KEY, key_id=KeyId(str(number)), limits=(Limit("l", scope=Scope.EACH_KEY, requests_per_s=1.0),))
        with pytest.raises(RateLimited):
            await bench.admit(key=key)
        bench.clock.now_s += 60
        bench.leader.answer()
    assert len(bench.limiter.purse) <= 6
