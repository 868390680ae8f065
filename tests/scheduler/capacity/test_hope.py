"""What there is to wait for where a model answers nowhere."""

from __future__ import annotations

import pytest

from placement.copies.wishes import Placement
from placement.types import CandidateKey, Copy, CopyState, Worker
from placement.view import FleetView
from runtime.ids import Digest, ModelVersion
from scheduler.capacity.hope import Hope, prospect_of
from tests.placement.fleets import DIGITS, HERE, THERE, V1, worker
from tests.scheduler.capacity.rig import failed, ready, wish

S = CopyState
ON_DEMAND = Placement(DIGITS, V1, Digest("d" * 64), HERE, 0, 1, max_copies=3)


@pytest.mark.parametrize(
    ("workers", "wishes", "hope"),
    [
        ([], [], Hope.NOT_PLACED),
        ([worker("w1")], [wish()], Hope.COMING),
        ([worker("w1")], [ON_DEMAND], Hope.COMING),
        ([worker("w1")], [wish(copies=0)], Hope.NOT_PLACED),
        ([worker("w1")], [wish(version="2")], Hope.COMING),
        ([worker("w1")], [wish(region=THERE)], Hope.NOT_PLACED),
        ([ready("w1", state=S.LOADING)], [], Hope.COMING),
        ([ready("w1", state=S.UNLOADING)], [], Hope.NOT_PLACED),
        ([ready("w1", state=S.DRAINING)], [wish()], Hope.COMING),
        ([ready("w1", region=THERE)], [], Hope.NOT_PLACED),
        ([failed("w1", "why")], [], Hope.NOT_PLACED),
        ([failed("w1", "why")], [wish()], Hope.FAILED_EVERYWHERE),
        ([failed("w1", "why"), worker("w2")], [wish()], Hope.FAILED),
        ([failed("w1", "why"), worker("w2", region=THERE)], [wish()], Hope.FAILED_EVERYWHERE),
        ([failed("w1", "why"), ready("w2", state=S.LOADING)], [wish()], Hope.COMING),
    ],
)
def test_a_model_is_on_its_way_while_somebody_wants_it_or_loads_it(
    workers: list[Worker], wishes: list[Placement], hope: Hope
) -> None:
    key = CandidateKey(DIGITS, ModelVersion(""), HERE)
    assert prospect_of(FleetView().with_changes(workers), wishes, key, abroad=False).hope is hope


def test_other_regions_count_where_they_will_do() -> None:
    key, view = CandidateKey(DIGITS, ModelVersion(""), HERE), FleetView().with_changes([worker("w1")])
    assert prospect_of(view, [wish(region=THERE)], key, abroad=True).hope is Hope.COMING


def test_a_version_that_nobody_wants_is_not_waited_for_and_the_sentence_names_it() -> None:
    key = CandidateKey(DIGITS, ModelVersion("7"), HERE)
    found = prospect_of(FleetView().with_changes([worker("w1")]), [wish()], key, abroad=False)
    assert found.hope is Hope.NOT_PLACED
    assert found.detail.startswith("no copy of model 'digits' version 7 is in region 'here', and nobody wishes for one")


def test_a_shortage_is_told_while_no_worker_has_begun() -> None:
    key = CandidateKey(DIGITS, ModelVersion(""), HERE)
    idle, busy = FleetView().with_changes([worker("w1")]), FleetView().with_changes([ready("w1", state=S.LOADING)])
    assert prospect_of(idle, [wish()], key, abroad=False, shortage="no room").detail.endswith("answers yet (no room)")
    assert prospect_of(busy, [wish()], key, abroad=False, shortage="no room").detail.endswith("answers yet (1 LOADING)")


def test_the_sentence_says_what_was_seen() -> None:
    key = CandidateKey(DIGITS, ModelVersion(""), HERE)
    unexplained = worker("w2", Copy(DIGITS, V1, Digest("d" * 64), S.FAILED))
    for workers, says in (
        ([worker("w1")], "no copy of model 'digits' in region 'here' answers yet (no worker has begun to load it)"),
        ([ready("w1", state=S.LOADING), ready("w2", state=S.LOADING)], "answers yet (2 LOADING)"),
        ([failed("w1", "no room")], "every copy of model 'digits' in region 'here' failed to load (1 FAILED): no room"),
        ([unexplained], "failed to load (1 FAILED): no reason told"),
    ):
        assert says in prospect_of(FleetView().with_changes(workers), [wish()], key, abroad=False).detail
