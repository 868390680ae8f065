"""How often loading a version failed, and who is not to try it for now.

A worker whose copy FAILED keeps its order, so that it does not try for ever, and another one stands in. Here it is counted how
often that happened: a worker that failed too often is relieved of the version, and a version at which too many workers of a
region failed is given to no further one, because it is the version that is broken. A failure is forgotten after a while; who is
FAILED still is then let go of for a round, so that it may try anew. A wish of a newer generation forgets what was before it at
once: somebody mended something.

Pure. A failure is the moment in which a copy was first seen FAILED at its present order; a scheduler that begins anew counts
those that stand once. Never decides where a copy goes: `placement.copies.assign` does, by the `Bars` made here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from placement.copies.wishes import AssignedModel, Assignments, Bars, Placement
from placement.types import CopyState, Worker
from runtime.ids import Digest, Region, WorkerId


@dataclass(frozen=True, slots=True)
class FailureLimits:
    """As ModelMesh has them: a few places, a few times, and not for ever."""

    of_one_worker: int = 3
    """Loads of one version that may fail on one worker."""
    workers: int = 5
    """Workers of a region on which one version may fail."""
    forget_s: float = 900.0


DEFAULT_LIMITS = FailureLimits()


@dataclass(frozen=True, slots=True)
class Failed:
    """What one worker failed at."""

    region: Region
    generation: int
    """Of the order that failed."""
    at_s: tuple[float, ...]
    """When, as far as it is not forgotten."""
    stands: bool
    """Whether the copy is FAILED still."""


Failures = Mapping[tuple[WorkerId, Digest], Failed]


def observed(
    before: Failures, workers: Iterable[Worker], current: Assignments, now_s: float, limits: FailureLimits = DEFAULT_LIMITS
) -> Failures:
    """What is known after this look at the fleet. Who is not there keeps its failures until they are forgotten."""
    after: dict[tuple[WorkerId, Digest], Failed] = {}
    for key, known in before.items():
        if at_s := tuple(each for each in known.at_s if now_s - each < limits.forget_s):
            after[key] = Failed(known.region, known.generation, at_s, stands=False)
    for worker in workers:
        for copy in worker.copies:
            key = (worker.worker_id, copy.digest)
            if copy.state is CopyState.READY:
                after.pop(key, None)
            elif copy.state is CopyState.FAILED:
                generation = _generation(copy.digest, current.get(worker.worker_id, ()))
                if generation is not None:
                    after[key] = _failed(before.get(key), after.get(key), worker.region, generation, now_s)
    return after


def bars(failures: Failures, placements: Iterable[Placement], limits: FailureLimits = DEFAULT_LIMITS) -> Bars:
    """Who is not to hold what, and what is given to nobody else."""
    generations: dict[tuple[Region, Digest], int] = {}
    for wish in placements:
        of = (wish.region, wish.digest)
        generations[of] = max(wish.generation, generations.get(of, 0))
    relieved: set[tuple[WorkerId, Digest]] = set()
    workers: Counter[tuple[Region, Digest]] = Counter()
    for (who, digest), known in failures.items():
        if known.generation < generations.get((known.region, digest), 0):
            continue
        workers[known.region, digest] += bool(known.at_s)
        if len(known.at_s) >= limits.of_one_worker or not known.at_s:
            relieved.add((who, digest))
    exhausted = frozenset(of for of, count in workers.items() if count >= limits.workers)
    return Bars(frozenset(relieved), exhausted)


def _failed(before: Failed | None, kept: Failed | None, region: Region, generation: int, now_s: float) -> Failed:
    """One failure more, unless it is the one that stands; with a newer order those before it do not count."""
    at_s = kept.at_s if kept is not None and kept.generation == generation else ()
    stood = before is not None and before.stands and before.generation == generation
    return Failed(region, generation, at_s if stood else (*at_s, now_s), stands=True)


def _generation(digest: Digest, told: Collection[AssignedModel]) -> int | None:
    """Of the order to hold it; None: there is none."""
    return max((each.generation for each in told if each.digest == digest), default=None)
