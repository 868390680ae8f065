"""Whether a notice is written anew: a table, and what holds for any two replicas."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.notices.policy import Verdict, judge
from registry.notices.types import Told, Truth
from runtime.keyvalue import KeyValue

ITEM = KeyValue("k", b"raw", 1, 2, 1)
OLD, NEW = Truth(b"old", 1), Truth(b"new", 2)


@pytest.mark.parametrize(
    ("told", "truth", "whole", "verdict"),
    [
        (Told(), NEW, False, Verdict.WRITE),
        (Told(), NEW, True, Verdict.WRITE),
        (Told(ITEM), NEW, False, Verdict.WRITE),  # not to be believed
        (Told(ITEM, b"old", 1), NEW, False, Verdict.WRITE),
        (Told(ITEM, b"new", 2), NEW, True, Verdict.LEAVE),
        (Told(ITEM, b"other", 2), NEW, True, Verdict.WRITE),
        (Told(ITEM, b"other", 2), NEW, False, Verdict.LEAVE),
        (Told(ITEM, b"new", 2), OLD, True, Verdict.AHEAD),
        (Told(ITEM, b"new", 2), None, True, Verdict.LEAVE),
        (Told(), None, True, Verdict.LEAVE),
        (Told(ITEM, b"n"), Truth(b"n", until_ms=99), True, Verdict.REMOVE),
        (Told(ITEM), Truth(b"n", until_ms=99), True, Verdict.REMOVE),
        (Told(), Truth(b"n", until_ms=99), True, Verdict.LEAVE),
        (Told(), Truth(b"n", until_ms=101), True, Verdict.WRITE),
    ],
)
def test_verdicts(told: Told, truth: Truth | None, whole: bool, verdict: Verdict) -> None:
    assert judge(told, truth, now_ms=100, whole=whole) is verdict


@given(
    st.lists(
        st.sampled_from(["read etcd", "read database", "write"]).flatmap(
            lambda step: st.tuples(st.integers(0, 2), st.just(step))
        ),
        max_size=60,
    ),
    st.data(),
)
def test_whatever_the_order_no_replica_puts_an_older_notice_over_a_newer(
    steps: list[tuple[int, str]], data: st.DataObject
) -> None:
    """Three replicas take their steps in any order while the database changes; the generation in etcd never falls."""
    generation, etcd = 1, Told()
    revisions = itertools.count(10)
    read: dict[int, Told] = {}
    truths: dict[int, Truth] = {}
    for replica, step in steps:
        generation += data.draw(st.integers(0, 1))
        if step == "read etcd":
            read[replica] = etcd
            truths.pop(replica, None)
        elif step == "read database" and replica in read:
            truths[replica] = Truth(str(generation).encode(), generation)
        elif step == "write" and replica in truths:
            told, truth = read.pop(replica), truths.pop(replica)
            fenced = told.mod_revision == etcd.mod_revision
            if fenced and judge(told, truth, now_ms=0, whole=True) is Verdict.WRITE:
                assert truth.generation >= etcd.generation
                etcd = Told(KeyValue("k", b"", 1, next(revisions), 1), truth.payload, truth.generation)
