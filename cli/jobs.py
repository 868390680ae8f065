"""What `penstock jobs …` does, at the scheduler, as the operator: submit, list, show, watch, cancel; dead letters."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf import json_format
from inference import grpc_service_pb2
from penstock.scheduler.v1 import jobs_pb2, jobs_pb2_grpc
from rich.text import Text

from cli.profile import Profile
from cli.tables import console, table
from runtime.errors import InvalidArgument

_PAGE = 200
_STYLES = {"dead": "red", "succeeded": "green", "running": "bold", "cancelled": "dim"}
STATES = ("queued", "running", "succeeded", "dead", "cancelled")


@dataclass(frozen=True, slots=True)
class NewJob:
    """0 and empty: the scheduler's own choice, or none."""

    file: str
    path: str
    tenant: str
    idempotency_key: str = ""
    priority: int = 0
    max_attempts: int = 0
    delay_s: float = 0.0
    timeout_s: float = 0.0
    keep_days: float = 0.0


async def submit_job(profile: Profile, wanted: NewJob, *, watch: bool) -> None:
    """Submit, say its id, and follow it where asked to."""
    now_ms = int(time.time() * 1000)
    due_at_ms = now_ms + int(wanted.delay_s * 1000) if wanted.delay_s else 0
    request = jobs_pb2.SubmitJobRequest(
        owner=jobs_pb2.JobOwner(tenant=wanted.tenant),
        call=read_call(wanted.file, wanted.path),
        idempotency_key=wanted.idempotency_key,
        priority=wanted.priority,
        max_attempts=wanted.max_attempts,
        due_at_ms=due_at_ms,
        expires_at_ms=(due_at_ms or now_ms) + int(wanted.timeout_s * 1000) if wanted.timeout_s else 0,
        keep_s=int(wanted.keep_days * 86_400),
    )
    async with profile.scheduler_channel() as scheduler:
        answer = await jobs_pb2_grpc.JobServiceStub(scheduler).SubmitJob(request)
    known = " (its idempotency key was known)" if answer.existed else ""
    console().print(Text(f"{answer.job.job_id}: {state_name(answer.job)}{known}"), soft_wrap=True)
    if watch:
        await watch_job(profile, answer.job.job_id)


def read_call(file: str, path: str) -> jobs_pb2.JobCall:
    """The body of an HTTP call; without a path, a ModelInferRequest in protobuf's JSON. `-` is stdin.

    Raises InvalidArgument.
    """
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error}") from error
    if path:
        return jobs_pb2.JobCall(http=jobs_pb2.HttpCall(path=path, body=body))
    try:
        request = json_format.Parse(body, grpc_service_pb2.ModelInferRequest())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{file} is no ModelInferRequest in JSON: {error}; for an OpenAI call pass --path") from error
    return jobs_pb2.JobCall(infer=request.SerializeToString())


async def show_jobs(profile: Profile, *, tenant: str, state: str, batch_id: str, limit: int) -> None:
    """A row per job, newest first."""
    number = jobs_pb2.JobState.Value(f"JOB_STATE_{state.upper()}") if state else jobs_pb2.JOB_STATE_UNSPECIFIED
    found: list[jobs_pb2.Job] = []
    token = ""
    async with profile.scheduler_channel() as scheduler:
        stub = jobs_pb2_grpc.JobServiceStub(scheduler)
        while len(found) < limit:
            request = jobs_pb2.ListJobsRequest(
                tenant=tenant, state=number, batch_id=batch_id, page_size=min(_PAGE, limit - len(found)), page_token=token
            )
            page = await stub.ListJobs(request)
            found += page.jobs
            if not (token := page.next_page_token):
                break
    _print_jobs(found, "there are no such jobs")


async def show_dead_letters(profile: Profile, *, tenant: str, model: str, limit: int) -> None:
    """A row per dead letter, newest first."""
    found: list[jobs_pb2.Job] = []
    token = ""
    async with profile.scheduler_channel() as scheduler:
        stub = jobs_pb2_grpc.JobServiceStub(scheduler)
        while len(found) < limit:
            request = jobs_pb2.ListDeadLettersRequest(
                tenant=tenant, model=model, page_size=min(_PAGE, limit - len(found)), page_token=token
            )
            page = await stub.ListDeadLetters(request)
            found += page.jobs
            if not (token := page.next_page_token):
                break
    _print_jobs(found, "there are no dead letters")


async def show_job(profile: Profile, job_id: str, output: Path | None) -> None:
    """All that is known of it, every attempt, and its answer: shown where it is text, or written into a file."""
    async with profile.scheduler_channel() as scheduler:
        job = (await jobs_pb2_grpc.JobServiceStub(scheduler).GetJob(jobs_pb2.GetJobRequest(job_id=job_id))).job
    terminal = console()
    for name, value in facts(job):
        terminal.print(Text.assemble((f"{name:<12}", "bold"), value), soft_wrap=True)
    if job.history:
        terminal.print(_history(job.history))
    _show_answer(job, output)


async def watch_job(profile: Profile, job_id: str) -> None:
    """A line for each change, until it has ended."""
    async with profile.scheduler_channel() as scheduler:
        watch = jobs_pb2_grpc.JobServiceStub(scheduler).WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id))
        async for update in watch:
            job = update.job
            at = f"{datetime.now(UTC):%H:%M:%S}"
            console().print(Text(f"{at}  {state_name(job):<10} {job.reason}"), soft_wrap=True)
    _show_answer(job, None)


async def cancel_job(profile: Profile, job_id: str) -> None:
    async with profile.scheduler_channel() as scheduler:
        job = (await jobs_pb2_grpc.JobServiceStub(scheduler).CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))).job
    console().print(Text(f"{job.job_id}: {state_name(job)}, {job.reason}"), soft_wrap=True)


async def replay_jobs(profile: Profile, job_ids: Sequence[str], *, tenant: str, model: str) -> None:
    """Dead letters become jobs again."""
    request = jobs_pb2.ReplayJobsRequest(job_ids=job_ids, tenant=tenant, model=model)
    async with profile.scheduler_channel() as scheduler:
        replayed = (await jobs_pb2_grpc.JobServiceStub(scheduler).ReplayJobs(request)).replayed
    console().print(f"{replayed} of {len(job_ids)} replayed" if job_ids else f"{replayed} replayed")


def state_name(job: jobs_pb2.Job) -> str:
    return jobs_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def facts(job: jobs_pb2.Job) -> Iterable[tuple[str, str]]:
    """Names and values, those that say something."""
    yield "job", job.job_id
    yield "state", f"{state_name(job)}: {job.reason}"
    yield "tenant", job.owner.tenant
    yield "model", job.model
    yield "attempts", f"{job.attempts}, {job.max_attempts} at most before it is laid aside"
    for name, at_ms in (
        ("submitted", job.created_at_ms),
        ("due", job.due_at_ms),
        ("ended", job.ended_at_ms),
        ("expires", job.expires_at_ms),
        ("forgotten", job.forgotten_at_ms),
    ):
        if at_ms:
            yield name, f"{_time(at_ms)} UTC"
    if job.idempotency_key:
        yield "key", job.idempotency_key
    if job.batch_id:
        yield "batch", job.batch_id


def _print_jobs(jobs: Sequence[jobs_pb2.Job], none: str) -> None:
    rows = table("job", "tenant", "model", "state", "attempts", "submitted (UTC)", "why")
    for job in jobs:
        state = state_name(job)
        cells = (job.job_id, job.owner.tenant, job.model, state, str(job.attempts), _time(job.created_at_ms), job.reason)
        rows.add_row(*map(Text, cells), style=_STYLES.get(state))  # as they are: a name is no markup
    console().print(rows if jobs else none)


def _history(attempts: Iterable[jobs_pb2.Attempt]) -> object:
    rows = table("attempt", "gateway", "began (UTC)", "ended (UTC)", "outcome", "message")
    for each in attempts:
        ended = _time(each.ended_at_ms) if each.ended_at_ms else "-"
        cells = (str(each.number), each.claimed_by, _time(each.began_at_ms), ended, each.outcome or "under way", each.message)
        rows.add_row(*map(Text, cells))
    return rows


def _show_answer(job: jobs_pb2.Job, output: Path | None) -> None:
    kind = job.answer.WhichOneof("answer")
    if kind is None:
        return
    body = job.answer.infer if kind == "infer" else job.answer.http.body
    if output is not None:
        output.write_bytes(body)
        console().print(Text(f"{len(body)} bytes of answer written to {output}"), soft_wrap=True)
    elif kind == "infer":
        console().print(f"its answer is a ModelInferResponse of {len(body)} bytes; --output FILE writes it")
    else:
        console().print(Text(_readable(body)), soft_wrap=True)


def _readable(body: bytes) -> str:
    try:
        return json.dumps(json.loads(body), indent=1, ensure_ascii=False)
    except ValueError:
        return body.decode(errors="replace")


def _time(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
