"""Whatever is asked of a batcher and whenever: every request ends once, in order, in time and within the bounds."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from itertools import cycle, permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import PenstockError
from tests.worker.batching.rig import Rig, rig
from tests.worker.virtual_time import VirtualLoop, run_virtually
from worker.batching.jobs import Job
from worker.batching.queue import BatchPolicy, BatchQueue, allowed_wait_s
from worker.statistics import Failure
from worker.types import QueuePolicy, TimeoutAction


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a random scenario. Times in tenths of a second."""

    at: int
    rows: int
    width: int
    priority: int
    timeout: int | None
    cancel_after: int | None


ASKED = st.builds(
    Asked,
    at=st.integers(0, 40),
    rows=st.integers(1, 4),
    width=st.integers(1, 2),
    priority=st.integers(0, 2),
    timeout=st.none() | st.integers(1, 40),
    cancel_after=st.none() | st.integers(0, 40),
)
QUEUES = st.builds(
    QueuePolicy,
    timeout_action=st.sampled_from(TimeoutAction),
    default_timeout_s=st.none() | st.sampled_from((0.3, 1.5)),
    allow_timeout_override=st.booleans(),
    max_queue_size=st.sampled_from((0, 2)),
)
POLICIES = st.sampled_from((0, 2)).flatmap(
    lambda levels: st.builds(
        BatchPolicy,
        max_rows=st.sampled_from((0, 4, 8)),
        delay_s=st.sampled_from((0.0, 0.7)),
        preferred_rows=st.frozensets(st.integers(1, 8), max_size=2),
        max_requests=st.integers(1, 6),
        priority_levels=st.just(levels),
        default_priority=st.just(levels),
        default_queue=QUEUES,
        queues=st.dictionaries(st.integers(1, levels), QUEUES) if levels else st.just({}),
    )
)


@dataclass(frozen=True, slots=True)
class Setting:
    policy: BatchPolicy
    slots: int
    in_order: bool
    durations_s: tuple[float, ...]
    as_deadline: bool
    """Whether a request's timeout is its deadline, or what its parameters ask for."""


SETTINGS = st.builds(
    Setting,
    policy=POLICIES,
    slots=st.integers(1, 3),
    in_order=st.booleans(),
    durations_s=st.lists(st.sampled_from((0.05, 0.5, 2.0)), min_size=1, max_size=4).map(tuple),
    as_deadline=st.booleans(),
)


class Watched(BatchQueue[Job]):
    """Remembers how many waited at once."""

    most = 0

    def offer(self, waiting: Job, timeout_s: float | None = None) -> None:
        super().offer(waiting, timeout_s)
        self.most = max(self.most, self.requests)


@dataclass(slots=True)
class Story:
    """What became of every request of a scenario."""

    rig: Rig
    setting: Setting
    scenario: list[Asked]
    begun_s: float
    ends: dict[int, str] = field(default_factory=dict)
    answered: list[int] = field(default_factory=list)

    async def tell(self, number: int, asked: Asked) -> None:
        await asyncio.sleep(asked.at / 10)
        over_s = None if asked.timeout is None else self.rig.loop.time() + asked.timeout / 10
        limit: dict[str, float | None] = {"deadline_s": over_s} if self.setting.as_deadline else {}
        if not self.setting.as_deadline and asked.timeout is not None:
            limit = {"queue_timeout_s": asked.timeout / 10}
        try:
            async with asyncio.timeout(None if asked.cancel_after is None else asked.cancel_after / 10):
                answer = await self.rig.request(number + 1, asked.rows, asked.width, priority=asked.priority, **limit)
        except TimeoutError:
            self.ends[number] = "cancelled"
        except PenstockError as error:
            self.ends[number] = error.reason
            if self.setting.as_deadline and over_s is not None:
                assert self.rig.loop.time() <= over_s + 0.01, "over on time"
        else:
            self.ends[number] = "answered"
            self.answered.append(number)
            assert answer[0].tolist() == [[(number + 1) * 2.0] * asked.width] * asked.rows, "its own answer"

    def batches(self) -> list[list[int]]:
        """The requests of each execution, in the order in which they began."""
        return [list(dict.fromkeys(int(row[0]) - 1 for row in batch)) for batch in self.rig.engine.batches]

    def level(self, number: int) -> int:
        policy, priority = self.setting.policy, self.scenario[number].priority
        return priority if 1 <= priority <= policy.priority_levels else policy.default_priority

    def limits(self, number: int) -> QueuePolicy:
        return self.setting.policy.queues.get(self.level(number), self.setting.policy.default_queue)

    def may_wait_s(self, number: int) -> float:
        timeout = self.scenario[number].timeout
        asked_s = None if timeout is None else timeout / 10
        if self.setting.as_deadline:
            return asked_s if asked_s is not None else math.inf
        limits = self.limits(number)
        allowed_s = allowed_wait_s(limits, asked_s)
        return math.inf if allowed_s is None or limits.timeout_action is TimeoutAction.DELAY else allowed_s


@settings(max_examples=150, deadline=None)
@given(SETTINGS, st.lists(ASKED, max_size=25))
def test_every_request_ends_once_in_order_in_time_and_within_bounds(setting: Setting, scenario: list[Asked]) -> None:
    async def body(loop: VirtualLoop) -> None:
        queue = Watched(setting.policy)
        r = rig(
            loop,
            setting.policy,
            slots=setting.slots,
            in_order=setting.in_order,
            durations_s=cycle(setting.durations_s),
            queue=queue,
        )
        story = Story(r, setting, scenario, loop.time())
        await asyncio.gather(*(story.tell(number, asked) for number, asked in enumerate(scenario)))
        await r.batcher.drained()
        ends, statistics = list(story.ends.values()), r.statistics
        assert len(ends) == len(scenario)
        assert statistics.success.count == ends.count("answered")
        # A request may expire and be cancelled in one turn: it is counted as what happened first.
        assert statistics.failures[Failure.CANCELED] <= ends.count("cancelled")
        assert statistics.success.count + sum(statistics.failures.values()) == len(scenario), "each ends once"
        assert queue.most <= setting.policy.max_requests, "capacity"
        assert statistics.inference_count == sum(r.sizes())
        assert statistics.execution_count == len(r.sizes())
        assert r.batcher.queued_rows == r.batcher.pending_requests == 0
        assert not r.batcher.busy
        _check_executions(story)
        _check_order(story)

    run_virtually(body)


def _check_executions(story: Story) -> None:
    """One shape, no more rows than may be, nothing twice, and nothing whose time was up."""
    seen: set[int] = set()
    for batch, begun_s in zip(story.batches(), story.rig.engine.begun_s, strict=True):
        asked = [story.scenario[number] for number in batch]
        assert len({each.width for each in asked}) == 1
        assert len(batch) == 1 or sum(each.rows for each in asked) <= story.setting.policy.max_rows
        assert not seen & set(batch), "never executed twice"
        seen |= set(batch)
        for number, each in zip(batch, asked, strict=True):
            assert begun_s - story.begun_s < each.at / 10 + story.may_wait_s(number) + 1e-6, "in time"


def _check_order(story: Story) -> None:
    """First in, first out within a priority, and answers likewise where it is asked for."""
    started = {number: index for index, batch in enumerate(story.batches()) for number in batch}
    for earlier, later in permutations(started, 2):
        a, b = story.scenario[earlier], story.scenario[later]
        if story.level(earlier) != story.level(later) or a.at >= b.at:
            continue
        if story.limits(earlier).timeout_action is TimeoutAction.DELAY:
            continue
        assert started[earlier] <= started[later], "first in, first out"
        if story.setting.in_order and earlier in story.answered and later in story.answered:
            assert story.answered.index(earlier) < story.answered.index(later), "answers in order"
