"""The queue at work over any course of events: every wait ends once, no place is lost, and nothing is left behind."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from placement.waiting.queue import QueueBounds
from runtime.errors import PenstockError
from runtime.ids import WorkerId
from scheduler.capacity.types import CapacityRules, Place
from tests.scheduler.capacity.rig import gone, queueing, ready, wish
from tests.support.manual_clock import settle

NAMES = ("w1", "w2", "w3")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "free", "free", "cancel", "pass", "lose", "show", "break", "mend", "block"]),
        st.integers(0, 11),
        st.sampled_from("abc"),
    ),
    max_size=40,
)


@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_every_wait_ends_once_and_no_place_is_lost(steps: list[tuple[str, int, str]]) -> None:
    async def course() -> None:
        rules = CapacityRules(per_worker=2, spare=1, hold_wait_s=5.0)
        async with queueing(*map(ready, NAMES), bounds=QueueBounds(12, 8, 0.9), rules=rules) as mesh:
            mesh.wishes.append(wish())
            asks: list[asyncio.Task[Place]] = []
            places = dict.fromkeys(NAMES, 0)
            for step, number, tenant in steps:
                name = NAMES[number % 3]
                if step == "ask":
                    excluded = frozenset({WorkerId(name)} if number > 8 else ())
                    asks.append(mesh.ask(tenant, timeout_s=1.0 + number, exclude=excluded, priority=number % 3))
                elif step == "free":
                    places[name] += 1
                    mesh.sites.free(name)
                elif step == "cancel" and asks:
                    asks[number % len(asks)].cancel()
                elif step == "pass":
                    await mesh.clock.advance(number / 4)
                elif step == "lose":
                    mesh.lose(name)
                elif step == "show":
                    mesh.show(ready(name))
                elif step in ("break", "mend"):
                    mesh.sites[name].failure = gone() if step == "break" else None
                elif step == "block":
                    mesh.sites[name].blocked ^= {tenant}
                if number % 2:
                    await settle()
            await mesh.clock.advance(30.0)
            outcomes = await asyncio.gather(*asks, return_exceptions=True)
            assert all(isinstance(each, Place | PenstockError | asyncio.CancelledError) for each in outcomes)
            assert (len(mesh.capacity.queue), mesh.capacity.holding.count) == (0, 0)
            given = [each for each in outcomes if isinstance(each, Place)]
            kept = [hold_id for name in NAMES for hold_id in mesh.sites[name].kept]
            # Whose gateway went away as its place came has lost it to its time alone if its worker left meanwhile.
            assert {each.hold_id for each in given} <= set(kept)
            for name in NAMES:
                assert mesh.sites[name].free + len(mesh.sites[name].kept) == places[name]
                assert mesh.sites[name].waiting == []

    asyncio.run(course())


@given(tenants=st.lists(st.sampled_from("abc"), min_size=1, max_size=24), workers=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_places_are_given_in_the_order_of_the_queue(tenants: list[str], workers: int) -> None:
    async def course() -> None:
        names = NAMES[:workers]
        async with queueing(*map(ready, names)) as mesh:
            asks = {number: mesh.ask(tenant) for number, tenant in enumerate(tenants)}
            await settle()
            (key,) = mesh.capacity.queue.keys
            due = [waiter.ticket for waiter in mesh.capacity.queue.upcoming(key)]
            served: list[int] = []
            for number in range(len(tenants)):
                mesh.sites.free(names[number % workers])
                await settle()
                served += [each for each, ask in asks.items() if ask.done() and each not in served]
            assert served == due

    asyncio.run(course())
