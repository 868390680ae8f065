"""Whoever is cancelled while a read or write is under way leaves it to end by itself."""

from __future__ import annotations

import asyncio
import gc

import pytest

from runtime.whole_batches import whole


async def test_the_result_and_the_failure_are_the_batchs_own() -> None:
    async def read() -> bytes:
        return b"message"

    async def broken() -> bytes:
        raise ConnectionError("gone")

    assert await whole(read()) == b"message"
    with pytest.raises(ConnectionError):
        await whole(broken())


async def test_cancelling_gives_up_the_wait_and_not_the_batch() -> None:
    may_end, ended = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        await may_end.wait()
        ended.set()
        raise ConnectionError("nobody is told of this")

    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    waiting = asyncio.create_task(whole(read()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not ended.is_set()
    may_end.set()
    await ended.wait()
    await asyncio.sleep(0)
    gc.collect()
    assert told == []
