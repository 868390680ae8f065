"""penstock.scheduler.v1.JobService's messages to nouns and back. Decides what is malformed, nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.message import DecodeError
from inference import grpc_service_pb2
from penstock.scheduler.v1 import jobs_pb2

from runtime.errors import Code
from runtime.ids import KeyId, TenantId
from scheduler.jobs.callers import plain
from scheduler.jobs.errors import JobRefused
from scheduler.jobs.submission import http_model
from scheduler.jobs.types import (
    DEFAULT_PAGE,
    MAX_PAGE,
    Answer,
    Attempt,
    BatchId,
    Call,
    ClaimedJob,
    Failure,
    Job,
    JobId,
    JobQuestion,
    JobState,
    Owner,
    Submission,
)

_STATES: dict[JobState, jobs_pb2.JobState.ValueType] = {
    JobState.QUEUED: jobs_pb2.JOB_STATE_QUEUED,
    JobState.RUNNING: jobs_pb2.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: jobs_pb2.JOB_STATE_SUCCEEDED,
    JobState.DEAD: jobs_pb2.JOB_STATE_DEAD,
    JobState.CANCELLED: jobs_pb2.JOB_STATE_CANCELLED,
}
_MOST_DEAD = 200
"""On one page: each comes with its whole history."""
_BY_NUMBER = {number: state for state, number in _STATES.items()}
_TOKEN = re.compile(r"([0-9]{1,16})\.([A-Za-z0-9_-]{1,48})")


def owner_of(message: jobs_pb2.JobOwner) -> Owner:
    return Owner(TenantId(message.tenant), KeyId(message.key_id), tuple(message.allowed_models))


def submission_of(request: jobs_pb2.SubmitJobRequest) -> Submission:
    """Reads as much of the call as names its model: large ones away from the loop. Raises JobRefused."""
    call = _call_of(request.call)
    return Submission(
        owner_of(request.owner),
        call,
        http_model(call.body) if call.path else _infer_model(call.body),
        request.idempotency_key,
        request.priority,
        request.max_attempts,
        request.due_at_ms,
        request.expires_at_ms,
        request.keep_s * 1_000,
    )


def _call_of(message: jobs_pb2.JobCall) -> Call:
    kind = message.WhichOneof("call")
    if kind is None:
        raise JobRefused("the job has no call; set `infer`, or `http`")
    if kind == "infer":
        return Call("", message.infer)
    if not message.http.path:
        raise JobRefused("the job's HTTP call has no path, such as /v1/chat/completions")
    return Call(message.http.path, message.http.body)


def _infer_model(body: bytes) -> str:
    try:
        return grpc_service_pb2.ModelInferRequest.FromString(body).model_name
    except DecodeError as error:
        raise JobRefused("`infer` holds no serialised inference.ModelInferRequest") from error


def question_of(tenant: TenantId | None, request: jobs_pb2.ListJobsRequest) -> JobQuestion:
    """Raises JobRefused."""
    if request.state and request.state not in _BY_NUMBER:
        raise JobRefused(f"state {request.state} is none of a job; those are {sorted(_BY_NUMBER)}")
    return JobQuestion(
        tenant=tenant,
        state=_BY_NUMBER.get(request.state),
        batch_id=BatchId(plain(request.batch_id)) if request.batch_id else None,
        page_size=_page_size(request.page_size),
        before=_cursor_of(request.page_token),
    )


def dead_question_of(tenant: TenantId | None, request: jobs_pb2.ListDeadLettersRequest) -> JobQuestion:
    """Raises JobRefused."""
    return JobQuestion(
        tenant=tenant,
        state=JobState.DEAD,
        model=plain(request.model),
        page_size=min(_page_size(request.page_size), _MOST_DEAD),
        before=_cursor_of(request.page_token),
        with_history=True,
    )


def _page_size(asked: int) -> int:
    return min(asked or DEFAULT_PAGE, MAX_PAGE)


def _cursor_of(token: str) -> tuple[int, JobId] | None:
    if not token:
        return None
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise JobRefused(f"page_token {token[:64]!r} is none that was given; leave it empty to begin anew")
    return int(found[1]), JobId(found[2])


def next_token(jobs: list[Job], has_more: bool) -> str:
    return f"{jobs[-1].created_at_ms}.{jobs[-1].job_id}" if jobs and has_more else ""


def outcome_of(request: jobs_pb2.SettleJobRequest) -> Answer | Failure:
    """Raises JobRefused."""
    kind = request.WhichOneof("outcome")
    if kind is None:
        raise JobRefused("the settlement has no outcome; set `answer`, or `failure`")
    if kind == "answer":
        return _answer_of(request.answer)
    failure = request.failure
    return Failure(
        _code_of(failure.code),
        failure.message,
        failure.final,
        failure.retry_after_ms,
        failure.returned,
        _answer_of(failure.answer) if failure.HasField("answer") else None,
    )


def _answer_of(message: jobs_pb2.JobAnswer) -> Answer:
    kind = message.WhichOneof("answer")
    if kind is None:
        raise JobRefused("the answer is empty; set `infer`, or `http`")
    if kind == "infer":
        return Answer(0, message.infer)
    if not 100 <= message.http.status <= 599:
        raise JobRefused(f"the answer's HTTP status is {message.http.status}, which is none")
    return Answer(message.http.status, message.http.body)


def _code_of(number: int) -> Code:
    try:
        return Code(number)
    except ValueError:
        return Code.UNKNOWN


def job_message(job: Job) -> jobs_pb2.Job:
    return jobs_pb2.Job(
        job_id=job.job_id,
        owner=owner_message(job.owner),
        model=job.model,
        state=_STATES[job.state],
        priority=job.priority,
        attempts=job.attempts,
        max_attempts=job.max_attempts,
        created_at_ms=job.created_at_ms,
        due_at_ms=job.due_at_ms,
        ended_at_ms=job.ended_at_ms,
        expires_at_ms=job.expires_at_ms,
        idempotency_key=job.idempotency_key,
        batch_id=job.batch_id or "",
        history=[_attempt_message(attempt) for attempt in job.history],
        answer=None if job.answer is None else _answer_message(job.answer),
        forgotten_at_ms=job.forgotten_at_ms,
        reason=job.reason,
    )


def job_messages(jobs: Iterable[Job]) -> list[jobs_pb2.Job]:
    return [job_message(job) for job in jobs]


def claimed_message(job: ClaimedJob, visibility_ms: int) -> jobs_pb2.ClaimedJob:
    return jobs_pb2.ClaimedJob(
        job_id=job.job_id,
        owner=owner_message(job.owner),
        call=_call_message(job.call),
        attempt=job.attempt,
        claim=job.claim,
        visibility_ms=visibility_ms,
        timeout_ms=job.timeout_ms,
    )


def settled_message(state: JobState) -> jobs_pb2.SettleJobResponse:
    return jobs_pb2.SettleJobResponse(state=_STATES[state])


def owner_message(owner: Owner) -> jobs_pb2.JobOwner:
    return jobs_pb2.JobOwner(tenant=owner.tenant, key_id=owner.key_id, allowed_models=owner.allowed_models)


def _call_message(call: Call) -> jobs_pb2.JobCall:
    if not call.path:
        return jobs_pb2.JobCall(infer=call.body)
    return jobs_pb2.JobCall(http=jobs_pb2.HttpCall(path=call.path, body=call.body))


def _answer_message(answer: Answer) -> jobs_pb2.JobAnswer:
    if not answer.status:
        return jobs_pb2.JobAnswer(infer=answer.body)
    return jobs_pb2.JobAnswer(http=jobs_pb2.HttpAnswer(status=answer.status, body=answer.body))


def _attempt_message(attempt: Attempt) -> jobs_pb2.Attempt:
    return jobs_pb2.Attempt(
        number=attempt.number,
        claimed_by=attempt.claimed_by,
        began_at_ms=attempt.began_at_ms,
        ended_at_ms=attempt.ended_at_ms,
        outcome=attempt.outcome,
        message=attempt.message,
    )
