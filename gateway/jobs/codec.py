"""Job messages, to and from the nouns of this room. Only the servicer sees them besides."""

from __future__ import annotations

import math

from penstock.scheduler.v1 import jobs_pb2

from gateway.jobs.types import (
    Claim,
    ClaimedJob,
    HeldClaims,
    HttpCall,
    InferAnswer,
    InferCall,
    JobAnswer,
    JobCall,
    JobFailure,
    JobId,
    JobOutcome,
    JobOwner,
)
from runtime.errors import InvalidArgument
from runtime.ids import KeyId, TenantId


def owner_message(owner: JobOwner) -> jobs_pb2.JobOwner:
    return jobs_pb2.JobOwner(tenant=owner.tenant, key_id=owner.key_id, allowed_models=sorted(owner.allowed_models))


def call_of(message: jobs_pb2.JobCall) -> JobCall:
    """Raises InvalidArgument for a call of no kind."""
    kind = message.WhichOneof("call")
    if kind == "infer":
        return InferCall(message.infer)
    if kind == "http":
        return HttpCall(message.http.path, message.http.body)
    raise InvalidArgument("the job has no call; set 'infer' to a serialised ModelInferRequest, or 'http' to path and JSON body")


def claimed_of(message: jobs_pb2.ClaimedJob) -> ClaimedJob:
    """Raises InvalidArgument where there is nothing to do in it."""
    owner = message.owner
    return ClaimedJob(
        JobId(message.job_id),
        JobOwner(TenantId(owner.tenant), KeyId(owner.key_id), frozenset(owner.allowed_models)),
        call_of(message.call),
        message.attempt,
        Claim(message.claim),
        message.visibility_ms / 1000,
        message.timeout_ms / 1000 if message.timeout_ms else None,
    )


def held_of(message: jobs_pb2.ExtendClaimsResponse) -> HeldClaims:
    return HeldClaims(frozenset(Claim(claim) for claim in message.claims), message.visibility_ms / 1000)


def settle_request(claim: Claim, outcome: JobOutcome) -> jobs_pb2.SettleJobRequest:
    if isinstance(outcome, JobFailure):
        return jobs_pb2.SettleJobRequest(claim=claim, failure=_failure_message(outcome))
    return jobs_pb2.SettleJobRequest(claim=claim, answer=_answer_message(outcome))


def _failure_message(failure: JobFailure) -> jobs_pb2.JobFailure:
    message = jobs_pb2.JobFailure(
        code=int(failure.code), message=failure.message, final=failure.final, returned=failure.returned
    )
    if failure.retry_after_s is not None:
        message.retry_after_ms = math.ceil(failure.retry_after_s * 1000)
    if failure.answer is not None:
        message.answer.CopyFrom(_answer_message(failure.answer))
    return message


def _answer_message(answer: JobAnswer) -> jobs_pb2.JobAnswer:
    if isinstance(answer, InferAnswer):
        return jobs_pb2.JobAnswer(infer=answer.payload)
    return jobs_pb2.JobAnswer(http=jobs_pb2.HttpAnswer(status=answer.status, body=answer.body))
