"""What the registry says of copies and nodes counts at once, whatever their workers still do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from gateway.fleet import Fleet
from gateway.types import FleetNews
from placement.types import Copy
from runtime.clock import SystemClock
from runtime.ids import Digest, NodeId, WorkerId
from runtime.notices import NoticeBoard
from tests.gateway.fakes import FakeLink, FakeSource, copy_of, notice_of, wish_of, worker_of

ONE, TWO = Digest("1" * 64), Digest("2" * 64)


def version(number: str, digest: Digest) -> Copy:
    return replace(copy_of("m", number), digest=digest)


@pytest.fixture
def board() -> NoticeBoard:
    return NoticeBoard()


@pytest.fixture
def links() -> dict[str, FakeLink]:
    return {}


@pytest.fixture
async def fleet(board: NoticeBoard, links: dict[str, FakeLink]) -> AsyncIterator[Fleet]:
    fleet = Fleet(
        FakeSource(), lambda worker: links.setdefault(worker.worker_id, FakeLink(worker.address)), SystemClock(), board
    )
    yield fleet
    following = asyncio.create_task(fleet.run())
    await asyncio.sleep(0)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


def versions(fleet: Fleet) -> set[str]:
    return {copy.version for _, copy in fleet.ready("m")}


async def test_a_withdrawn_copy_is_gone_while_its_worker_still_says_that_it_is_ready(fleet: Fleet, board: NoticeBoard) -> None:
    news = FleetNews(True, (worker_of("a", version("1", ONE), version("2", TWO)), worker_of("b", version("2", TWO))))
    fleet.apply(news)
    changed = fleet.changed
    board.hear_model(notice_of("m", withdrawn=["2"], digests=[TWO]))
    assert changed.is_set(), "whoever waits for a copy has to look again"
    assert versions(fleet) == {"1"}
    fleet.apply(news)
    assert versions(fleet) == {"1"}
    fleet.apply(FleetNews(False, (worker_of("c", version("2", TWO)),)))
    assert versions(fleet) == {"1"}
    assert set(fleet.view.workers) == {"a", "b", "c"}


async def test_a_withdrawn_wish_is_no_wish(fleet: Fleet, board: NoticeBoard) -> None:
    fleet.apply(FleetNews(True, (), placements=(replace(wish_of("m"), digest=ONE),)))
    assert fleet.placed("m")
    board.hear_model(notice_of("m", withdrawn=["1"], digests=[ONE]))
    assert not fleet.placed("m")
    assert not list(fleet.wanted())


async def test_a_revoked_worker_is_gone_and_its_calls_with_it(
    fleet: Fleet, board: NoticeBoard, links: dict[str, FakeLink]
) -> None:
    news = FleetNews(True, (worker_of("a", version("1", ONE)), worker_of("b", version("1", ONE))))
    fleet.apply(news)
    links["a"].in_flight = 1  # would be let finish if it only left
    board.hear_node(NodeId("a"))
    assert set(fleet.view.workers) == {"b"}
    async with asyncio.timeout(2):
        while not links["a"].closed:
            await asyncio.sleep(0)
    fleet.apply(news)
    assert set(fleet.view.workers) == {"b"}
    assert WorkerId("a") not in fleet.links


async def test_a_worker_that_is_leaving_is_not_waited_for_once_it_is_revoked(
    fleet: Fleet, board: NoticeBoard, links: dict[str, FakeLink]
) -> None:
    fleet.apply(FleetNews(True, (worker_of("a", version("1", ONE)),)))
    links["a"].in_flight = 1
    fleet.apply(FleetNews(True, ()))
    await asyncio.sleep(0)
    assert not links["a"].closed
    board.hear_node(NodeId("a"))
    async with asyncio.timeout(2):
        while not links["a"].closed:
            await asyncio.sleep(0.01)
