"""What a job's call comes to: an answer as the door would give it, or a failure that says whether another attempt can help."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
import structlog
from inference import grpc_service_pb2 as kserve

from gateway.jobs.execution import LAST, Execution, ExecutionSettings
from gateway.jobs.types import (
    Claim,
    ClaimedJob,
    HttpAnswer,
    HttpCall,
    InferAnswer,
    InferCall,
    JobFailure,
    JobId,
    JobOutcome,
    JobOwner,
)
from gateway.openai.requests import MAX_INPUTS
from gateway.refusals import FleetFull
from runtime.errors import Code, DeadlineExceeded, Internal, NotFound, PenstockError, Unavailable, VersionWithdrawn
from runtime.ids import KeyId, TenantId
from tests.gateway.openai.mesh import ANSWER, SECRET, SmallMesh, small_mesh

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


def chat(model: str = "sums", **fields: Any) -> HttpCall:
    body = {"model": model, "messages": [{"role": "user", "content": "2 + 2?"}], **fields}
    return HttpCall(CHAT, json.dumps(body).encode())


def infer(model: str = "digits") -> InferCall:
    message = kserve.ModelInferRequest(model_name=model, raw_input_contents=[b"1234"])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    message.outputs.add(name="y")
    return InferCall(message.SerializeToString())


def job(
    call: HttpCall | InferCall, *, models: Sequence[str] = (), key_id: str = "", timeout_s: float | None = None
) -> ClaimedJob:
    owner = JobOwner(TenantId("acme"), KeyId(key_id), frozenset(models))
    return ClaimedJob(JobId("job-1"), owner, call, 2, Claim("c"), 30.0, timeout_s)


@pytest.fixture
async def mesh() -> SmallMesh:
    return small_mesh(keys=False)


async def failed(mesh: SmallMesh, claimed: ClaimedJob) -> JobFailure:
    outcome: JobOutcome = await Execution(mesh)(claimed)
    assert isinstance(outcome, JobFailure)
    return outcome


async def test_a_chat_is_answered_as_at_the_door_and_behind_everybody_who_waits(mesh: SmallMesh) -> None:
    outcome = await Execution(mesh)(job(chat()))
    assert isinstance(outcome, HttpAnswer)
    assert outcome.status == 200
    assert json.loads(outcome.body)["object"] == "chat.completion"
    (call,) = mesh.router.calls
    assert (call.request_id, call.tenant, call.priority) == ("job-1-2", "acme", LAST)
    assert mesh.count("RunJob", "sums", "OK") == 1


async def test_embeddings_and_tensors(mesh: SmallMesh) -> None:
    vectors = await Execution(mesh)(job(HttpCall(EMBEDDINGS, b'{"model":"vectors","input":"a"}')))
    assert isinstance(vectors, HttpAnswer)
    assert len(json.loads(vectors.body)["data"]) == 1
    tensors = await Execution(mesh)(job(infer()))
    assert isinstance(tensors, InferAnswer)
    assert kserve.ModelInferResponse.FromString(tensors.payload).model_name == "digits"
    assert mesh.router.calls[-1].priority == LAST


async def test_an_attempt_has_what_the_job_has_left_and_never_more_than_an_attempt_may_take(mesh: SmallMesh) -> None:
    now_s = asyncio.get_running_loop().time()
    for timeout_s, expected_s in ((None, 600.0), (5.0, 5.0), (9000.0, 600.0)):
        await Execution(mesh)(job(chat(), timeout_s=timeout_s))
        deadline_s = mesh.router.calls[-1].deadline_s
        assert deadline_s is not None
        assert deadline_s - now_s == pytest.approx(expected_s, abs=2)


async def test_work_that_overstays_its_deadline_is_ended(mesh: SmallMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.execution._ANSWER_WAIT_S", 0.0)
    mesh.router.answers, mesh.router.hang = (), True
    outcome = await Execution(mesh, ExecutionSettings(attempt_s=0.01))(job(chat()))
    assert isinstance(outcome, JobFailure)
    assert (outcome.code, outcome.final) == (Code.DEADLINE_EXCEEDED, False)
    assert mesh.router.left.is_set()


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (FleetFull("full", retry_after_s=0.25), False),
        (Unavailable("away", retry_after_s=2.0), False),
        (DeadlineExceeded("late"), False),
        (Internal("a bug"), False),
        (NotFound("the copy has just gone"), False),
        (VersionWithdrawn("withdrawn"), True),
    ],
)
async def test_what_a_failure_means(mesh: SmallMesh, error: PenstockError, final: bool) -> None:
    mesh.router.answers = (error,)
    outcome = await failed(mesh, job(chat()))
    code = Code.UNAVAILABLE if error.code is Code.NOT_FOUND else error.code
    assert (outcome.code, outcome.final, outcome.retry_after_s) == (code, final, error.retry_after_s)
    assert (outcome.answer is not None) is final
    assert not outcome.returned


@pytest.mark.parametrize(
    ("call", "code", "status", "fault"),
    [
        (chat(stream=True), Code.INVALID_ARGUMENT, 400, "unsupported_value"),
        (chat(logprobs=True), Code.INVALID_ARGUMENT, 400, "unsupported_parameter"),
        (chat("nothing"), Code.NOT_FOUND, 404, "model_not_found"),
        (chat("digits"), Code.INVALID_ARGUMENT, 400, "unsupported_model"),
        (HttpCall(CHAT, b"{"), Code.INVALID_ARGUMENT, 400, "invalid_json"),
        (HttpCall("/v1/models", b"{}"), Code.INVALID_ARGUMENT, 400, "invalid_value"),
        (
            HttpCall(EMBEDDINGS, json.dumps({"model": "vectors", "input": ["a"] * (MAX_INPUTS + 1)}).encode()),
            Code.INVALID_ARGUMENT,
            400,
            "array_above_max_length",
        ),
    ],
)
async def test_refusals_carry_what_an_http_caller_would_have_got(
    mesh: SmallMesh, call: HttpCall, code: Code, status: int, fault: str
) -> None:
    outcome = await failed(mesh, job(call))
    assert (outcome.code, outcome.final) == (code, True)
    assert isinstance(outcome.answer, HttpAnswer)
    assert outcome.answer.status == status
    assert json.loads(outcome.answer.body)["error"]["code"] == fault


async def test_tensors_that_are_none_fail_for_good_without_an_http_answer(mesh: SmallMesh) -> None:
    outcome = await failed(mesh, job(InferCall(b"\xff\xff")))
    assert (outcome.code, outcome.final, outcome.answer) == (Code.INVALID_ARGUMENT, True, None)


@pytest.mark.parametrize("call", [chat(), infer()])
async def test_a_model_that_the_key_was_not_for(mesh: SmallMesh, call: HttpCall | InferCall) -> None:
    outcome = await failed(mesh, job(call, models=["words"]))
    assert (outcome.code, outcome.final) == (Code.PERMISSION_DENIED, True)
    assert not mesh.router.calls


async def test_a_key_that_was_revoked_since_does_nothing_more() -> None:
    mesh = small_mesh()
    await mesh.callers.identify({"authorization": f"Bearer {SECRET}"})
    mesh.targets._enforced = False  # which model is whose is not what this is about
    assert not isinstance(await Execution(mesh)(job(chat(), key_id="k1")), JobFailure)
    mesh.revoke(SECRET)
    outcome = await failed(mesh, job(chat(), key_id="k1"))
    assert (outcome.code, outcome.final) == (Code.PERMISSION_DENIED, True)
    assert isinstance(outcome.answer, HttpAnswer)
    assert outcome.answer.status == 403


async def test_of_a_key_that_was_never_used_here_nobody_can_tell() -> None:
    mesh = small_mesh()
    mesh.targets._enforced = False
    mesh.revoke(SECRET)
    assert not isinstance(await Execution(mesh)(job(chat(), key_id="k1")), JobFailure)


async def test_a_bug_is_told_without_its_words(mesh: SmallMesh) -> None:
    mesh.router.answers = [*ANSWER[:1], b"\xff\xff"]
    with structlog.testing.capture_logs():
        outcome = await failed(mesh, job(chat()))
    assert (outcome.code, outcome.final) == (Code.INTERNAL, False)
