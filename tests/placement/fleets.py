"""Fleets for tests: built by hand, and drawn by hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from placement.types import Copy, CopyState, Worker
from runtime.ids import Digest, ModelName, ModelVersion, Region, WorkerId

DIGITS = ModelName("digits")
V1, V2, V10 = ModelVersion("1"), ModelVersion("2"), ModelVersion("10")
HERE, THERE = Region("here"), Region("there")
DIGEST = Digest("d" * 64)


def copy(
    state: CopyState = CopyState.READY, *, model: str = DIGITS, version: str = V1, digest: str = DIGEST, reason: str = ""
) -> Copy:
    return Copy(ModelName(model), ModelVersion(version), Digest(digest), state, reason)


def worker(name: str, *copies: Copy, region: str = HERE, capacity: int = 4, sequence: int = 0) -> Worker:
    return Worker(WorkerId(name), Region(region), f"{name}:9000", frozenset(), copies, capacity, sequence)


def worker_named(number: int) -> WorkerId:
    return WorkerId(f"w{number:02d}")


worker_ids = st.integers(0, 7).map(worker_named)
copies = st.builds(
    copy, st.sampled_from(CopyState), model=st.sampled_from(["digits", "sums"]), version=st.sampled_from(["1", "2", "10"])
)
workers = st.builds(
    lambda number, held, region, capacity: worker(
        worker_named(number), *{(c.model, c.version): c for c in held}.values(), region=region, capacity=capacity
    ),
    st.integers(0, 7),
    st.lists(copies, max_size=4),
    st.sampled_from([HERE, THERE]),
    st.integers(0, 3),
)
fleets = st.lists(workers, max_size=8, unique_by=lambda drawn: drawn.worker_id)
