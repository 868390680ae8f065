"""Work in threads: nobody leaves while a thread still runs, and nothing it opened stays open."""

from __future__ import annotations

import asyncio
import threading

import pytest

from registry.threads import in_thread, opened_in_thread


async def test_a_cancelled_caller_waits_for_its_thread() -> None:
    entered, leave = threading.Event(), threading.Event()
    ended: list[str] = []

    def work() -> None:
        entered.set()
        assert leave.wait(20)
        ended.append("thread")

    async def call() -> None:
        try:
            await in_thread(work)
        finally:
            ended.append("caller")

    calling = asyncio.ensure_future(call())
    await asyncio.to_thread(entered.wait, 20)
    for _ in range(2):
        calling.cancel()
        await asyncio.sleep(0)
    assert ended == []
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert ended == ["thread", "caller"]


async def test_what_a_thread_opened_for_a_cancelled_caller_is_closed() -> None:
    entered, leave = threading.Event(), threading.Event()
    closed: list[int] = []

    def opening() -> int:
        entered.set()
        assert leave.wait(20)
        return 7

    calling = asyncio.ensure_future(opened_in_thread(opening, closed.append))
    await asyncio.to_thread(entered.wait, 20)
    calling.cancel()
    await asyncio.sleep(0)
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert closed == [7]


async def test_results_and_failures_come_back() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)
    closed: list[int] = []
    assert await opened_in_thread(lambda: 7, closed.append) == 7
    assert closed == []
