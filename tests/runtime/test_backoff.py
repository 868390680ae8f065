import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from runtime.backoff import Backoff, sleep_unless
from tests.support.manual_clock import ManualClock, settle

BACKOFF = Backoff(first_s=0.1, factor=2.0, max_s=5.0, jitter=0.5)


@given(failures=st.integers(-3, 10_000), seed=st.integers(0, 2**32))
def test_a_delay_is_never_nothing_and_never_more_than_the_bound_and_its_jitter(failures: int, seed: int) -> None:
    assert 0.1 <= BACKOFF.delay_s(failures, random.Random(seed)) <= 7.5


@given(failures=st.integers(1, 100), seed=st.integers(0, 2**32))
def test_more_failures_never_wait_less(failures: int, seed: int) -> None:
    assert BACKOFF.delay_s(failures, random.Random(seed)) <= BACKOFF.delay_s(failures + 1, random.Random(seed))


def test_two_clients_do_not_wait_alike() -> None:
    assert len({BACKOFF.delay_s(10, random.Random(seed)) for seed in range(100)}) == 100


async def test_an_event_cuts_a_sleep_short() -> None:
    clock, woken = ManualClock(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        sleeping = tasks.create_task(sleep_unless(clock, 100.0, woken))
        await settle()
        assert not sleeping.done()
        woken.set()
    assert clock.monotonic_s() == 1000.0


async def test_a_sleep_ends_when_its_time_is_over_and_leaves_no_task() -> None:
    clock, woken = ManualClock(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sleep_unless(clock, 100.0, woken))
        await clock.advance(99.9)
        assert len(asyncio.all_tasks()) > 1
        await clock.advance(0.2)
    assert asyncio.all_tasks() == {asyncio.current_task()}
