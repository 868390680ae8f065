"""Whichever scheduler answers will do; what must not happen twice is asked once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from penstock.scheduler.v1 import jobs_pb2 as pb

from gateway.jobs.keepers import Keepers
from runtime.errors import FailedPrecondition, NotFound, PenstockError, Unavailable
from runtime.serving import Listen, serving
from tests.gateway.jobs.scheduler import SERVICE, MemoryScheduler


class Replica(MemoryScheduler):
    """Fails in its own way, or answers; a watch says what it was given and then fails."""

    def __init__(self, failure: PenstockError | None = None, says: Sequence[str] = ()) -> None:
        super().__init__(failure=failure)
        self.says, self.asked = says, 0

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return pb.GetJobResponse(job=pb.Job(job_id=request.job_id))

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> None:  # type: ignore[override]
        self.asked += 1
        for each in self.says:
            await context.write(pb.WatchJobResponse(job=pb.Job(job_id=each)))
        if self.failure is not None:
            raise self.failure


@asynccontextmanager
async def ring(*replicas: Replica | None) -> AsyncIterator[Keepers]:
    """None: nobody listens there."""
    async with AsyncExitStack() as stack:
        channels = []
        for replica in replicas:
            address = "127.0.0.1:1"
            if replica is not None:
                server = serving([Listen("127.0.0.1", 0)], replica.registers(), [SERVICE], drain_grace_s=0.1)
                address = f"127.0.0.1:{(await stack.enter_async_context(server)).ports[0]}"
            channels.append(await stack.enter_async_context(grpc.aio.insecure_channel(address)))
        yield Keepers(channels)


async def get(keepers: Keepers, *, again: bool = True) -> str:
    request = pb.GetJobRequest(job_id="j")
    answer: pb.GetJobResponse = await keepers.ask(lambda stubs: stubs.jobs.GetJob(request, timeout=5), again=again)
    return answer.job.job_id


async def watch(keepers: Keepers) -> list[str | None]:
    request = pb.WatchJobRequest()
    messages = keepers.stream(lambda stubs: stubs.jobs.WatchJob(request))
    return [None if message is None else message.job.job_id async for message in messages]


@pytest.mark.parametrize("failure", [Unavailable("no database"), FailedPrecondition("keeps no jobs")])
async def test_one_that_cannot_is_passed_over_and_stays_so(failure: PenstockError) -> None:
    broken, well = Replica(failure), Replica()
    async with ring(broken, well) as keepers:
        assert [await get(keepers) for _ in range(3)] == ["j"] * 3
    assert (broken.asked, well.asked) == (1, 3)


async def test_what_any_would_say_is_said_at_once() -> None:
    first, second = Replica(NotFound("no such job")), Replica()
    async with ring(first, second) as keepers:
        with pytest.raises(NotFound, match="no such job"):
            await get(keepers)
    assert second.asked == 0


async def test_when_all_fail_what_they_said_counts_more_than_that_one_was_away() -> None:
    async with ring(Replica(Unavailable("no database")), None) as keepers:
        with pytest.raises(Unavailable, match="no database"):
            await get(keepers)


async def test_what_must_not_happen_twice_is_asked_again_only_where_nothing_was_done() -> None:
    doubtful, well = Replica(Unavailable("no database")), Replica()
    async with ring(doubtful, well) as keepers:
        with pytest.raises(Unavailable):
            await get(keepers, again=False)
    assert well.asked == 0
    async with ring(Replica(FailedPrecondition("keeps no jobs")), well) as keepers:
        assert await get(keepers, again=False) == "j"


async def test_a_stream_that_breaks_begins_anew_elsewhere_and_says_so() -> None:
    async with ring(Replica(Unavailable("ends"), ["a", "b"]), Replica(None, ["b", "c"])) as keepers:
        assert await watch(keepers) == ["a", "b", None, "b", "c"]


async def test_a_stream_that_is_refused_is_refused() -> None:
    second = Replica()
    async with ring(Replica(NotFound("no such job")), second) as keepers:
        with pytest.raises(NotFound):
            await watch(keepers)
    assert second.asked == 0


async def test_a_stream_nobody_answers_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.keepers._ROUNDS", 2)
    async with ring(None, Replica(Unavailable("no database"))) as keepers:
        with pytest.raises(Unavailable, match="no database"):
            await watch(keepers)
