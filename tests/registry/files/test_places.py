"""Bounds on one process: how many at once, how many waiting; and few arenas."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from registry.files.errors import UploadsFull
from registry.files.places import Places


async def test_as_many_as_may_and_the_others_in_their_order() -> None:
    places, inside, order, leave = Places("parts", 2, 10), list[int](), list[int](), asyncio.Event()

    async def visit(number: int) -> None:
        async with places:
            inside.append(number)
            order.append(number)
            assert len(inside) <= 2
            await leave.wait()
            inside.remove(number)

    visits = [asyncio.create_task(visit(number)) for number in range(6)]
    await asyncio.sleep(0)
    leave.set()
    await asyncio.gather(*visits)
    assert order == list(range(6))


async def test_who_stops_waiting_takes_no_place() -> None:
    places = Places("parts", 1, 2)
    async with places:
        waiting = [asyncio.create_task(places.__aenter__()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(UploadsFull, match="2 parts wait"):
            await places.__aenter__()
        for wait in waiting:
            wait.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(5), places:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has arenas")
def test_the_c_library_hears() -> None:
    asked = "from registry.files.allocator import few_arenas; import sys; sys.exit(0 if few_arenas() else 1)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


async def test_nobody_has_all_places_or_all_of_the_queue() -> None:
    places, leave = Places("parts", 3, 4, each=2), asyncio.Event()
    inside: list[str] = []

    async def come(name: str) -> None:
        async with places.of(name):
            inside.append(name)
            await leave.wait()

    greedy = [asyncio.create_task(come("greedy")) for _ in range(5)]
    await asyncio.wait(greedy, return_when=asyncio.FIRST_COMPLETED)
    refused = [task for task in greedy if task.done()]
    assert [type(task.exception()) for task in refused] == [UploadsFull], "two are inside, two wait"
    modest = asyncio.create_task(come("modest"))
    while "modest" not in inside:
        await asyncio.sleep(0)
    assert inside == ["greedy", "greedy", "modest"]
    waiting = next(task for task in reversed(greedy) if not task.done())
    waiting.cancel()
    leave.set()
    await asyncio.gather(modest, *greedy, return_exceptions=True)
    assert inside.count("greedy") == 3
    async with places.of("greedy"), places.of("greedy"), places.of("another"):
        assert waiting.cancelled()
