"""Which links there are, and how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from gateway.links.roster import IDLE_S, LINGER_S, LinkRoster
from gateway.links.types import CallContext
from placement.types import Worker
from placement.view import FleetView
from runtime.ids import NodeId, Region
from runtime.revocations import Revocations
from tests.gateway.fakes import FakeLink, worker_of
from tests.support.manual_clock import ManualClock, settle

HOME = Region("europe")


@dataclass
class Rostered:
    roster: LinkRoster
    clock: ManualClock
    revocations: Revocations
    made: dict[str, FakeLink] = field(default_factory=dict)


@pytest.fixture
async def rostered() -> AsyncIterator[Rostered]:
    made: dict[str, FakeLink] = {}

    def open_link(worker: Worker) -> FakeLink:
        made[worker.worker_id] = link = FakeLink(worker.address)
        return link

    clock, revocations = ManualClock(), Revocations()
    roster = LinkRoster(open_link, clock, revocations, HOME)
    yield Rostered(roster, clock, revocations, made)
    await roster.close()


def near(worker_id: str) -> Worker:
    return worker_of(worker_id, region=HOME)


def far(worker_id: str) -> Worker:
    return worker_of(worker_id, region="asia")


def view_of(*workers: Worker) -> FleetView:
    return FleetView().with_changes(workers)


async def test_workers_at_home_are_linked_to_and_others_when_they_are_used(rostered: Rostered) -> None:
    rostered.roster.follow(view_of(near("a"), far("z")))
    assert set(rostered.made) == {"a"}
    link = rostered.roster.to(far("z"))
    assert link is rostered.made["z"]
    assert rostered.made["z"].connected.is_set()
    assert rostered.roster.to(far("z")) is link


async def test_a_link_to_another_region_is_let_go_when_it_was_idle_for_long(rostered: Rostered) -> None:
    rostered.roster.follow(view_of(near("a"), far("z")))
    rostered.roster.to(far("z"))
    await rostered.clock.advance(IDLE_S - 1)
    rostered.roster.drop_idle(lambda worker_id: worker_id == "z")
    await rostered.clock.advance(IDLE_S - 1)
    rostered.roster.drop_idle(lambda _: False)
    assert set(rostered.roster.links) == {"a", "z"}
    await rostered.clock.advance(1)
    rostered.roster.drop_idle(lambda _: False)
    await settle()
    assert set(rostered.roster.links) == {"a"}
    assert rostered.made["z"].closed
    assert not rostered.made["a"].closed


async def test_a_link_with_calls_is_not_idle(rostered: Rostered) -> None:
    rostered.roster.to(far("z"))
    rostered.made["z"].in_flight = 1
    await rostered.clock.advance(2 * IDLE_S)
    rostered.roster.drop_idle(lambda _: False)
    assert set(rostered.roster.links) == {"z"}


async def test_a_leaving_workers_calls_may_end_within_the_linger_and_are_cut_off_after_it(rostered: Rostered) -> None:
    rostered.roster.follow(view_of(near("a"), near("b")))
    a, b = rostered.made["a"], rostered.made["b"]
    a.gate = asyncio.Event()
    calls = [asyncio.create_task(a.call("m", "1", b"x", CallContext()))]
    b.in_flight = 1  # silent: it never ends
    await settle()
    rostered.roster.follow(view_of())
    await rostered.clock.advance(1)
    assert not a.closed
    a.gate.set()
    await rostered.clock.advance(1)
    assert (a.closed, b.closed) == (True, False)
    assert await calls[0] == b"x"
    await rostered.clock.advance(LINGER_S)
    assert b.closed


async def test_a_revoked_worker_is_not_lingered_for(rostered: Rostered) -> None:
    rostered.roster.follow(view_of(near("a")))
    rostered.made["a"].in_flight = 1
    rostered.revocations.add(NodeId("a"))
    rostered.roster.follow(view_of())
    await settle()
    assert rostered.made["a"].closed


async def test_an_address_that_changed_is_another_link(rostered: Rostered) -> None:
    rostered.roster.follow(view_of(near("a")))
    first = rostered.made["a"]
    rostered.roster.follow(view_of(worker_of("a", address="127.0.0.1:2", region=HOME)))
    await settle()
    assert first.closed
    assert rostered.roster.links["a"] is rostered.made["a"] is not first  # type: ignore[index]
