"""RepositoryModelLoad of what was placed before: more copies of it, on the workers that it was placed on."""

from __future__ import annotations

from dataclasses import replace

from inference import grpc_service_pb2 as pb

from gateway.types import FleetNews
from placement.copies.wishes import Placement
from runtime.ids import Digest
from tests.gateway.edge import gateway_under_test
from tests.gateway.fakes import copy_of, published, wish_of, worker_of


async def placed_by_load(known: Placement | None) -> Placement:
    async with gateway_under_test(auth=False) as gateway:
        gateway.repository.versions.append(published("m"))
        gateway.fleet.apply(FleetNews(True, (), placements=() if known is None else (known,)))

        def done(wish: Placement) -> None:
            gateway.fleet.apply(FleetNews(False, (worker_of("a", copy_of("m")),)))

        gateway.repository.done = done
        await gateway.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="m"), timeout=10)
        [wish] = gateway.repository.placed
        return wish


async def test_what_was_placed_on_demand_is_loaded_and_may_still_grow() -> None:
    known = replace(wish_of("m", 0), max_copies=8, tier="A", labels=frozenset({"spot"}), memory_bytes=7, idle_s=60)
    assert await placed_by_load(known) == replace(known, copies=2, generation=0)
    assert (await placed_by_load(replace(known, max_copies=1))).max_copies == 0, "no less at most than at least"


async def test_what_was_not_placed_goes_anywhere() -> None:
    wish = await placed_by_load(None)
    assert (wish.copies, wish.max_copies, wish.tier, wish.labels) == (2, 0, "", frozenset())


async def test_a_wish_for_another_digest_says_nothing_of_this_one() -> None:
    known = replace(wish_of("m", 0), digest=Digest("0" * 64), max_copies=8, tier="A")
    assert (await placed_by_load(known)).tier == ""
