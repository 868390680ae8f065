"""The quota guard: what is admitted stays within its bounds and comes back once, and a flood leaves room for others."""

from __future__ import annotations

from collections import Counter, deque
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from placement.shares import share_allows
from runtime.errors import Code, PenstockError
from worker.quota import Admission, Quota, QuotaGuard, QuotaPolicy, TenantQuotaReached, WorkerFull

SHARES = st.sampled_from([0.25, 0.5, 0.8, 0.9, 1.0])


def flood(guard: QuotaGuard, tenant: str, model: object = None, places: int = 0) -> list[Admission]:
    """Everything that the tenant is given when it asks until it is refused."""
    taken: list[Admission] = []
    try:
        while True:
            admission = guard.enter(tenant)
            taken.append(admission)
            if places:
                admission.queue(model, waiting=len(taken) - 1, places=places)
    except PenstockError:
        return taken


def test_the_worker_refuses_everybody_when_it_is_full() -> None:
    guard = QuotaGuard(QuotaPolicy(max_in_flight=2))
    guard.enter("a")
    with guard.enter("b"):
        with pytest.raises(WorkerFull, match="2 requests are in flight, all that this worker takes") as refused:
            guard.enter("c")
        assert refused.value.code is Code.RESOURCE_EXHAUSTED
        assert refused.value.retry_after_s
    guard.enter("c")
    assert guard.refused[Quota.WORKER] == 1


def test_a_tenant_alone_holds_its_share_and_the_sentence_says_whose_bound_it_was() -> None:
    guard = QuotaGuard(QuotaPolicy(max_in_flight=100, tenant_share=0.9))
    assert len(flood(guard, "greedy")) == 90
    with pytest.raises(
        TenantQuotaReached, match="tenant 'greedy' has 90 requests in flight here, its part of the 100"
    ) as refused:
        guard.enter("greedy")
    assert (refused.value.code, refused.value.reason) == (Code.RESOURCE_EXHAUSTED, "TENANT_QUOTA_REACHED")
    assert refused.value.retry_after_s
    guard.enter("modest")
    assert guard.refused == {Quota.WORKER: 0, Quota.TENANT: 2, Quota.QUEUE: 0}


def test_the_absolute_bound_holds_beside_the_share() -> None:
    guard = QuotaGuard(QuotaPolicy(max_in_flight=100, tenant_max_in_flight=5))
    assert [len(flood(guard, tenant)) for tenant in "ab"] == [5, 5]


def test_tenants_are_not_told_apart_where_nothing_asks_for_it() -> None:
    guard = QuotaGuard(QuotaPolicy(max_in_flight=7))
    assert len(flood(guard, "a")) == 7
    assert guard.tenants == 0


def test_a_flood_at_one_model_leaves_room_in_its_queue_and_at_other_models() -> None:
    guard = QuotaGuard(QuotaPolicy(max_in_flight=1000, tenant_share=0.9))
    taken = flood(guard, "greedy", "m", places=50)
    assert len(taken) == 46  # 45 wait; the last was refused at the queue
    taken.pop().__exit__()
    for model, tenant, waiting in (("m", "modest", 45), ("other", "greedy", 0)):
        with guard.enter(tenant) as admission:
            admission.queue(model, waiting=waiting, places=50)
    with guard.enter("greedy") as admission, pytest.raises(TenantQuotaReached, match="of whose 50 places 45 are taken"):
        admission.queue("m", waiting=45, places=50)


@given(places=st.integers(2, 5000), share=st.sampled_from([0.25, 0.5, 0.8, 0.9]))
def test_one_tenants_flood_leaves_the_rest_of_the_places_to_others(places: int, share: float) -> None:
    guard = QuotaGuard(QuotaPolicy(max_in_flight=places, tenant_share=share))
    assert len(flood(guard, "greedy")) <= max(1, share * places + 1e-6)
    assert len(flood(guard, "modest")) >= max(1, int(share * int(places * (1 - share))) - 1)


@given(
    places=st.integers(30, 200),
    share=st.sampled_from([0.5, 0.8, 0.9]),
    tenants=st.integers(2, 5),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=20, deadline=None)
def test_parts_become_equal_once_what_was_there_before_has_ended(
    places: int, share: float, tenants: int, order: Random
) -> None:
    """Within alpha: one free place more or less moves what a tenant may hold by as much. The oldest requests end first."""
    guard = QuotaGuard(QuotaPolicy(max_in_flight=places, tenant_share=share))
    names = [str(number) for number in range(tenants)]
    admitted = deque((name, each) for name in names for each in flood(guard, name))
    for _ in range(2 * places):
        admitted.popleft()[1].__exit__()
        order.shuffle(names)
        admitted += [(name, each) for name in names for each in flood(guard, name)]
    held = Counter(name for name, _ in admitted)
    assert max(held.values()) - min(held[name] for name in names) <= share / (1 - share) + 1


@given(held=st.integers(0, 200), free=st.integers(0, 200), share=SHARES)
def test_the_rule_is_monotone(held: int, free: int, share: float) -> None:
    """Who holds less, or finds more free, is never refused where another is taken."""
    if share_allows(held, free, share):
        assert free > 0
        assert share_allows(held, free + 1, share)
        assert held == 0 or share_allows(held - 1, free, share)


class Guarded(RuleBasedStateMachine):
    """Tenants come and go in any order."""

    @initialize(places=st.integers(1, 12), share=SHARES, most=st.integers(0, 6))
    def begin(self, places: int, share: float, most: int) -> None:
        self.policy = QuotaPolicy(places, share, most)
        self.guard = QuotaGuard(self.policy)
        self.admitted: list[tuple[str, Admission]] = []

    @rule(tenant=st.sampled_from(["", "a", "b", "c"]), model=st.sampled_from(["m", "n"]), waiting=st.integers(0, 5))
    def ask(self, tenant: str, model: str, waiting: int) -> None:
        try:
            admission = self.guard.enter(tenant)
        except WorkerFull:
            assert len(self.admitted) == self.policy.max_in_flight
            return
        except TenantQuotaReached:
            assert any(each == tenant for each, _ in self.admitted)
            return
        try:
            if admission.tells_apart:
                admission.queue(model, waiting=waiting, places=5)
        except TenantQuotaReached:
            admission.__exit__()
        else:
            self.admitted.append((tenant, admission))

    @precondition(lambda self: self.admitted)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        _, admission = self.admitted.pop(data.draw(st.integers(0, len(self.admitted) - 1)))
        admission.__exit__()

    @invariant()
    def what_is_admitted_is_what_is_counted_and_nobody_is_remembered_for_nothing(self) -> None:
        if not hasattr(self, "guard"):
            return
        assert self.guard.in_flight == len(self.admitted) <= self.policy.max_in_flight
        if self.guard.tells_apart:
            assert self.guard.tenants == len({tenant for tenant, _ in self.admitted})
        if self.policy.tenant_max_in_flight:
            for tenant in {tenant for tenant, _ in self.admitted}:
                assert sum(each == tenant for each, _ in self.admitted) <= self.policy.tenant_max_in_flight


TestGuarded = Guarded.TestCase
TestGuarded.settings = settings(max_examples=50, stateful_step_count=30)


@given(tenants=st.lists(st.text(max_size=5), max_size=200))
def test_memory_is_bounded_by_what_is_in_flight(tenants: list[str]) -> None:
    guard = QuotaGuard(QuotaPolicy(max_in_flight=8, tenant_share=0.9))
    for tenant in tenants:
        with guard.enter(tenant) as admission:
            admission.queue("m", waiting=0, places=5)
            assert guard.tenants == 1
    assert (guard.tenants, guard.in_flight) == (0, 0)
