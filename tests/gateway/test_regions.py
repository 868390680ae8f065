"""Regions: where requests are from, that they stay there, and how far others are."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from gateway.refusals import ModelCold, ModelUnknown, RegionUnserved
from gateway.regions import HEADER, Regions, proximity, rtt_by_region
from gateway.soundings import AGAIN_S, RETRY_S, Soundings
from gateway.types import CapacityAsk, Held
from gateway.upkeep import Upkeep
from gateway.whereabouts import Whereabouts
from placement.copies.assign import Placement
from placement.rules import RoutingPolicy, Rule
from placement.types import Copy, Worker
from runtime.errors import InvalidArgument
from runtime.geolocation import Geolocation, overrides_of
from runtime.ids import ModelName, ModelVersion, Region
from tests.gateway.fakes import FakeLink, copy_of, wish_of, worker_of
from tests.gateway.routed import CALL, M, Routed, routed
from tests.support.manual_clock import ManualClock

EUROPE, ASIA, AFRICA = Region("europe"), Region("asia"), Region("africa")
CROSSING = RoutingPolicy(1, (Rule("all may", cross_region=True),))


def regions(*, allowed: bool = True) -> Regions:
    return Regions(EUROPE, lambda: [EUROPE, ASIA], header_allowed=allowed)


def by_address(*, allowed: bool = False) -> Regions:
    known = Geolocation(EUROPE, ManualClock(), overrides=overrides_of("203.0.113.0/24=asia,198.51.100.0/24=africa"))
    where = Whereabouts(known, lambda: {EUROPE, ASIA})
    return Regions(EUROPE, lambda: [EUROPE, ASIA], header_allowed=allowed, whereabouts=where)


def test_callers_addresses_count_only_where_that_is_asked_for() -> None:
    assert regions().of({}, "203.0.113.7") == EUROPE
    assert by_address().of({}, "203.0.113.7") == ASIA


@pytest.mark.parametrize("address", ["", "10.0.0.1", "8.8.8.8", "198.51.100.7", "no address"])
def test_who_is_nowhere_or_where_nobody_works_is_at_home(address: str) -> None:
    assert by_address().of({}, address) == EUROPE


def test_a_header_comes_before_the_address() -> None:
    assert by_address(allowed=True).of({HEADER: "europe"}, "203.0.113.7") == EUROPE
    assert by_address(allowed=True).of({HEADER: ""}, "203.0.113.7") == ASIA
    assert by_address(allowed=False).of({HEADER: "europe"}, "203.0.113.7") == ASIA


def test_a_header_may_name_any_of_the_seven() -> None:
    assert regions().of({HEADER: "africa"}) == AFRICA


def test_a_header_says_the_region_where_callers_may_say_it() -> None:
    assert regions().of({}) == EUROPE
    assert regions().of({HEADER: "asia"}) == ASIA
    assert regions(allowed=False).of({HEADER: "asia"}) == EUROPE


@pytest.mark.parametrize("named", ["atlantis", b"asia", "x" * 10_000])
def test_a_region_that_nobody_knows_is_refused_with_those_that_are_known(named: str | bytes) -> None:
    with pytest.raises(InvalidArgument, match="asia, europe") as caught:
        regions().of({HEADER: named})
    assert len(caught.value.message) < 300


def test_a_regions_round_trip_is_the_median_of_its_links() -> None:
    trips = [(EUROPE, 1.0), (ASIA, 200.0), (ASIA, 210.0), (ASIA, 9000.0), (AFRICA, 0.0)]
    assert rtt_by_region(trips) == {EUROPE: 1.0, ASIA: 210.0}
    far = proximity(EUROPE, [EUROPE, ASIA, AFRICA], rtt_by_region(trips))
    assert far[EUROPE] == 0.0
    assert 0.0 < far[AFRICA] < far[ASIA] < 1.0  # the one measured, the other by the table


def two_regions(*far_copies: Copy) -> tuple[Worker, Worker]:
    return worker_of("a", region=EUROPE), worker_of("z", *far_copies, region=ASIA)


async def test_a_request_never_leaves_its_region_by_default() -> None:
    async with routed(home=EUROPE) as mesh:
        mesh.tell(*two_regions(copy_of("m")), wishes=(wish_of("m", region=ASIA),))
        with pytest.raises(RegionUnserved, match=r"^Request for unknown model: 'm' is not found in region 'europe'.*asia"):
            await mesh.router.infer(M, b"x", CALL)
        assert "z" not in mesh.links


async def test_where_only_wishes_of_other_regions_are_known_they_are_named() -> None:
    """A gateway that may not leave its region is told of no workers elsewhere."""
    async with routed(home=EUROPE) as mesh:
        mesh.tell(worker_of("a", region=EUROPE), wishes=(wish_of("m", region=ASIA), wish_of("n", copies=0, region=ASIA)))
        with pytest.raises(RegionUnserved, match="asia"):
            await mesh.router.infer(M, b"x", CALL)
        with pytest.raises(ModelUnknown):
            await mesh.router.infer(replace(M, model=ModelName("n")), b"x", CALL)


async def crossed(mesh: Routed) -> None:
    assert await mesh.router.infer(M, b"x", CALL) == b"x"
    assert mesh.links["z"].calls == 1


async def test_a_setting_lets_requests_cross_and_links_are_made_then() -> None:
    async with routed(home=EUROPE, cross_region=True) as mesh:
        mesh.tell(*two_regions(copy_of("m")))
        assert set(mesh.fleet.links) == {"a"}
        await crossed(mesh)


async def test_a_link_to_another_region_is_kept_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.links.roster.IDLE_S", 0.0)
    async with routed(home=EUROPE, cross_region=True) as mesh:
        mesh.tell(*two_regions(copy_of("m")))
        upkeep = Upkeep(mesh.fleet, mesh.metrics, ManualClock())
        await crossed(mesh)
        upkeep.look()
        assert set(mesh.fleet.links) == {"a", "z"}
        upkeep.look()
        assert set(mesh.fleet.links) == {"a"}
        assert await mesh.router.infer(M, b"x", CALL) == b"x"


async def test_a_rule_lets_requests_cross_and_another_takes_it_back() -> None:
    async with routed(home=EUROPE) as mesh:
        mesh.tell(*two_regions(copy_of("m")), policy=CROSSING)
        await crossed(mesh)
        mesh.tell(*two_regions(copy_of("m")), policy=RoutingPolicy(2))
        with pytest.raises(RegionUnserved):
            await mesh.router.infer(M, b"x", CALL)


async def test_home_comes_first_also_where_requests_may_cross() -> None:
    async with routed(home=EUROPE, cross_region=True) as mesh:
        mesh.tell(worker_of("a", copy_of("m"), region=EUROPE), worker_of("z", copy_of("m"), region=ASIA))
        for _ in range(5):
            await mesh.router.infer(M, b"x", CALL)
        assert mesh.links["a"].calls == 5
        mesh.links["a"].gate = asyncio.Event()
        busy = [asyncio.create_task(mesh.router.infer(M, b"x", CALL)) for _ in range(8)]
        await asyncio.sleep(0)
        await crossed(mesh)
        for each in busy:
            each.cancel()


async def test_a_request_that_says_its_region_is_routed_from_there() -> None:
    async with routed(home=EUROPE) as mesh:
        mesh.tell(worker_of("a", copy_of("m"), region=EUROPE), worker_of("z", copy_of("m"), region=ASIA))
        await mesh.router.infer(replace(M, region=ASIA), b"x", CALL)
        assert "a" not in [who for who, link in mesh.links.items() if link.calls]


async def test_measured_round_trips_decide_which_other_region_is_the_near_one() -> None:
    links = {"y": FakeLink("127.0.0.1:1", rtt_ms=20.0), "z": FakeLink("127.0.0.1:1", rtt_ms=300.0)}
    async with routed(home=EUROPE, cross_region=True, links=links) as mesh:
        mesh.tell(worker_of("y", copy_of("m"), region="far-east"), worker_of("z", copy_of("m"), region="far-west"))
        for worker_id in list(mesh.fleet.view.workers):
            mesh.fleet.link(worker_id)
        upkeep = Upkeep(mesh.fleet, mesh.metrics, ManualClock())
        upkeep.look()
        for _ in range(4):
            await mesh.router.infer(M, b"x", CALL)
        assert (links["y"].calls, links["z"].calls) == (4, 0)
        links["y"].rtt_ms, links["z"].rtt_ms = 300.0, 20.0
        upkeep.look()
        for _ in range(4):
            await mesh.router.infer(M, b"x", CALL)
        assert (links["y"].calls, links["z"].calls) == (4, 4)


async def test_what_others_want_does_not_make_a_region_wait() -> None:
    """Whether a copy may come is asked of the request's own region, not of the gateway's."""
    async with routed(home=EUROPE, cold_wait_s=5.0) as mesh:
        mesh.tell(*two_regions(), wishes=(wish_of("m", region=EUROPE), wish_of("n", region=ASIA)))
        with pytest.raises(RegionUnserved, match=r"in region 'asia'; it is in: europe,"):
            await mesh.router.infer(replace(M, region=ASIA), b"x", CALL)
        with pytest.raises(RegionUnserved, match=r"in region 'europe'; it is in: asia,"):
            await mesh.router.infer(replace(M, model=ModelName("n")), b"x", CALL)


async def test_a_copy_that_comes_in_the_requests_own_region_is_waited_for() -> None:
    async with routed(home=EUROPE) as mesh:
        mesh.tell(*two_regions(), wishes=(wish_of("m", region=ASIA),))
        waiting = asyncio.create_task(mesh.router.infer(replace(M, region=ASIA), b"x", CALL))
        await asyncio.sleep(0)
        mesh.tell(*two_regions(copy_of("m")))
        assert await waiting == b"x"
        assert set(mesh.router.ledger.drain(1e9)) == {(ASIA, ModelName("m"), ModelVersion("1"))}


async def test_a_region_without_workers_is_served_by_others_only_where_requests_may_cross() -> None:
    africans = replace(M, region=AFRICA)
    async with routed(home=EUROPE) as mesh:
        mesh.tell(*two_regions(copy_of("m")))
        with pytest.raises(RegionUnserved, match=r"in region 'africa'; it is in: asia,"):
            await mesh.router.infer(africans, b"x", CALL)
        mesh.tell(*two_regions(copy_of("m")), policy=CROSSING)
        assert await mesh.router.infer(africans, b"x", CALL) == b"x"


@pytest.mark.parametrize(
    ("wishes", "counted"),
    [((), ASIA), ((wish_of("m", region=EUROPE),), EUROPE)],
)
async def test_demand_is_told_of_the_region_that_wants_copies(wishes: tuple[Placement, ...], counted: Region) -> None:
    """Else a region would unload what serves others, or one would load what nobody asked of it."""
    async with routed(home=EUROPE, cross_region=True) as mesh:
        mesh.tell(*two_regions(copy_of("m")), wishes=(*wishes, wish_of("m", copies=0, max_copies=2, region=ASIA)))
        await mesh.router.infer(M, b"x", CALL)
        assert set(mesh.router.ledger.drain(1e9)) == {(counted, ModelName("m"), ModelVersion("1"))}


async def test_where_requests_may_cross_a_cold_copy_is_asked_for_where_it_is_wanted() -> None:
    schedulers = NoPlaces()
    async with routed(home=EUROPE, cross_region=True, capacity=schedulers, cold_wait_s=0.0) as mesh:
        wishes = [wish_of("m", copies=0, max_copies=2, region=region) for region in (AFRICA, ASIA)]
        mesh.tell(*two_regions(), worker_of("t", region=AFRICA), wishes=tuple(wishes))
        with pytest.raises(ModelCold):
            await mesh.router.infer(M, b"x", CALL)
        mesh.fleet.state.proximity = {EUROPE: 0.0, AFRICA: 0.6, ASIA: 0.2}
        with pytest.raises(ModelCold):
            await mesh.router.infer(M, b"x", CALL)
    assert [ask.region for ask in schedulers.asks] == [AFRICA, ASIA], "by name, then by how near they are"


async def test_a_region_that_its_workers_left_is_said_so_and_nobody_queues_for_it() -> None:
    schedulers, wishes = NoPlaces(), (wish_of("m", region=EUROPE), wish_of("m", region=ASIA))
    async with routed(home=EUROPE, capacity=schedulers, cold_wait_s=0.0) as mesh:
        mesh.tell(worker_of("z", copy_of("m"), region=ASIA), wishes=wishes)
        with pytest.raises(ModelCold, match=r"^no worker is in region 'europe' now to serve model 'm'; it is in: asia, and"):
            await mesh.router.infer(M, b"x", CALL)
        mesh.tell(worker_of("a", region=EUROPE), wishes=wishes)
        with pytest.raises(ModelCold):
            await mesh.router.infer(M, b"x", CALL)
    assert [ask.region for ask in schedulers.asks] == [EUROPE], "there is a worker now that could load it"


async def test_a_worker_that_comes_back_to_a_deserted_region_is_waited_for() -> None:
    async with routed(home=EUROPE) as mesh:
        mesh.tell(wishes=(wish_of("m", region=EUROPE),))
        waiting = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await asyncio.sleep(0)
        mesh.tell(worker_of("a", copy_of("m"), region=EUROPE))
        assert await waiting == b"x"


@dataclass
class NoPlaces:
    asks: list[CapacityAsk] = field(default_factory=list)

    async def await_capacity(self, ask: CapacityAsk) -> Held | None:
        self.asks.append(ask)
        return None


def three_regions(*, dear: float = 1.0) -> tuple[Worker, Worker, Worker]:
    near = replace(worker_of("near", copy_of("m"), region=AFRICA), cost=dear)
    return worker_of("own", region=EUROPE), near, worker_of("far", copy_of("m"), region=ASIA)


async def served_by(mesh: Routed, *workers: Worker, policy: RoutingPolicy | None = None) -> str:
    """Who answers once regions have been measured."""
    mesh.tell(*workers, policy=policy)
    upkeep = Upkeep(mesh.fleet, mesh.metrics, ManualClock())
    upkeep.look()  # links to other regions are made
    upkeep.look()  # and what they measured is known
    before = {who: link.calls for who, link in mesh.links.items()}
    await mesh.router.infer(M, b"x", CALL)
    [who] = [who for who, link in mesh.links.items() if link.calls > before.get(who, 0)]
    return who


def linked(**rtt_ms: float) -> dict[str, FakeLink]:
    return {who: FakeLink("127.0.0.1:1", rtt_ms=each) for who, each in rtt_ms.items()}


async def test_the_table_decides_until_regions_are_measured() -> None:
    async with routed(home=EUROPE, links=linked(near=0.0, far=0.0)) as mesh:
        assert await served_by(mesh, *three_regions(), policy=CROSSING) == "near"
    async with routed(home=EUROPE, links=linked(near=190.0, far=40.0)) as mesh:
        assert await served_by(mesh, *three_regions(), policy=CROSSING) == "far"


@pytest.mark.parametrize(("cost", "chosen"), [(0.25, "near"), (5.0, "far")])
async def test_a_dear_near_region_loses_where_the_rule_says_that_cost_counts(cost: float, chosen: str) -> None:
    rule = Rule("cheap ones", cross_region=True, weights={"cost": cost})
    async with routed(home=EUROPE, links=linked(near=20.0, far=200.0)) as mesh:
        assert await served_by(mesh, *three_regions(dear=1.5), policy=RoutingPolicy(1, (rule,))) == chosen


async def test_regions_are_measured_before_any_request_goes_there_but_only_where_one_may() -> None:
    async with routed(home=EUROPE) as mesh:
        mesh.tell(*three_regions())
        upkeep = Upkeep(mesh.fleet, mesh.metrics, ManualClock())
        upkeep.look()
        assert set(mesh.fleet.links) == {"own"}
        mesh.tell(*three_regions(), policy=CROSSING)
        upkeep.look()
        assert set(mesh.fleet.links) == {"own", "near", "far"}


async def test_a_region_whose_worker_cannot_be_measured_is_sounded_at_another() -> None:
    workers = [worker_of("own", region=EUROPE), *(worker_of(f"a{number}", region=ASIA) for number in range(3))]
    links = linked(a0=0.0, a1=0.0, a2=90.0)
    async with routed(home=EUROPE, cross_region=True, links=links) as mesh:
        mesh.tell(*workers)
        soundings, told = Soundings(), []
        for now_s in (0.0, 1.0, RETRY_S, RETRY_S + 1, 2 * RETRY_S, 2 * RETRY_S + 1):
            measured = soundings.take(mesh.fleet, now_s)
            told.append((len(mesh.fleet.links) - 1, dict(measured)))
        assert told == [(1, {}), (1, {}), (2, {}), (2, {}), (3, {}), (3, {ASIA: 90.0})]
        for worker_id in list(mesh.fleet.view.workers):
            mesh.fleet.link(worker_id)
        mesh.tell(workers[0])
        assert soundings.take(mesh.fleet, 60.0) == {}, "a region that is gone is forgotten"


async def test_what_was_measured_outlives_the_link_and_is_measured_again() -> None:
    workers = (worker_of("own", region=EUROPE), worker_of("z", region=ASIA))
    async with routed(home=EUROPE, cross_region=True, links=linked(z=90.0)) as mesh:
        mesh.tell(*workers)
        soundings = Soundings()
        soundings.take(mesh.fleet, 0.0)
        assert soundings.take(mesh.fleet, 1.0) == {ASIA: 90.0}
        mesh.tell(workers[0], replace(workers[1], address="127.0.0.1:2"))  # its link went
        assert "z" not in mesh.fleet.links
        assert soundings.take(mesh.fleet, AGAIN_S) == {ASIA: 90.0}
        assert "z" not in mesh.fleet.links
        soundings.take(mesh.fleet, 1.0 + AGAIN_S)
        assert "z" in mesh.fleet.links
