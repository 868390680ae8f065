"""Equal requests at the same time: one is asked, all get its answer, and nobody waits for what does not come."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.cache.types import CacheSettings
from gateway.exchange import Exchange
from runtime.errors import DeadlineExceeded, InvalidArgument, Unavailable
from tests.gateway.cache.asked import OURS, THEIRS, Cached, cached, prompt, tensors, until


def begin(mesh: Cached, count: int, payload: bytes | None = None) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(mesh.infer(payload or tensors())) for _ in range(count)]


def waiting(mesh: Cached) -> int:
    return mesh.cache._flights.waiting  # nothing else tells that they have come so far


async def test_one_is_asked_for_all() -> None:
    async with cached() as mesh:
        mesh.asked.gate = asyncio.Event()
        tasks = begin(mesh, 20)
        await until(lambda: waiting(mesh) == 19)
        mesh.asked.gate.set()
        assert await asyncio.gather(*tasks) == [1] * 20
        assert mesh.asked.times == 1
        counts = next(iter(mesh.cache.counts.values()))
        assert (counts.hits, counts.misses) == (19, 1)


async def test_tenants_do_not_wait_for_each_other() -> None:
    async with cached() as mesh:
        mesh.asked.gate = asyncio.Event()
        tasks = [asyncio.create_task(mesh.infer(tensors(), call)) for call in (OURS, THEIRS)]
        await until(lambda: mesh.asked.under_way == 2)
        mesh.asked.gate.set()
        assert sorted(await asyncio.gather(*tasks)) == [2, 2]
        assert waiting(mesh) == 0


async def test_when_the_first_one_goes_away_the_next_takes_over() -> None:
    async with cached() as mesh:
        mesh.asked.gate = asyncio.Event()
        tasks = begin(mesh, 4)
        await until(lambda: waiting(mesh) == 3)
        for gone in range(3):
            tasks[gone].cancel()
            await until(lambda: waiting(mesh) == 2 - gone and mesh.asked.under_way == 1)  # noqa: B023
        mesh.asked.gate.set()
        assert await tasks[3] == 4
        assert await mesh.infer(tensors()) == 4
        assert all(task.cancelled() for task in tasks[:3])


async def test_one_who_waits_may_go_away_alone() -> None:
    async with cached() as mesh:
        mesh.asked.gate = asyncio.Event()
        tasks = begin(mesh, 3)
        await until(lambda: waiting(mesh) == 2)
        tasks[1].cancel()
        await until(lambda: waiting(mesh) == 1)
        mesh.asked.gate.set()
        assert await asyncio.gather(*tasks[::2]) == [1, 1]


async def test_each_failure_is_its_own_and_nobody_waits_for_many() -> None:
    """The next takes over; who has waited in vain twice goes to a worker itself."""
    async with cached() as mesh:
        mesh.asked.gate, mesh.asked.errors = asyncio.Event(), [Unavailable("lost"), InvalidArgument("shape")]
        tasks = begin(mesh, 6)
        await until(lambda: waiting(mesh) == 5)
        mesh.asked.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in outcomes[:2]] == [Unavailable, InvalidArgument]
        assert all(isinstance(each, int) for each in outcomes[2:])
        assert waiting(mesh) == 0


async def test_who_has_no_time_left_is_told_and_the_others_get_their_answer() -> None:
    async with cached() as mesh:
        mesh.asked.gate = asyncio.Event()
        tasks = begin(mesh, 2)
        await until(lambda: waiting(mesh) == 1)
        soon = replace(OURS, deadline_s=asyncio.get_running_loop().time() + 0.01)
        with pytest.raises(DeadlineExceeded, match="equal request"):
            await mesh.infer(tensors(), soon)
        assert waiting(mesh) == 1
        mesh.asked.gate.set()
        assert await asyncio.gather(*tasks) == [1, 1]


async def test_as_many_wait_as_may_and_the_others_are_asked() -> None:
    async with cached(settings=CacheSettings(waiting=2)) as mesh:
        mesh.asked.gate = asyncio.Event()
        tasks = begin(mesh, 5)
        await until(lambda: waiting(mesh) == 2 and mesh.asked.under_way == 3)
        mesh.asked.gate.set()
        await asyncio.gather(*tasks)
        assert mesh.asked.times == 3


async def test_an_answer_too_large_to_keep_is_still_everybodys_who_waited() -> None:
    async with cached(settings=CacheSettings(max_bytes=160)) as mesh:
        mesh.asked.gate = asyncio.Event()
        tasks = begin(mesh, 3)
        await until(lambda: waiting(mesh) == 2)
        mesh.asked.gate.set()
        assert await asyncio.gather(*tasks) == [1, 1, 1]


async def test_texts_wait_for_each_other_unless_they_are_streamed_to_their_caller() -> None:
    async with cached() as mesh:
        mesh.asked.gate = asyncio.Event()
        whole = [asyncio.create_task(mesh.text(prompt())) for _ in range(3)]
        await until(lambda: waiting(mesh) == 2)
        streamed = asyncio.create_task(mesh.text(prompt(), exchange=Exchange("CreateCompletion", streamed=True)))
        await until(lambda: mesh.asked.under_way == 2)
        mesh.asked.gate.set()
        assert await asyncio.gather(*whole) == [["a2"] * 3] * 3
        assert await streamed == ["a2"] * 3
        assert mesh.asked.times == 2


async def test_a_reader_that_leaves_in_the_middle_hands_the_lead_on() -> None:
    async with cached() as mesh:
        mesh.asked.gate = asyncio.Event()
        first = asyncio.create_task(mesh.text(prompt(), most=1))
        await until(lambda: mesh.asked.under_way == 1)
        second = asyncio.create_task(mesh.text(prompt()))
        await until(lambda: waiting(mesh) == 1)
        mesh.asked.gate.set()
        assert await first == ["a1"]
        assert await second == ["a2"] * 3


async def test_nothing_is_left_of_what_has_ended() -> None:
    async with cached() as mesh:
        mesh.asked.errors = [Unavailable("lost")]
        await asyncio.gather(*begin(mesh, 8), return_exceptions=True)
        await mesh.text(prompt(), most=1)
        assert len(mesh.cache._flights) == 0
