"""Does one job's call: through this gateway's own router, with the rights its owner had, behind everybody who waits.

Decides what an attempt's failure means: whether another can help, and when. A call over HTTP is answered as the OpenAI door
would answer it, refusals with their status and body. Claims nothing, and tells no scheduler.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gateway.admission import KeyFacts
from gateway.callers import Caller
from gateway.exchange import Exchange
from gateway.jobs.types import ClaimedJob, HttpAnswer, HttpCall, InferAnswer, InferCall, JobAnswer, JobFailure, JobOutcome
from gateway.openai.answers import Answers
from gateway.openai.errors import error_answer
from gateway.openai.types import Mesh
from gateway.wire import head_of
from placement.types import Request
from runtime.errors import Code, DeadlineExceeded, PenstockError
from runtime.ids import ModelName
from runtime.status import translated

LAST = 0xFFFF_FFFF
"""The least urgent priority there is. A worker takes what its model has no level for as the model's default."""

FINAL = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.UNAUTHENTICATED,
    }
)
"""Failures that the same call meets again, until somebody changes something."""

_PASSING = frozenset({"NOT_FOUND", "MODEL_NOT_FOUND", "HOLD_GONE", "REGION_UNSERVED"})
"""NOT_FOUND that may pass: the copy that was asked has just gone, or another region's gateway can. Told as UNAVAILABLE."""

_METHOD = "RunJob"
_MESSAGE_CHARACTERS = 1_000
_ANSWER_WAIT_S = 5.0
"""Past a job's deadline. Whoever was asked for the answer is to notice the deadline first."""


class KeyEnded(PenstockError, code=Code.PERMISSION_DENIED, reason="JOB_KEY_ENDED"):
    """The key that submitted the job was revoked, or has expired, since."""


@dataclass(frozen=True, slots=True)
class ExecutionSettings:
    attempt_s: float = 600.0
    """What one attempt may take, whatever its job still has."""


class Execution:
    """A `gateway.jobs.attempt.Perform`. Belongs to one event loop."""

    def __init__(self, mesh: Mesh, settings: ExecutionSettings | None = None) -> None:
        self._mesh, self._answers = mesh, Answers(mesh)
        self._settings = settings or ExecutionSettings()
        self._loop = asyncio.get_running_loop()

    async def __call__(self, job: ClaimedJob) -> JobOutcome:
        """What came of it. Raises nothing but what ends this task."""
        exchange, started_s = self._mesh.exchanges.begin(_METHOD), self._loop.time()
        left_s = min(self._settings.attempt_s, job.timeout_s or self._settings.attempt_s)
        try:
            async with asyncio.timeout(left_s + _ANSWER_WAIT_S):
                answer = await self._answer(job, exchange, started_s + left_s)
        except TimeoutError:
            return self._failed(job, exchange, DeadlineExceeded(f"nothing came of it in {left_s:.0f} s"))
        except Exception as raised:
            return self._failed(job, exchange, translated(raised, _METHOD))
        self._mesh.exchanges.answered(exchange)
        return answer

    async def _answer(self, job: ClaimedJob, exchange: Exchange, deadline_s: float) -> JobAnswer:
        owner, call = job.owner, job.call
        if owner.key_id and await self._mesh.callers.stands(owner.key_id) is False:
            raise KeyEnded(f"the key {owner.key_id!r}, which submitted this, is revoked or has expired since; use another")
        key = KeyFacts(owner.key_id, owner.tenant, allowed_models=owner.allowed_models)
        request_id = f"{job.job_id}-{job.attempt}"
        exchange.caller = caller = Caller(key, request_id, True, deadline_s, "", {}, priority=LAST)
        if isinstance(call, InferCall):
            return InferAnswer(await self._infer(call, caller, exchange))
        return HttpAnswer(200, await self._answers.at(call.path, call.body, exchange))

    async def _infer(self, call: InferCall, caller: Caller, exchange: Exchange) -> bytes:
        head = head_of(call.payload)
        session = head.session_key
        caller.key.authorise(head.model)
        await self._mesh.exchanges.admit(exchange, head.model)
        version = await self._mesh.targets.found(caller.key, head.model, head.version, session, caller.deadline_s)
        target = Request(ModelName(head.model), version, session_key=session)
        return await self._mesh.dispatch.infer(target, call.payload, caller.call(), exchange)

    def _failed(self, job: ClaimedJob, exchange: Exchange, error: PenstockError) -> JobFailure:
        self._mesh.exchanges.failed(exchange, error)
        return failure_of(job, error)


def failure_of(job: ClaimedJob, error: PenstockError) -> JobFailure:
    """What to tell of it. A final one carries what an HTTP caller would have got."""
    code = Code.UNAVAILABLE if error.reason in _PASSING else error.code
    final, answer = code in FINAL, None
    if final and isinstance(job.call, HttpCall):
        refusal = error_answer(error)
        answer = HttpAnswer(refusal.status, refusal.body)
    return JobFailure(code, error.message[:_MESSAGE_CHARACTERS], final=final, retry_after_s=error.retry_after_s, answer=answer)
