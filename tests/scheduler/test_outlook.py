"""The fleet as the scheduler's rooms choose by it."""

from __future__ import annotations

from placement.routing.policy import choose
from placement.types import Granted, Load, Outcome, Refusal, Refused, Request
from runtime.ids import ModelName, ModelVersion, WorkerId
from runtime.notices import NoticeBoard
from scheduler.fleet import Fleet
from scheduler.outlook import HEAR_EVERY_S, Outlook
from tests.scheduler.mesh import Mesh, model
from tests.support.manual_clock import ManualClock

REQUEST = Request(ModelName("digits"), ModelVersion("1"))
PLACES = 8
"""Of each worker of the test mesh."""


def opened(mesh: Mesh, *names: str) -> tuple[Outlook, dict[WorkerId, Load], list[WorkerId]]:
    fleet, loads = Fleet(mesh.reader()), dict[WorkerId, Load]()
    outlook = Outlook(fleet, NoticeBoard(), mesh.clock, lambda: loads)
    items = [mesh.item(name, model()) for name in names]
    outlook.follow(fleet.replace(items, now_s=0.0, now_wall_s=mesh.clock.wall_s()))
    return outlook, loads, [mesh.worker_id(name) for name in names]


async def test_who_is_full_by_gateways_requests_has_no_room(mesh: Mesh, clock: ManualClock) -> None:
    outlook, loads, (one,) = opened(mesh, "one")
    loads[one] = Load(foreign_in_flight=PLACES)
    refused = choose(outlook.view, outlook.state, REQUEST, now_s=outlook.look())
    assert isinstance(refused, Refused)
    assert refused.reason is Refusal.ALL_FULL
    loads[one] = Load(foreign_in_flight=PLACES - 1)
    await clock.advance(HEAR_EVERY_S)
    assert isinstance(choose(outlook.view, outlook.state, REQUEST, now_s=outlook.look()), Granted)


async def test_who_is_not_told_of_any_more_has_room_again(mesh: Mesh, clock: ManualClock) -> None:
    outlook, loads, (one,) = opened(mesh, "one")
    loads[one] = Load(foreign_in_flight=PLACES)
    outlook.look()
    loads.clear()
    await clock.advance(HEAR_EVERY_S)
    outlook.look()
    assert outlook.state.in_flight.values[outlook.view.seats[one].slot] == 0


async def test_what_was_granted_here_is_not_counted_twice(mesh: Mesh, clock: ManualClock) -> None:
    """The worker counts every request, this scheduler's among them."""
    outlook, loads, (one,) = opened(mesh, "one")
    granted = choose(outlook.view, outlook.state, REQUEST, now_s=outlook.look())
    assert isinstance(granted, Granted)
    outlook.state.reserve(granted)
    loads[one] = Load(foreign_in_flight=5)
    await clock.advance(HEAR_EVERY_S)
    outlook.look()
    slot = outlook.view.seats[one].slot
    assert outlook.state.in_flight.values[slot] == 5
    outlook.state.release(granted, Outcome.ANSWERED, now_s=outlook.look())
    assert outlook.state.in_flight.values[slot] == 4
    await clock.advance(HEAR_EVERY_S)
    outlook.look()
    assert outlook.state.in_flight.values[slot] == 5, "all of them are others' by now"


async def test_the_less_busy_by_gateways_word_is_chosen(mesh: Mesh, clock: ManualClock) -> None:
    outlook, loads, (one, other) = opened(mesh, "one", "other")
    loads[one], loads[other] = Load(foreign_in_flight=5), Load(foreign_in_flight=1)
    found = choose(outlook.view, outlook.state, REQUEST, now_s=outlook.look())
    assert isinstance(found, Granted)
    assert found.worker_id == other
