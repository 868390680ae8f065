"""Who holds which row and whose turn it is: as stories, and as invariants over whatever comes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidArgument, PenstockError
from worker.batching.places import SequencePolicy
from worker.batching.queue import QueueFull
from worker.batching.sequences import Member, SequenceNotStarted, SequenceQueue, SequencesFull
from worker.kserve.parameters import SequenceMark
from worker.types import QueuePolicy, SequenceStrategy, TimeoutAction

Request = Member[str]
DIRECT, OLDEST = SequenceStrategy.DIRECT, SequenceStrategy.OLDEST
TWO_ROWS = SequencePolicy("m", DIRECT, rows=2)


def request(
    sequence_id: int | str,
    flags: str = "",
    *,
    at_s: float = 0.0,
    shape: object = "a",
    rows: int = 1,
    expires_s: float | None = None,
    deadline_s: float | None = None,
) -> Request:
    """`flags` may hold s for START and e for END. Its name is its id and what it is told."""
    mark = SequenceMark(sequence_id, "s" in flags, "e" in flags)
    return Member(f"{sequence_id}{flags}", rows, shape, at_s, 0, expires_s, deadline_s, mark)


class Told:
    """A queue, told in short."""

    def __init__(self, policy: SequencePolicy) -> None:
        self.queue: SequenceQueue[Request] = SequenceQueue(policy)

    def offer(self, *requests: Request) -> None:
        for each in requests:
            self.queue.offer(each)

    def run(self, now_s: float = 0.0, slot: int = 0) -> str:
        """Take an execution and finish it; the names of its requests, in the order of rows."""
        batch = self.queue.take(now_s, slot)
        self.queue.finished(batch, now_s)
        return " ".join(each.work for each in batch)


def test_requests_of_a_sequence_run_one_after_the_other_and_sequences_side_by_side() -> None:
    told = Told(TWO_ROWS)
    told.offer(request(1, "s"), request(1), request(2, "s"), request(1, "e"))
    assert [told.run() for _ in range(4)] == ["1s 2s", "1", "1e", ""]


def test_a_sequence_keeps_its_row_and_rows_below_are_there_without_a_request() -> None:
    told = Told(TWO_ROWS)
    told.offer(request(1, "s"), request(2, "s"))
    assert told.run() == "1s 2s"
    told.offer(request(2))
    (alone,) = told.queue.take(0)
    assert (alone.row, alone.height) == (1, 2)
    told.queue.finished([alone], 0)
    told.offer(request(1, "e"), request(2))
    assert told.run() == "1e 2"
    told.offer(request(3, "s"))
    (third,) = told.queue.take(0)
    assert (third.row, third.height) == (0, 2), "a row that is free is taken, the lowest first"


def test_oldest_batches_whose_turn_it_is() -> None:
    told = Told(SequencePolicy("m", OLDEST, rows=2, max_sequences=3))
    told.offer(request(1, "s"), request(1, "e"), request(2, "s"), request(3, "s"))
    batch = told.queue.take(0)
    assert [(each.work, each.row, each.height) for each in batch] == [("1s", 0, 2), ("2s", 1, 2)]
    told.queue.finished(batch, 0)
    assert [told.run(), told.run()] == ["3s 1e", ""]


def test_other_shapes_wait_their_turn() -> None:
    told = Told(SequencePolicy("m", DIRECT, rows=3))
    told.offer(request(1, "s", shape="a"), request(2, "s", shape="b"), request(3, "s", shape="a"))
    assert [told.run(), told.run()] == ["1s 3s", "2s"]


def test_the_first_request_says_that_it_is() -> None:
    told = Told(TWO_ROWS)
    with pytest.raises(SequenceNotStarted, match=r"sequence 7 is not open on model 'm'.*set the START flag"):
        told.offer(request(7))
    told.offer(request(7, "se"))
    with pytest.raises(SequenceNotStarted):
        told.offer(request(7))
    assert told.run() == "7se"
    assert told.queue.sequences == 0


def test_a_start_begins_an_open_sequence_anew_where_it_is() -> None:
    told = Told(TWO_ROWS)
    told.offer(request(1, "s"), request(1), request(1, "s"), request(1, "e"))
    assert [told.run() for _ in range(4)] == ["1s", "1", "1s", "1e"]


@pytest.mark.parametrize(
    ("refused", "sentence"),
    [
        (Member("", 1, "a", 0.0), "set sequence_id to a number above 0 or a text"),
        (request(1, "s", rows=2), "2 rows; model 'm' works on sequences and takes 1"),
        (
            request("x", "s"),
            "sequence_id 'x' cannot be given to model 'm', which takes it as INT32; send a number in its range",
        ),
        (request(2**31, "s"), "sequence_id 2147483648 cannot be given"),
    ],
)
def test_what_is_no_request_of_a_sequence(refused: Request, sentence: str) -> None:
    told = Told(replace(TWO_ROWS, id_datatype="INT32"))
    with pytest.raises(InvalidArgument) as error:
        told.offer(refused)
    assert sentence in error.value.message
    told.offer(request(2**31 - 1, "s"))


def test_a_text_id_for_a_model_that_takes_texts() -> None:
    told = Told(replace(TWO_ROWS, id_datatype="BYTES"))
    told.offer(request("x", "s"))
    with pytest.raises(InvalidArgument, match="send a text"):
        told.offer(request(5, "s"))


def test_the_same_id_of_another_owner_is_another_sequence() -> None:
    told = Told(TWO_ROWS)
    theirs = request(1)
    theirs.owner = "them"
    told.offer(request(1, "s"))
    with pytest.raises(SequenceNotStarted):
        told.offer(theirs)
    theirs = request(1, "se")
    theirs.owner = "them"
    told.offer(theirs)
    assert [told.run(), told.run()] == ["1s 1se", ""]


def test_a_manifest_may_speak_of_more_sequences_than_there_will_be() -> None:
    told = Told(SequencePolicy("m", OLDEST, rows=2, max_sequences=2**32 - 1))
    told.offer(request(1, "s"))
    assert told.run() == "1s"


def test_sequences_without_a_place_wait_in_a_bounded_backlog() -> None:
    told = Told(replace(TWO_ROWS, rows=1, max_waiting=1))
    told.offer(request(1, "s"), request(2, "s"), request(2, "e"))
    with pytest.raises(SequencesFull, match="1 sequences are open on model 'm' and 1 of 1 wait"):
        told.offer(request(3, "s"))
    assert [told.run(), told.run()] == ["1s", ""]
    told.offer(request(1, "e"))
    assert [told.run(), told.run(), told.run()] == ["1e", "2s", "2e"]


def test_a_sequence_that_begins_after_its_own_end_waits_behind_the_others() -> None:
    told = Told(replace(TWO_ROWS, rows=1))
    told.offer(request(1, "se"), request(2, "se"), request(1, "se"))
    assert told.queue.waiting_sequences == 2
    assert [told.run(), told.run(), told.run()] == ["1se", "2se", "1se"]


def test_a_new_beginning_that_is_withdrawn_waits_no_more() -> None:
    told = Told(replace(TWO_ROWS, rows=1))
    again = request(1, "s")
    told.offer(request(1, "se"), again, request(2, "se"))
    assert not told.queue.abandon(again)
    assert told.queue.waiting_sequences == 1
    again, later = request(1, "se"), request(1, "s")
    told.offer(again, later)
    assert told.queue.waiting_sequences == 3
    told.queue.abandon(again)
    assert told.queue.waiting_sequences == 2
    assert [told.run(), told.run(), told.run()] == ["1se", "2se", "1s"]


def test_what_follows_a_new_beginning_that_is_withdrawn_begins_in_its_stead() -> None:
    told = Told(replace(TWO_ROWS, rows=1))
    again = request(1, "s")
    told.offer(request(1, "se"), again, request(1, "s"), request(2, "se"))
    assert not told.queue.abandon(again)
    assert told.queue.waiting_sequences == 2
    assert [told.run(), told.run(), told.run()] == ["1se", "2se", "1s"]


def test_the_lowest_row_that_is_free_is_taken() -> None:
    told = Told(replace(TWO_ROWS, rows=3))
    told.offer(request(1, "s"), request(2, "s"), request(3, "s"))
    told.run()
    for sequence_id in (2, 1):
        told.offer(request(sequence_id, "e"))
        told.run()
    told.offer(request(4, "s"))
    assert [(each.row, each.height) for each in told.queue.take(0)] == [(0, 3)]


def test_the_queue_is_bounded_over_all_sequences() -> None:  # triton-inference-server/server#5467
    told = Told(replace(TWO_ROWS, max_requests=3, queue=QueuePolicy(max_queue_size=2)))
    told.offer(request(1, "s"), request(1))
    with pytest.raises(QueueFull, match="2 of 2 requests wait"):
        told.offer(request(2, "s"))


def test_an_idle_sequence_gives_up_its_place_to_one_that_waits() -> None:
    told = Told(replace(TWO_ROWS, rows=1, max_idle_s=5))
    told.offer(request(1, "s"), request(2, "s"))
    assert told.run(now_s=10) == "1s"
    assert told.queue.earliest_s == 15
    assert not told.queue.overdue(14.9)
    assert told.queue.earliest_s == 15
    assert told.run(now_s=14.9) == ""
    assert not told.queue.overdue(15)
    assert told.run(now_s=15) == "2s"
    with pytest.raises(SequenceNotStarted, match="had no request for 5 s"):
        told.offer(request(1))


def test_a_sequence_never_runs_with_a_hole() -> None:
    told = Told(TWO_ROWS)
    first, second, third = request(1, "s"), request(1), request(1)
    told.offer(first, second, third)
    assert told.run() == "1s"
    assert list(told.queue.abandon(second)) == [third]
    assert not third.queued
    assert told.queue.sequences == 0
    with pytest.raises(SequenceNotStarted):
        told.offer(request(1))


def test_what_begins_anew_behind_a_hole_still_runs() -> None:
    told = Told(TWO_ROWS)
    told.offer(request(1, "s"))
    gone, last = request(1), request(1, "s")
    told.offer(gone, request(1), last)
    assert [each.work for each in told.queue.abandon(gone)] == ["1"]
    assert [told.run(), told.run()] == ["1s", "1s"]


def test_a_hole_while_the_sequence_runs_ends_it_afterwards() -> None:
    told = Told(TWO_ROWS)
    behind = request(1)
    told.offer(request(1, "s"), behind)
    batch = told.queue.take(0)
    assert not told.queue.abandon(behind)
    told.offer(request(1, "s"))
    assert told.run() == "", "it does not overlap with the one before it"
    told.queue.finished(batch, 0)
    assert told.run() == "1s"


def test_requests_are_overdue_but_delay_keeps_the_order() -> None:
    told = Told(replace(TWO_ROWS, queue=QueuePolicy(default_timeout_s=3)))
    told.offer(request(1, "s", deadline_s=2), request(2, "s"))
    assert [each.work for each in told.queue.overdue(3)] == ["1s", "2s"]
    told = Told(replace(TWO_ROWS, queue=QueuePolicy(TimeoutAction.DELAY, default_timeout_s=3)))
    told.offer(request(1, "s"), request(2, "s", deadline_s=9))
    assert not told.queue.overdue(8)
    assert [each.work for each in told.queue.overdue(9)] == ["2s"]


def test_a_delay_waits_for_the_sequences_that_are_missing() -> None:
    told = Told(replace(TWO_ROWS, rows=3, delay_s=2))
    told.offer(request(1, "s"))
    assert told.run() == "1s", "nobody is missing"
    told.offer(request(2, "s", at_s=1))
    assert told.run(now_s=1) == ""
    assert told.queue.due_s() == 3
    assert told.run(now_s=3) == "2s"
    told.offer(request(1, at_s=4), request(2, at_s=4))
    assert told.run(now_s=4) == "1 2"


def test_a_preferred_number_of_sequences_does_not_wait() -> None:
    told = Told(SequencePolicy("m", OLDEST, rows=4, delay_s=9, preferred_rows=frozenset({2})))
    told.offer(request(0, "s"))
    assert told.run() == "0s"
    told.offer(request(1, "s"), request(2, "s"), request(3, "s"))
    assert [told.run(), told.run()] == ["1s 2s", ""]


def test_sequences_spread_over_the_slots_and_stay() -> None:
    told = Told(replace(TWO_ROWS, slots=2))
    told.offer(request(1, "s"), request(2, "s"), request(3, "s"))
    assert [told.run(slot=0), told.run(slot=1)] == ["1s 3s", "2s"]
    told.offer(request(2), request(3))
    assert told.queue.due_s((1,)) == 0
    assert [told.run(slot=1), told.run(slot=1), told.run(slot=0)] == ["2", "", "3"]


def test_leaving_makes_room_for_those_who_wait() -> None:
    told = Told(replace(TWO_ROWS, rows=1, max_idle_s=math.inf))
    told.offer(request(1, "s"), request(2, "s"), request(3, "s"))
    assert told.run() == "1s"
    told.queue.leave()
    assert [told.run(), told.run()] == ["2s", "3s"]
    assert told.queue.sequences == 0


POLICIES = st.builds(
    SequencePolicy,
    model=st.just("m"),
    strategy=st.sampled_from(SequenceStrategy),
    rows=st.integers(1, 3),
    slots=st.integers(1, 2),
    max_sequences=st.sampled_from((0, 1, 2, 5)),
    max_waiting=st.integers(0, 3),
    max_requests=st.integers(1, 12),
    max_idle_s=st.sampled_from((2.0, 15.0)),
    delay_s=st.sampled_from((0.0, 3.0)),
    preferred_rows=st.frozensets(st.integers(1, 3), max_size=1),
    queue=st.builds(
        QueuePolicy,
        timeout_action=st.sampled_from(TimeoutAction),
        default_timeout_s=st.none() | st.integers(1, 20).map(float),
        max_queue_size=st.sampled_from((0, 4)),
    ),
)
IDS = st.sampled_from((1, 2, 3, 4, "1"))
ARRIVALS = st.tuples(
    st.just("arrive"), IDS, st.sampled_from(("", "", "s", "e", "se")), st.integers(0, 1), st.none() | st.integers(1, 20)
)
STEPS = st.lists(
    ARRIVALS
    | st.tuples(st.sampled_from(("take", "finish")), st.integers(0, 1))
    | st.tuples(st.just("withdraw"), st.integers(0, 30))
    | st.tuples(st.just("expire")),
    max_size=80,
)


@dataclass(slots=True)
class Rules:
    """What is to hold, told by what goes in and comes out."""

    policy: SequencePolicy
    queue: SequenceQueue[Request] = field(init=False)
    inside: list[Request] = field(default_factory=list)
    running: dict[int, Sequence[Request]] = field(default_factory=dict)
    before: dict[int, Request | None] = field(default_factory=dict)
    """By request: the one that was admitted before it for the same id."""
    last: dict[int | str, Request] = field(default_factory=dict)
    ran: list[Request] = field(default_factory=list)
    admitted: int = 0
    gone: int = 0

    def __post_init__(self) -> None:
        self.queue = SequenceQueue(self.policy)

    def arrive(self, entry: Request) -> None:
        assert entry.mark is not None
        sequence_id = entry.mark.sequence_id
        previous = self.last.get(sequence_id)
        try:
            self.queue.offer(entry)
        except SequenceNotStarted:
            assert not entry.mark.start
            return
        except PenstockError as error:
            assert isinstance(error, QueueFull)
            return
        if not entry.mark.start:
            assert previous is not None
            assert previous.mark is not None
            assert not previous.mark.end, "it goes on with something"
            assert previous.queued or previous in self.ran or self.is_running(previous)
        self.before[id(entry)] = previous
        self.last[sequence_id] = entry
        self.inside.append(entry)
        self.admitted += 1

    def is_running(self, entry: Request) -> bool:
        return any(entry in batch for batch in self.running.values())

    def withdraw(self, entry: Request) -> None:
        lost = self.queue.abandon(entry)
        for each in (entry, *lost):
            assert not each.queued
            self.inside.remove(each)
            self.gone += 1

    def expire(self, now_s: float) -> None:
        for entry in self.queue.overdue(now_s):
            assert (entry.deadline_s or math.inf) <= now_s or (entry.expires_s or math.inf) <= now_s
            if entry.queued:
                self.withdraw(entry)
        assert self.queue.earliest_s > now_s

    def take(self, now_s: float, slot: int) -> None:
        self.expire(now_s)
        if slot in self.running or slot >= self.policy.slots:
            return
        batch = self.queue.take(now_s, slot)
        if not batch:
            return
        self.running[slot] = batch
        assert len({each.shape for each in batch}) == 1, "one shape"
        rows = [each.row for each in batch]
        assert len(set(rows)) == len(rows), "at most one sequence per row"
        assert {each.height for each in batch} == {batch[0].height}
        assert max(rows) < batch[0].height <= self.policy.rows
        if self.policy.strategy is DIRECT:
            assert rows == sorted(rows)
        for entry in batch:
            assert (entry.deadline_s or math.inf) > now_s
            assert (entry.expires_s or math.inf) > now_s, "nothing expired is executed"
            self.inside.remove(entry)
            assert entry.mark is not None
            previous = self.before[id(entry)]
            if not entry.mark.start:
                assert previous in self.ran, "never with a hole, never reordered, never overlapping"
            others = [each for key, one in self.running.items() for each in one if each is not entry]
            assert all(each.mark is not None and each.mark.sequence_id != entry.mark.sequence_id for each in others)
        for place, count in Counter(each.sequence.place for each in batch).items():
            assert place is not None
            assert (place.slot, count) == (slot, 1)
            if self.policy.strategy is DIRECT:
                assert place.row in rows

    def finish(self, now_s: float, slot: int) -> None:
        batch = self.running.pop(slot, ())
        self.queue.finished(batch, now_s)
        self.ran += batch

    def check(self) -> None:
        queue, policy = self.queue, self.policy
        limit = min(policy.max_requests, policy.queue.max_queue_size or policy.max_requests)
        assert queue.requests == queue.rows == len(self.inside) <= limit, "capacity"
        assert Counter(map(id, queue)) == Counter(map(id, self.inside)), "conservation"
        assert queue.waiting_sequences <= policy.max_waiting
        assert queue.waiting_sequences == len(queue._backlog) + sum(each.renews for each in self.inside)
        assert queue.sequences <= policy.places + policy.max_waiting
        for entry in self.inside:
            for limit_s in (entry.expires_s, entry.deadline_s):
                assert limit_s is None or queue.earliest_s <= limit_s, "nothing expires unseen"
        for sequence in queue._sequences.values():
            if not sequence.waiting and not sequence.running:
                assert queue.earliest_s <= sequence.touched_s + policy.max_idle_s, "nobody is idle unseen"
        places = [sequence.place for sequence in queue._sequences.values() if sequence.place is not None]
        assert len(set(places)) == len(places) <= policy.places, "a row belongs to one sequence"
        assert len(places) == policy.places or not queue._backlog, "nobody waits beside a free row"


@settings(max_examples=300, deadline=None)
@given(POLICIES, STEPS)
def test_sequences_never_overlap_nor_reorder_and_every_request_leaves_once(
    policy: SequencePolicy, steps: list[tuple[object, ...]]
) -> None:
    rules = Rules(policy)
    now_s = 0.0
    for now_s, step in enumerate(steps):
        match step:
            case ("arrive", int() | str() as sequence_id, str(flags), shape, deadline_s):
                deadline_at_s = None if deadline_s is None else now_s + deadline_s  # type: ignore[operator]
                rules.arrive(request(sequence_id, flags, at_s=now_s, shape=shape, deadline_s=deadline_at_s))
            case ("take", int(slot)):
                rules.take(now_s, slot)
            case ("finish", int(slot)):
                rules.finish(now_s, slot)
            case ("withdraw", int(index)) if rules.inside:
                rules.withdraw(rules.inside[index % len(rules.inside)])
            case ("expire",):
                rules.expire(now_s)
        rules.check()
    rules.queue.leave()
    while rules.running or rules.inside:
        now_s += 5  # more than any delay
        for slot in range(policy.slots):
            rules.finish(now_s, slot)
        for slot in range(policy.slots):
            rules.take(now_s, slot)
        assert rules.running or not rules.inside, "what waits runs"
        rules.check()
    assert rules.admitted == rules.gone + len(rules.ran), "conservation"
    assert rules.queue.sequences == 0
