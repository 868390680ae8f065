"""A lane's thread: results and errors come back on the loop, wakes give way to work, nothing is kept alive."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from worker.lane import ThreadLane


class Thing:
    pass


async def test_work_runs_on_the_lanes_thread_and_answers_on_the_loop() -> None:
    lane = ThreadLane("lane")
    assert await lane.call(lambda: threading.current_thread().name) == "lane"
    with pytest.raises(ZeroDivisionError):
        await lane.call(lambda: 1 // 0)
    lane.close()


async def test_a_wake_comes_after_its_delay() -> None:
    lane = ThreadLane("lane")
    woken = asyncio.Event()
    lane.wake_after(0.001, woken.set)
    async with asyncio.timeout(10):
        await woken.wait()
    lane.close()


async def test_work_takes_the_place_of_a_wake() -> None:
    lane = ThreadLane("lane")
    woken: list[int] = []
    lane.wake_after(0.02, lambda: woken.append(1))
    await lane.call(lambda: None)
    later = asyncio.Event()
    lane.wake_after(0.05, later.set)
    async with asyncio.timeout(10):
        await later.wait()
    assert not woken
    lane.close()


async def test_nothing_of_a_request_stays_while_the_lane_is_idle() -> None:
    lane = ThreadLane("lane")
    thing = Thing()
    seen = weakref.ref(thing)

    def work(held: Thing = thing) -> Thing:
        return held

    await lane.call(work)
    del thing, work
    await lane.call(lambda: None)
    gc.collect()
    assert seen() is None
    lane.close()


async def test_closing_ends_the_thread_after_what_was_submitted() -> None:
    lane = ThreadLane("ending")
    done: list[int] = []
    lane.submit(lambda: 7, lambda result, _: done.append(result or 0))
    lane.close()
    async with asyncio.timeout(10):
        while any(thread.name == "ending" for thread in threading.enumerate()):
            await asyncio.sleep(0.001)
    assert done == [7]


async def test_another_thread_may_wait_for_the_end() -> None:
    lane, other = ThreadLane("lane"), ThreadLane("other")
    done: list[int] = []
    lane.submit(lambda: 7, lambda result, _: done.append(result or 0))
    lane.close()
    await other.call(lane.join)
    assert not any(thread.name == "lane" for thread in threading.enumerate())
    await asyncio.sleep(0)
    assert done == [7]
    other.close()
