"""Who may have which model, what its names mean, and how long one waits for a model that nobody has told of."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from gateway.admission import EVERYBODY, KeyFacts
from gateway.refusals import ModelUnknown
from gateway.routes import Routes
from gateway.targets import NoticeMissing, Targets
from gateway.versions import VersionGone
from placement.rules import Route, RoutingPolicy, Rule
from placement.types import Copy, Worker
from runtime.errors import DeadlineExceeded
from runtime.ids import KeyId, Region, TenantId
from runtime.notices import STABLE, NoticeBoard
from tests.gateway.fakes import copy_of, notice_of, worker_of

OWN, STRANGER = KeyFacts(KeyId("k"), TenantId("t")), KeyFacts(KeyId("s"), TenantId("u"))


@dataclass
class FixedFleet:
    synced: bool = True
    held: frozenset[str] = frozenset({"m"})

    def copies(self, model: str, version: str = "") -> tuple[tuple[Worker, Copy], ...]:
        copy = copy_of(model)
        return ((worker_of("w", copy), copy),) if model in self.held else ()

    def placed(self, model: str, version: str = "") -> bool:
        return False


def synced_board(*notices: object) -> NoticeBoard:
    board = NoticeBoard()
    board.synced = True
    for notice in notices:
        board.hear_model(notice)  # type: ignore[arg-type]
    return board


def targets_of(board: NoticeBoard | None, *, enforced: bool = True, wait_s: float = 0.05) -> Targets:
    return Targets(board, FixedFleet(), enforced=enforced, wait_s=wait_s, rng=random.Random(1))


async def test_a_model_is_for_its_owner_and_those_it_is_shared_with() -> None:
    board = synced_board(notice_of("m"))
    targets = targets_of(board)
    assert targets.find(OWN, "m") == ""
    with pytest.raises(ModelUnknown):
        targets.find(STRANGER, "m")
    assert (targets.sees(OWN, "m"), targets.sees(STRANGER, "m")) == (True, False)
    board.hear_model(notice_of("m", shared_with=["u"], generation=2))
    assert targets.find(STRANGER, "m") == ""
    board.hear_model(notice_of("m", generation=3))
    with pytest.raises(ModelUnknown):
        targets.find(STRANGER, "m")


async def test_to_others_a_model_is_unknown_where_they_only_look() -> None:
    targets = targets_of(synced_board(notice_of("m", aliases={STABLE: ("2", 0)})))
    assert (targets.pinned(OWN, "m", ""), targets.mostly(OWN, "m", ""), targets.mostly(OWN, "m", STABLE)) == ("", "2", "2")
    for look in (targets.pinned, targets.mostly):
        with pytest.raises(ModelUnknown, match=r"^Request for unknown model: 'm' is not found$"):
            look(STRANGER, "m", "")


async def test_requests_are_shared_out() -> None:
    targets = targets_of(synced_board(notice_of("m", aliases={STABLE: ("1", 0), "canary": ("2", 20)})))
    found = [targets.find(OWN, "m") for _ in range(2000)]
    assert 0.15 < found.count("2") / 2000 < 0.25  # type: ignore[arg-type]
    assert len({targets.find(OWN, "m", session_key="talk") for _ in range(100)}) == 1


async def test_a_model_that_is_told_of_later_is_waited_for() -> None:
    board = synced_board()
    targets = targets_of(board, wait_s=30)
    waiting = asyncio.create_task(targets.found(OWN, "m"))
    await asyncio.sleep(0)
    assert not waiting.done()
    board.hear_model(notice_of("another"))
    board.hear_model(notice_of("m", withdrawn=["1"]))
    assert await asyncio.wait_for(waiting, 5) == ""
    with pytest.raises(VersionGone):
        await targets.found(OWN, "m", "1")


async def test_a_model_that_nobody_tells_of_is_refused_for_now() -> None:
    for board in (synced_board(), NoticeBoard()):
        with pytest.raises(NoticeMissing) as caught:
            await targets_of(board).found(OWN, "m")
        assert caught.value.retry_after_s == 1.0


async def test_a_model_that_is_nowhere_is_unknown_at_once() -> None:
    with pytest.raises(ModelUnknown, match=r"^Request for unknown model: 'x' is not found$"):
        await asyncio.wait_for(targets_of(synced_board(), wait_s=60).found(OWN, "x"), 5)


async def test_a_deadline_ends_the_wait() -> None:
    deadline_s = asyncio.get_running_loop().time() + 0.05
    with pytest.raises(DeadlineExceeded, match="has not been heard here yet"):
        await asyncio.wait_for(targets_of(synced_board(), wait_s=60).found(OWN, "m", deadline_s=deadline_s), 5)


async def test_where_no_keys_are_asked_for_everybody_may_and_names_still_mean_something() -> None:
    board = synced_board(notice_of("m", aliases={STABLE: ("2", 0)}, withdrawn=["1"]))
    targets = targets_of(board, enforced=False)
    assert (targets.find(EVERYBODY, "m"), targets.find(EVERYBODY, "n", "7")) == ("2", "7")
    assert targets.sees(EVERYBODY, "n")
    with pytest.raises(VersionGone):
        targets.find(EVERYBODY, "m", "1")


async def test_without_a_board_words_are_taken_as_they_come() -> None:
    targets = targets_of(None)
    assert (targets.find(OWN, "m", "3"), targets.mostly(OWN, "m", ""), targets.pinned(OWN, "m", "x")) == ("3", "", "x")
    assert await targets.is_told(OWN, "m")


async def test_what_the_board_knew_before_is_known() -> None:
    board = synced_board(notice_of("m", aliases={STABLE: ("2", 0)}))
    assert targets_of(board).find(OWN, "m") == "2"


async def test_whether_a_model_was_told_of() -> None:
    board = synced_board(notice_of("m"))
    targets = targets_of(board)
    assert await targets.is_told(OWN, "m")
    with pytest.raises(ModelUnknown):
        await targets.is_told(STRANGER, "m")
    waiting = asyncio.create_task(targets.is_told(OWN, "late"))
    await asyncio.sleep(0)
    board.hear_model(notice_of("late"))
    assert await asyncio.wait_for(waiting, 5)
    with pytest.raises(NoticeMissing):
        await targets_of(NoticeBoard()).is_told(OWN, "m")


class RuledFleet(FixedFleet):
    """One whose rules are told."""

    home = Region("here")

    def __init__(self, *rules: Rule) -> None:
        super().__init__()
        self.policy = RoutingPolicy(1, rules)


def versions_of(targets: Targets, keys: Iterable[KeyFacts]) -> list[str]:
    return [targets.find(key, "m") or "" for key in keys]


async def test_where_a_rule_says_so_a_key_keeps_its_version() -> None:
    board = synced_board(notice_of("m", aliases={STABLE: ("1", 0), "canary": ("2", 10)}))
    rule = Rule(models=("m",), regions=("here",), sticky_versions=True)
    targets = Targets(board, RuledFleet(rule), routes=Routes(RuledFleet(rule), Route()))
    keys = [KeyFacts(KeyId(f"key-{number}"), TenantId("t")) for number in range(2000)]
    first = versions_of(targets, keys)
    assert versions_of(targets, keys) == first
    assert 0.07 < first.count("2") / len(keys) < 0.13
    board.hear_model(notice_of("m", aliases={STABLE: ("1", 0), "canary": ("2", 50)}, generation=2))
    later = versions_of(targets, keys)
    assert all(now == "2" for before, now in zip(first, later, strict=True) if before == "2")  # nobody goes back
    assert targets.find(keys[0], "m", "1") == "1"


@pytest.mark.parametrize("rules", [(), (Rule(sticky_versions=True), Rule(sticky_versions=False))])
async def test_else_its_requests_are_shared_out(rules: tuple[Rule, ...]) -> None:
    board = synced_board(notice_of("m", aliases={STABLE: ("1", 0), "canary": ("2", 50)}))
    fleet = RuledFleet(*rules)
    assert set(versions_of(Targets(board, fleet, routes=Routes(fleet, Route())), [OWN] * 100)) == {"1", "2"}


async def test_where_no_key_is_asked_for_nothing_is_kept_by_it() -> None:
    board = synced_board(notice_of("m", "", aliases={STABLE: ("1", 0), "canary": ("2", 50)}))
    fleet = RuledFleet(Rule(sticky_versions=True))
    assert set(versions_of(Targets(board, fleet, enforced=False, routes=Routes(fleet, Route())), [EVERYBODY] * 100)) == {
        "1",
        "2",
    }
