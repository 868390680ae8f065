"""Requests without room: each place goes to whoever is next, and every wait ends."""

from __future__ import annotations

import asyncio

import pytest

from placement.rules import WorkerSelector
from placement.types import CopyState
from placement.waiting.queue import Bound, QueueBounds
from runtime.errors import (
    CapacityQueueFull,
    CapacityTooLate,
    CapacityWaitedTooLong,
    Code,
    DeadlineExceeded,
    FailedPrecondition,
    ModelLoadFailed,
    ModelNotPlaced,
    NotLeader,
    PenstockError,
    ResourceExhausted,
)
from runtime.ids import ModelVersion, WorkerId
from scheduler.capacity.aim import WINDOW
from scheduler.capacity.types import CapacityRules, Place
from tests.placement.fleets import HERE, THERE, worker
from tests.scheduler.capacity.rig import Mesh, failed, gone, granted, places, queueing, ready, wish
from tests.support.manual_clock import settle


async def outcome(ask: asyncio.Task[Place]) -> PenstockError:
    with pytest.raises(PenstockError) as failed:
        await ask
    return failed.value


async def test_a_place_that_comes_free_answers_the_request_with_its_hold() -> None:
    async with queueing(ready("w1")) as mesh:
        ask = mesh.ask()
        await settle()
        assert mesh.waiting_at("w1") == "a"
        mesh.sites.free("w1")
        place = await ask
        assert (place.worker_id, place.version) == ("w1", "1")
        assert list(mesh.sites["w1"].kept) == [place.hold_id]
        assert place.until_s == mesh.clock.monotonic_s() + 2.0
        await settle()
        assert mesh.waiting_at("w1") == ""
        assert (mesh.capacity.granted, mesh.capacity.holding.count, len(mesh.capacity.queue)) == (1, 0, 0)


async def test_where_a_worker_has_room_after_all_nobody_waits() -> None:
    async with queueing(ready("w1")) as mesh:
        mesh.sites.free("w1", 3)
        assert await places(mesh.ask(), mesh.ask("b")) == ["w1", "w1"]
        await settle()
        assert mesh.sites["w1"].free == 1


async def test_places_go_round_by_shares_however_many_one_tenant_has_waiting() -> None:
    async with queueing(ready("w1"), ready("w2")) as mesh:
        mesh.route("b", share=2)
        asks = [mesh.ask("a") for _ in range(12)]
        await settle()
        asks += [mesh.ask("b") for _ in range(6)]
        await settle()
        for number in range(9):
            mesh.sites.free(f"w{number % 2 + 1}")
            await settle()
        served = ["a" if number < 12 else "b" for number in await granted(asks)]
        assert served.count("a") == 3
        assert served.count("b") == 6
        for ask in asks:
            ask.cancel()


async def test_a_higher_class_has_the_next_place_although_its_hold_came_last() -> None:
    async with queueing(ready("w1")) as mesh:
        mesh.route("urgent", priority_class=0)
        asks = [mesh.ask("a"), mesh.ask("b"), mesh.ask("c")]
        await settle()
        urgent = mesh.ask("urgent")
        await settle()
        mesh.sites.free("w1")
        await urgent
        assert await granted(asks) == []
        mesh.sites.free("w1", 3)
        await asyncio.gather(*asks)


async def test_a_place_that_a_long_line_of_one_tenant_may_not_have_goes_to_whoever_may() -> None:
    async with queueing(ready("w1")) as mesh:
        mesh.route("a", priority_class=0)
        asks = [mesh.ask("a") for _ in range(3 * WINDOW)]
        await settle()
        late = mesh.ask("b")
        await settle()
        mesh.sites["w1"].blocked.add("a")
        mesh.sites.free("w1")
        assert await granted([*asks, late]) == [3 * WINDOW]
        mesh.sites["w1"].blocked.clear()
        mesh.sites.free("w1")
        assert len(await granted(asks)) == 1
        for each in asks:
            each.cancel()


async def test_few_holds_wait_at_each_worker_and_no_more_than_there_is_use_for() -> None:
    rules = CapacityRules(per_worker=2, spare=1)
    async with queueing(*(ready(f"w{number}") for number in range(5)), rules=rules) as mesh:
        ask = mesh.ask()
        await settle()
        assert mesh.capacity.holding.count == 2  # one, and one to spare
        asks = [ask, *(mesh.ask() for _ in range(20))]
        await settle()
        assert [len(mesh.sites[f"w{number}"].waiting) for number in range(5)] == [2] * 5
        for each in asks:
            each.cancel()
        await settle()
        assert mesh.capacity.holding.count == 0
        assert all(not mesh.sites[f"w{number}"].waiting for number in range(5))


async def test_a_place_that_nobody_waits_for_any_more_is_given_back_at_once() -> None:
    async with queueing(ready("w1"), ready("w2")) as mesh:
        ask = mesh.ask()
        await settle()
        mesh.sites.free("w1")
        mesh.sites.free("w2")
        await ask
        await settle()
        assert sum(len(site.kept) for site in mesh.sites.by_id.values()) == 1
        assert sum(site.free for site in mesh.sites.by_id.values()) == 1
        assert mesh.capacity.holding.released == 1


async def test_a_request_whose_gateway_went_away_is_withdrawn_also_as_its_place_comes() -> None:
    async with queueing(ready("w1")) as mesh:
        first, second, third = mesh.ask(), mesh.ask(), mesh.ask()
        await settle()
        first.cancel()
        await settle()
        assert mesh.capacity.withdrawn == 1
        mesh.sites.free("w1")
        while not mesh.capacity.granted:
            await asyncio.sleep(0)
        second.cancel()  # it has its place by now, but has not run since
        assert (await third).worker_id == "w1"
        fourth = mesh.ask()
        await settle()
        mesh.sites.free("w1")
        while mesh.capacity.granted < 3:
            await asyncio.sleep(0)
        fourth.cancel()
        await settle()
        assert (len(mesh.sites["w1"].kept), mesh.sites["w1"].free) == (1, 1)


async def test_a_worker_that_failed_the_request_is_not_given_to_it_but_to_the_next() -> None:
    async with queueing(ready("w1"), ready("w2")) as mesh:
        picky = mesh.ask("a", exclude=frozenset({WorkerId("w1")}))
        await settle()
        assert mesh.waiting_at("w1") == ""
        other = mesh.ask("a")
        await settle()
        mesh.sites.free("w1")
        assert await places(other) == ["w1"]
        mesh.sites.free("w2")
        assert await places(picky) == ["w2"]


async def test_a_worker_that_the_route_denies_is_not_asked() -> None:
    async with queueing(ready("w1"), ready("w2")) as mesh:
        mesh.route("a", deny=(WorkerSelector(worker_ids=frozenset({WorkerId("w1")})),))
        ask = mesh.ask("a")
        await settle()
        assert (mesh.waiting_at("w1"), mesh.waiting_at("w2")) == ("", "a")
        mesh.sites.free("w2")
        await ask


async def test_a_tenant_that_has_its_part_of_a_worker_leaves_its_places_to_others() -> None:
    async with queueing(ready("w1")) as mesh:
        mesh.sites["w1"].blocked.add("greedy")
        greedy = [mesh.ask("greedy") for _ in range(6)]
        await settle()
        modest = mesh.ask("modest")
        await settle()
        mesh.sites.free("w1")
        await modest
        assert await granted(greedy) == []
        mesh.sites["w1"].blocked.clear()
        mesh.sites.free("w1", 6)
        await asyncio.gather(*greedy)


async def test_other_regions_are_used_only_where_the_route_says_so() -> None:
    async with queueing(ready("w1"), ready("far", region=THERE)) as mesh:
        mesh.route("traveller", cross_region=True)
        asks = [mesh.ask("a"), mesh.ask("traveller")]
        await settle()
        assert mesh.waiting_at("far") == "traveller"
        mesh.sites.free("far")
        assert await granted(asks) == [1]
        mesh.sites.free("w1")
        await asks[0]


async def test_a_deadline_ends_the_wait_by_its_own_timer() -> None:
    async with queueing(ready("w1")) as mesh:
        ask, other = mesh.ask(timeout_s=0.75), mesh.ask(timeout_s=30.0)
        await mesh.clock.advance(0.74)
        assert not ask.done()
        await mesh.clock.advance(0.01)
        error = await outcome(ask)
        assert isinstance(error, DeadlineExceeded)
        assert error.message == "waited 0.8 s, and no worker with model 'digits' had a place for it"
        assert mesh.capacity.expired == 1
        other.cancel()


async def test_who_gave_no_time_waits_as_long_as_anybody_may() -> None:
    async with queueing(ready("w1"), rules=CapacityRules(longest_wait_s=60.0)) as mesh:
        ask = mesh.ask()
        await mesh.clock.advance(59.9)
        assert not ask.done()
        await mesh.clock.advance(0.2)
        error = await outcome(ask)
        assert isinstance(error, CapacityWaitedTooLong)
        assert error.retry_after_s


async def test_a_full_queue_and_too_little_time_are_refused_with_when_to_come_back() -> None:
    async with queueing(ready("w1"), bounds=QueueBounds(per_model=8, tenant_share=1.0)) as mesh:
        asks = [mesh.ask(timeout_s=500.0) for _ in range(8)]
        await settle()
        error = await outcome(mesh.ask())
        assert isinstance(error, CapacityQueueFull)
        assert (error.code, error.retry_after_s) == (Code.RESOURCE_EXHAUSTED, 1.0)
        for _ in range(3):
            await mesh.clock.advance(10.0)
            mesh.sites.free("w1")
            await settle()
        late = await outcome(mesh.ask("b", timeout_s=5.0))
        assert isinstance(late, CapacityTooLate)
        assert late.retry_after_s == pytest.approx(5.0)
        assert mesh.capacity.refused == {Bound.MODEL: 1, Bound.TIME: 1}
        for ask in asks:
            ask.cancel()


async def test_a_model_that_is_on_its_way_is_waited_for_and_asked_for() -> None:
    async with queueing(worker("w1")) as mesh:
        mesh.wishes.append(wish())
        ask = mesh.ask()
        await settle()
        assert mesh.missed[0] == ("digits", "", HERE)
        assert mesh.capacity.holding.count == 0
        mesh.show(ready("w1", state=CopyState.LOADING))
        await settle()
        mesh.show(ready("w1"))
        mesh.sites.free("w1")
        assert await places(ask) == ["w1"]


async def test_a_model_whose_last_copy_goes_while_somebody_waits_is_asked_for_again() -> None:
    async with queueing(ready("w1"), worker("w2")) as mesh:
        mesh.wishes.append(wish())
        ask = mesh.ask(timeout_s=20.0)
        await settle()
        assert mesh.missed == []
        mesh.lose("w1")
        await settle()
        assert mesh.missed
        mesh.show(ready("w2"))
        mesh.sites.free("w2")
        assert await places(ask) == ["w2"]


@pytest.mark.parametrize("wished_there", [False, True])
async def test_a_model_that_nobody_wants_in_the_region_is_not_waited_for(wished_there: bool) -> None:
    async with queueing(worker("w1"), ready("far", region=THERE)) as mesh:
        if wished_there:
            mesh.wishes.append(wish(region=THERE))
        mesh.wishes.append(wish(copies=0))
        error = await outcome(mesh.ask())
        assert isinstance(error, ModelNotPlaced)
        assert error.code is Code.NOT_FOUND
        assert error.message == "no copy of model 'digits' is in region 'here', and nobody wishes for one; place it first"
        mesh.route("traveller", cross_region=True)
        mesh.sites.free("far")
        assert await places(mesh.ask("traveller")) == ["far"]


async def test_a_scheduler_that_has_not_seen_the_fleet_yet_sends_nobody_away() -> None:
    async with queueing() as mesh:
        mesh.synced = False
        ask = mesh.ask()
        await settle()
        assert (ask.done(), mesh.missed) == (False, [])
        mesh.synced = True
        mesh.show(ready("w1"))
        mesh.sites.free("w1")
        assert await places(ask) == ["w1"]


async def test_a_wish_that_is_taken_back_ends_the_wait_for_it() -> None:
    async with queueing(worker("w1")) as mesh:
        mesh.wishes.append(wish())
        ask = mesh.ask()
        await settle()
        mesh.wishes.clear()
        mesh.capacity.touch()
        assert isinstance(await outcome(ask), ModelNotPlaced)


async def test_a_model_that_failed_everywhere_is_answered_with_why() -> None:
    async with queueing(failed("w1", "no CUDA device"), failed("w2", "no CUDA device")) as mesh:
        mesh.wishes.append(wish())
        error = await outcome(mesh.ask())
        assert isinstance(error, ModelLoadFailed)
        assert error.code is Code.FAILED_PRECONDITION
        assert "every copy of model 'digits' in region 'here' failed to load (2 FAILED): no CUDA device" in error.message


async def test_while_another_worker_may_still_try_a_failure_counts_once_it_has_lasted() -> None:
    async with queueing(failed("w1", "out of memory"), worker("w2"), rules=CapacityRules(failed_after_s=5.0)) as mesh:
        mesh.wishes.append(wish())
        ask = mesh.ask()
        await mesh.clock.advance(4.0)
        assert not ask.done()
        await mesh.clock.advance(2.0)
        assert isinstance(await outcome(ask), ModelLoadFailed)


async def test_only_the_leader_queues_and_who_waits_when_that_is_over_is_sent_on() -> None:
    async with queueing(ready("w1")) as mesh:
        ask = mesh.ask()
        await settle()
        mesh.leads = False
        mesh.capacity.touch()
        assert isinstance(await outcome(ask), NotLeader)
        await settle()
        assert mesh.waiting_at("w1") == ""
        assert isinstance(await outcome(mesh.ask()), NotLeader)


async def test_leadership_that_ends_unnoticed_is_noticed_within_a_look_and_by_a_place() -> None:
    async with queueing(ready("w1")) as mesh:
        ask = mesh.ask()
        await settle()
        mesh.leads = False
        await mesh.clock.advance(0.9)
        assert not ask.done()
        await mesh.clock.advance(0.1)
        assert isinstance(await outcome(ask), NotLeader)
        mesh.leads = True
        ask = mesh.ask()
        await settle()
        mesh.leads = False
        mesh.sites.free("w1")
        assert isinstance(await outcome(ask), NotLeader)
        await settle()
        assert (mesh.capacity.granted, mesh.sites["w1"].free) == (0, 1)


async def test_a_scheduler_that_ends_sends_everybody_on_and_leaves_no_hold() -> None:
    async with queueing(ready("w1")) as mesh:
        asks = [mesh.ask() for _ in range(3)]
        await settle()
    assert all([isinstance(await outcome(ask), NotLeader) for ask in asks])
    assert mesh.waiting_at("w1") == ""
    assert isinstance(await outcome(mesh.ask()), NotLeader)


@pytest.mark.parametrize("error", [gone(), ResourceExhausted("256 holds wait"), FailedPrecondition("it is LOADING here")])
async def test_a_worker_that_cannot_be_asked_is_left_alone_ever_longer_and_others_are_asked(error: PenstockError) -> None:
    async with queueing(ready("w1"), ready("w2")) as mesh:
        mesh.sites["w1"].failure = error
        asks = [mesh.ask(timeout_s=500.0) for _ in range(2)]
        await mesh.clock.advance(30.0)
        assert mesh.sites["w1"].asked < 80  # four at once each time
        assert mesh.sites["w1"].asked > 8
        mesh.sites.free("w2")
        await settle()
        assert len(await granted(asks)) == 1
        mesh.sites["w1"].failure = None
        await mesh.clock.advance(8.0)
        mesh.sites.free("w1")
        assert "w1" in await places(*asks)


async def test_holds_that_found_no_place_for_long_are_asked_anew() -> None:
    async with queueing(ready("w1"), rules=CapacityRules(hold_wait_s=20.0)) as mesh:
        ask = mesh.ask(timeout_s=100.0)
        await mesh.clock.advance(45.0)
        assert mesh.waiting_at("w1") == "a"
        assert mesh.sites["w1"].asked == 3
        mesh.sites.free("w1")
        await ask


async def test_the_newest_ready_version_is_held_for_who_named_none_and_holds_move_when_it_changes() -> None:
    async with queueing(ready("w1"), ready("w2", version="2")) as mesh:
        asks = [mesh.ask(), mesh.ask(version=ModelVersion("1"))]
        await settle()
        assert [each.version for each in mesh.sites["w2"].waiting] == ["2"]
        assert [each.version for each in mesh.sites["w1"].waiting] == ["1"]
        mesh.show(ready("w1", version="10"))
        await settle()
        assert [each.version for each in mesh.sites["w1"].waiting] == ["10"]
        assert mesh.waiting_at("w2") == ""
        assert isinstance(await outcome(asks[1]), ModelNotPlaced)
        asks[0].cancel()


async def test_a_worker_that_left_gives_no_places_and_one_that_came_does() -> None:
    async with queueing(ready("w1")) as mesh:
        ask = mesh.ask()
        await settle()
        mesh.show(ready("w2"))
        mesh.lose("w1")
        await settle()
        assert (mesh.waiting_at("w1"), mesh.waiting_at("w2")) == ("", "a")
        mesh.sites.free("w2")
        assert await places(ask) == ["w2"]


async def test_nothing_is_done_while_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with queueing(ready("w1")) as mesh:
        await settle()
        rounds = _rounds(mesh, monkeypatch)
        await mesh.clock.advance(600.0)
        assert rounds == []


def _rounds(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    counted: list[None] = []
    once = mesh.capacity._round

    def counting() -> None:
        counted.append(None)
        once()

    monkeypatch.setattr(mesh.capacity, "_round", counting)
    return counted
