"""Batches from their file to their results, on SQLite and PostgreSQL; cut short anywhere, gone on with by another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select

from runtime.errors import Code
from runtime.ids import KeyId
from scheduler.jobs.batches import driver as driver_module
from scheduler.jobs.batches.sql_driving import LEASE_MS, DrivenBatch
from scheduler.jobs.batches.types import Batch, BatchQuestion, BatchStatus, NewBatch, Progress
from scheduler.jobs.errors import BatchesFull, BatchUnknown, FileInUse, FileUnknown, LeaseLost
from scheduler.jobs.files.types import CHUNK_BYTES, FileId, FileQuestion
from scheduler.jobs.schema import files, jobs
from scheduler.jobs.types import Answer, ClaimedJob, Failure, JobState, Owner
from tests.scheduler.jobs.ground import ACME, CHAT, OTHER, Ground

HOUR_MS = 3_600_000


def request(number: int, **body: Any) -> dict[str, Any]:
    return {"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": {"model": "sums", "n": number, **body}}


def jsonl(lines: Iterable[object]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def create(ground: Ground, data: bytes, *, window_ms: int = 24 * HOUR_MS) -> Batch:
    file = await ground.upload(data)
    new = NewBatch(Owner(ACME, KeyId("key-1"), ("sums",)), file.file_id, CHAT, "24h", window_ms, {"name": "nightly"})
    return await ground.batches.create(new, ground.now_ms)


async def drive(ground: Ground, batch: Batch) -> Batch:
    """Until there is nothing to do for it at this moment."""
    while await ground.driver.drive_one():
        pass
    return await ground.batches.batch(batch.batch_id, ACME)


async def answer(ground: Ground, claimed: ClaimedJob) -> None:
    """As a model would that refuses odd numbers."""
    number = json.loads(claimed.call.body)["n"]
    if number % 2:
        said = Answer(400, json.dumps({"error": {"message": f"{number} is odd"}}).encode())
        await ground.settle(claimed.claim, Failure(Code.INVALID_ARGUMENT, "odd", answer=said))
    else:
        await ground.settle(claimed.claim, Answer(200, json.dumps({"sum": number}).encode()))


async def answer_all(ground: Ground) -> None:
    while claimed := await ground.claim(64):
        for each in reversed(claimed):
            await answer(ground, each)


async def results(ground: Ground, file_id: FileId | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await ground.content(file_id)).splitlines()]


async def test_a_batch_from_file_to_results(ground: Ground) -> None:
    batch = await create(ground, jsonl(request(number) for number in range(20)).replace(b"\n", b"\n\n", 3))
    assert batch.status is BatchStatus.VALIDATING
    working = await drive(ground, batch)
    assert (working.status, working.total, working.metadata) == (BatchStatus.IN_PROGRESS, 20, {"name": "nightly"})
    listed = await ground.listed(batch_id=batch.batch_id)
    assert {job.owner for job in listed} == {batch.owner}
    assert {job.state for job in listed} == {JobState.QUEUED}
    await answer_all(ground)
    await ground.pass_s(2)
    done = await drive(ground, batch)
    assert (done.status, done.completed, done.failed) == (BatchStatus.COMPLETED, 10, 10)
    assert done.at.created_ms <= done.at.in_progress_ms <= done.at.finalizing_ms <= done.at.completed_ms
    output, errors = await results(ground, done.output_file_id), await results(ground, done.error_file_id)
    assert [line["custom_id"] for line in output] == [f"c{number}" for number in range(0, 20, 2)]
    assert [line["response"]["body"]["sum"] for line in output] == list(range(0, 20, 2))
    assert {line["response"]["status_code"] for line in output} == {200}
    assert [line["custom_id"] for line in errors] == [f"c{number}" for number in range(1, 20, 2)]
    assert errors[0]["response"]["body"] == {"error": {"message": "1 is odd"}}
    assert len(await ground.listed(state=JobState.DEAD)) == 10, "they stand among dead letters too"
    written = (await ground.files.page(FileQuestion(ACME, purpose="batch_output")))[0]
    assert {file.file_id for file in written} == {done.output_file_id, done.error_file_id}
    assert await ground.kept() == await ground.recounted()


async def test_no_file_where_no_line_belongs_into_it(ground: Ground) -> None:
    batch = await create(ground, jsonl([request(0), request(2)]))
    await drive(ground, batch)
    await answer_all(ground)
    await ground.pass_s(2)
    done = await drive(ground, batch)
    assert (done.status, done.error_file_id) == (BatchStatus.COMPLETED, None)


@pytest.mark.parametrize(
    ("data", "faults"),
    [
        (b"", [(0, "empty_file")]),
        (b"\n  \n\n", [(0, "empty_file")]),
        (jsonl([request(1), {}, request(1)]), [(2, "missing_required_parameter"), (3, "duplicate_custom_id")]),
        (b"no json\n" + jsonl([request(1)]), [(1, "invalid_json_line")]),
        (jsonl([request(1, stream=True)]), [(1, "invalid_stream")]),
    ],
)
async def test_a_file_that_is_no_batch_fails_with_its_lines_named(
    sqlite_ground: Ground, data: bytes, faults: list[tuple[int, str]]
) -> None:
    ground = sqlite_ground
    failed = await drive(ground, await create(ground, data))
    assert failed.status is BatchStatus.FAILED
    assert [(fault.line, fault.code) for fault in failed.faults] == faults
    assert await ground.listed() == []


async def test_faults_and_lines_are_bounded(sqlite_ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    ground = sqlite_ground
    failed = await drive(ground, await create(ground, b"x\n" * 5_000))
    assert len(failed.faults) == 100
    monkeypatch.setattr(driver_module, "MAX_LINES", 10)
    failed = await drive(ground, await create(ground, jsonl(request(number) for number in range(11))))
    assert [(fault.line, fault.code) for fault in failed.faults] == [(0, "too_many_lines")]
    failed = await drive(ground, await create(ground, bytes(17 * CHUNK_BYTES)))
    assert [fault.code for fault in failed.faults] == ["line_too_long"]


async def test_cancelled_with_what_was_done(ground: Ground) -> None:
    batch = await create(ground, jsonl(request(2 * number) for number in range(6)))
    await drive(ground, batch)
    done, running, *_ = await ground.claim(3)
    await answer(ground, done)
    cancelling = await ground.batches.cancel(batch.batch_id, ACME, ground.now_ms)
    assert cancelling.status is BatchStatus.CANCELLING
    cancelled = await drive(ground, batch)
    assert (cancelled.status, cancelled.completed, cancelled.failed) == (BatchStatus.CANCELLED, 1, 0)
    assert cancelled.at.cancelled_ms
    assert [line["custom_id"] for line in await results(ground, cancelled.output_file_id)] == ["c0"]
    assert {line["error"]["code"] for line in await results(ground, cancelled.error_file_id)} == {"batch_cancelled"}
    assert await ground.claiming.extend([running.claim]) == [], "whoever runs one is told to stop"
    assert await ground.claim(9) == []
    assert running.job_id in ground.told
    assert (await ground.batches.cancel(batch.batch_id, ACME, ground.now_ms)) == cancelled
    assert await ground.kept() == await ground.recounted()


async def test_cancelled_before_its_file_was_looked_at(ground: Ground) -> None:
    batch = await create(ground, jsonl([request(1)]))
    await ground.batches.cancel(batch.batch_id, ACME, ground.now_ms)
    assert (await drive(ground, batch)).status is BatchStatus.CANCELLED
    assert await ground.listed() == []


async def test_cancelled_before_all_lines_were_jobs(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "_JOBS_AT_ONCE", 2)
    batch = await create(ground, jsonl(request(2 * number) for number in range(5)))
    made = DrivenBatch.make_jobs

    async def cancelled_meanwhile(self: DrivenBatch, lines: Any, progress: Progress) -> None:
        await made(self, lines, progress)
        await ground.batches.cancel(batch.batch_id, ACME, ground.now_ms)

    monkeypatch.setattr(DrivenBatch, "make_jobs", cancelled_meanwhile)
    cancelled = await drive(ground, batch)
    assert (cancelled.status, cancelled.total, len(await ground.listed())) == (BatchStatus.CANCELLED, 5, 2)
    errors = await results(ground, cancelled.error_file_id)
    assert [line["custom_id"] for line in errors] == [f"c{2 * number}" for number in range(5)]
    assert len({line["id"] for line in errors}) == 5


async def test_expired_with_what_was_done(ground: Ground) -> None:
    batch = await create(ground, jsonl(request(2 * number) for number in range(4)), window_ms=HOUR_MS)
    await drive(ground, batch)
    await answer(ground, await ground.claim_one())
    await ground.pass_s(3600)
    await ground.sweeper.sweep()
    expired = await drive(ground, batch)
    assert (expired.status, expired.completed, expired.failed) == (BatchStatus.EXPIRED, 1, 3)
    assert {line["error"]["code"] for line in await results(ground, expired.error_file_id)} == {"batch_expired"}
    assert await ground.listed(state=JobState.DEAD) == [], "what was never tried is no dead letter"


async def test_its_file_is_kept_while_it_is_read_and_long_enough(ground: Ground) -> None:
    file = await ground.upload(jsonl([request(2)]), keep_ms=60_000)
    owner = Owner(ACME)
    batch = await ground.batches.create(NewBatch(owner, file.file_id, CHAT, "24h", 24 * HOUR_MS, {}), ground.now_ms)
    with pytest.raises(FileInUse, match=batch.batch_id):
        await ground.files.delete(file.file_id, ACME)
    await ground.pass_s(120)
    assert await ground.files.sweep(ground.now_ms) == 0
    await drive(ground, batch)
    await ground.files.delete(file.file_id, ACME)
    for file_id in (file.file_id, (await ground.upload(b"x", tenant=OTHER)).file_id):
        with pytest.raises(FileUnknown):
            await ground.batches.create(NewBatch(owner, file_id, CHAT, "24h", HOUR_MS, {}), ground.now_ms)


async def test_a_tenant_has_so_many_batches_under_way(ground: Ground) -> None:
    few = Ground(ground.database, ground.clock, replace(ground.limits, open_batches=1))
    batch = await create(few, jsonl([request(2)]))
    with pytest.raises(BatchesFull):
        await create(few, jsonl([request(2)]))
    await few.batches.cancel(batch.batch_id, ACME, few.now_ms)
    await drive(few, batch)
    await create(few, jsonl([request(2)]))


async def test_listed_newest_first_and_anothers_is_unknown(ground: Ground) -> None:
    made = []
    for _ in range(3):
        made.append((await create(ground, b"x")).batch_id)
        await ground.pass_s(1)
    page, more = await ground.batches.page(BatchQuestion(ACME, page_size=2))
    assert ([batch.batch_id for batch in page], more) == (made[:0:-1], True)
    page, more = await ground.batches.page(BatchQuestion(ACME, page_size=2, after=page[-1].batch_id))
    assert ([batch.batch_id for batch in page], more) == (made[:1], False)
    assert await ground.batches.page(BatchQuestion(OTHER)) == ([], False)
    with pytest.raises(BatchUnknown):
        await ground.batches.cancel(made[0], OTHER, ground.now_ms)
    assert (await ground.batches.batch(made[0], ACME)).status is BatchStatus.VALIDATING


async def test_lines_become_jobs_once_however_often_the_driver_dies(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies after each transaction in turn, before it can say so; the next one goes on from what is stored."""
    monkeypatch.setattr(driver_module, "_JOBS_AT_ONCE", 3)
    batch = await create(ground, jsonl(request(2 * number) for number in range(10)))
    made = DrivenBatch.make_jobs

    async def killed(self: DrivenBatch, lines: Any, progress: Progress) -> None:
        await made(self, lines, progress)
        raise RuntimeError("killed")

    monkeypatch.setattr(DrivenBatch, "make_jobs", killed)
    for _ in range(5):
        await ground.driver.drive_one()
        await ground.pass_s(LEASE_MS / 1000)
    monkeypatch.setattr(DrivenBatch, "make_jobs", made)
    await drive(ground, batch)
    async with ground.database.reading() as connection:
        lines = (await connection.execute(select(jobs.c.line).order_by(jobs.c.line))).scalars().all()
    assert lines == list(range(1, 11))
    await answer_all(ground)
    await ground.pass_s(2)
    assert (await drive(ground, batch)).completed == 10


async def test_results_are_written_anew_by_whoever_goes_on(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = await create(ground, jsonl(request(number) for number in range(4)))
    await drive(ground, batch)
    await answer_all(ground)
    ended = DrivenBatch.end

    async def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(DrivenBatch, "end", killed)
    await ground.pass_s(2)
    assert (await drive(ground, batch)).status is BatchStatus.FINALIZING
    assert (await ground.files.page(FileQuestion(purpose="batch_output")))[0] == [], "nobody sees what is not whole"
    monkeypatch.setattr(DrivenBatch, "end", ended)
    await ground.pass_s(10)
    done = await drive(ground, batch)
    assert (done.status, done.completed, done.failed) == (BatchStatus.COMPLETED, 2, 2)
    await ground.pass_s(7200)
    await ground.files.sweep(ground.now_ms)
    async with ground.database.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(files)) == 3, "input, output, errors"
    assert await ground.kept() == await ground.recounted()


async def test_one_who_was_paused_past_its_lease_writes_nothing(ground: Ground) -> None:
    batch = await create(ground, jsonl([request(2)]))
    paused = await ground.driving.take()
    assert paused is not None
    assert await ground.driving.take() is None, "it is in somebody's hands"
    await ground.pass_s(LEASE_MS / 1000)
    assert (await drive(ground, batch)).status is BatchStatus.IN_PROGRESS
    for write in (paused.begin(7), paused.fail([]), paused.make_jobs([], Progress(1, 1, 1)), paused.forget()):
        with pytest.raises(LeaseLost):
            await write
    await paused.release(0)
    assert (await ground.batches.batch(batch.batch_id, ACME)).total == 1


async def test_who_lost_its_lease_is_fenced_off_though_the_batch_is_where_it_was(ground: Ground) -> None:
    await create(ground, jsonl([request(2)]))
    paused = await ground.driving.take()
    await ground.pass_s(LEASE_MS / 1000)
    other = await ground.driving.take()
    assert paused is not None
    assert other is not None
    with pytest.raises(LeaseLost):
        await paused.begin(7)
    await paused.release(0)
    await other.begin(1)
    assert (await ground.batches.batch(other.batch.batch_id, ACME)).total == 1


async def test_several_drive_at_once_and_each_line_is_one_job(ground: Ground) -> None:
    made = [await create(ground, jsonl(request(number) for number in range(5))) for _ in range(4)]
    drivers = [ground.new_driver() for _ in range(4)]
    for _ in range(4):
        await asyncio.gather(*[driver.drive_one() for driver in drivers])
    assert len(await ground.listed()) == 20
    assert {(await ground.batches.batch(batch.batch_id, ACME)).status for batch in made} == {BatchStatus.IN_PROGRESS}


async def test_a_batch_is_forgotten_in_time(ground: Ground) -> None:
    batch = await create(ground, b"")
    await drive(ground, batch)
    await ground.pass_s(ground.limits.file_keep_ms / 1000)
    with pytest.raises(BatchUnknown):
        await drive(ground, batch)


async def test_lines_give_way_to_single_jobs_and_are_done_in_order(ground: Ground) -> None:
    batch = await create(ground, jsonl(request(number) for number in range(3)))
    await drive(ground, batch)
    single = await ground.submit()
    first, *lines = [await ground.claim_one() for _ in range(4)]
    assert first.job_id == single.job_id
    assert [json.loads(each.call.body)["n"] for each in lines] == [0, 1, 2]
