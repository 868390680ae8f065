"""penstock.scheduler.v1.JobService at the edge: for applications, by API key.

Decides on whose behalf a job is: tenant, key and rights are the caller's own, whatever the request says of them. What could
never be done is refused here, before it is kept. All else is the schedulers' to say, and is handed through. What gateways ask
of schedulers is not offered.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc.aio
from penstock.scheduler.v1 import jobs_pb2 as pb
from penstock.scheduler.v1 import jobs_pb2_grpc

from gateway.callers import Caller, Context, name_request
from gateway.jobs.codec import call_of, owner_message
from gateway.jobs.keepers import Keepers
from gateway.jobs.types import InferCall, JobCall
from gateway.openai.answers import Answers
from gateway.openai.batches import owner_of
from gateway.openai.files import tenant_of
from gateway.openai.types import Mesh
from gateway.wire import head_of
from runtime.errors import Code, InvalidArgument, PenstockError, Unimplemented

SERVICE = "penstock.scheduler.v1.JobService"
MAX_CALL_BYTES = 16 * 1024 * 1024
MAX_KEY_CHARACTERS = 128
_TIMEOUT_S = 10.0
_SUBMIT_TIMEOUT_S = 30.0

_CHECK = "CheckJob"
_Answer = TypeVar("_Answer")


class CallTooLarge(PenstockError, code=Code.INVALID_ARGUMENT, reason="JOB_CALL_TOO_LARGE"):
    """More than is kept of one job."""


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    """Belongs to one event loop. `register` is a `runtime.serving.Register`."""

    def __init__(self, mesh: Mesh, keepers: Keepers) -> None:
        self._mesh, self._keepers, self._answers = mesh, keepers, Answers(mesh)

    def register(self, server: grpc.aio.Server) -> None:
        jobs_pb2_grpc.add_JobServiceServicer_to_server(self, server)

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Context) -> pb.SubmitJobResponse:
        async def submit(caller: Caller) -> pb.SubmitJobResponse:
            check_submission(request)
            await self._check_call(call_of(request.call), caller)
            request.owner.CopyFrom(owner_message(owner_of(caller)))
            # Without a key of the caller's own, asking twice could make two jobs.
            return await self._keepers.ask(
                lambda stubs: stubs.jobs.SubmitJob(request, timeout=_SUBMIT_TIMEOUT_S), again=bool(request.idempotency_key)
            )

        return await self._counted("SubmitJob", context, submit)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        answer: pb.GetJobResponse = await self._handed("GetJob", request, context)
        return answer

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        answer: pb.CancelJobResponse = await self._handed("CancelJob", request, context, acts=True)
        return answer

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        answer: pb.ListJobsResponse = await self._handed("ListJobs", request, context)
        return answer

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Context) -> pb.ListDeadLettersResponse:
        answer: pb.ListDeadLettersResponse = await self._handed("ListDeadLetters", request, context)
        return answer

    async def ReplayJobs(self, request: pb.ReplayJobsRequest, context: Context) -> pb.ReplayJobsResponse:
        # Not asked twice: the second answer would count what the first had left.
        answer: pb.ReplayJobsResponse = await self._handed("ReplayJobs", request, context, acts=True, again=False)
        return answer

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> None:  # type: ignore[override]  # writes
        async def watch(caller: Caller) -> None:
            request.tenant = tenant_of(caller)
            async with aclosing(self._changes(request)) as changes:
                async for change in changes:
                    await context.write(change)

        await self._counted("WatchJob", context, watch)

    async def ClaimJobs(self, request: pb.ClaimJobsRequest, context: Context) -> pb.ClaimJobsResponse:
        raise _not_offered("ClaimJobs")

    async def ExtendClaims(self, request: pb.ExtendClaimsRequest, context: Context) -> pb.ExtendClaimsResponse:
        raise _not_offered("ExtendClaims")

    async def SettleJob(self, request: pb.SettleJobRequest, context: Context) -> pb.SettleJobResponse:
        raise _not_offered("SettleJob")

    async def _changes(self, request: pb.WatchJobRequest) -> AsyncGenerator[pb.WatchJobResponse, None]:
        """The job and its changes; where the schedulers broke off, what is told again is told once."""
        last: pb.WatchJobResponse | None = None
        async with aclosing(self._keepers.stream(lambda stubs: stubs.jobs.WatchJob(request))) as messages:
            async for message in messages:
                if message is not None and message != last:
                    last = message
                    yield message

    async def _check_call(self, call: JobCall, caller: Caller) -> None:
        """Raises what doing it now would be refused with."""
        if not isinstance(call, InferCall):
            checked = self._mesh.exchanges.begin(_CHECK)
            checked.caller = caller
            await self._answers.check(call.path, call.body, checked)
            return
        head = head_of(call.payload)
        caller.key.authorise_call(head.model)
        await self._mesh.targets.found(caller.key, head.model, head.version, head.session_key, caller.deadline_s)

    async def _handed(self, method: str, request: Any, context: Context, *, acts: bool = False, again: bool = True) -> Any:
        """The schedulers' answer for the caller's tenant. `acts`: it takes the right to call models, not only to look."""

        async def ask(caller: Caller) -> Any:
            if acts:
                caller.key.require_infer()
            request.tenant = tenant_of(caller)
            return await self._keepers.ask(lambda stubs: getattr(stubs.jobs, method)(request, timeout=_TIMEOUT_S), again=again)

        return await self._counted(method, context, ask)

    async def _counted(self, method: str, context: Context, answer: Callable[[Caller], Awaitable[_Answer]]) -> _Answer:
        """The answer, for a caller who was let in. The model is not told apart: anybody may name any."""
        exchange = self._mesh.exchanges.begin(method)
        try:
            exchange.caller = caller = await self._mesh.callers.enter(context)
            await name_request(context, caller)
            await self._mesh.exchanges.admit(exchange)
            answered = await answer(caller)
        except BaseException as raised:
            self._mesh.exchanges.failed(exchange, raised)
            raise
        self._mesh.exchanges.answered(exchange)
        return answered


def check_submission(request: pb.SubmitJobRequest) -> None:
    """Raises InvalidArgument, CallTooLarge."""
    size_bytes = request.call.ByteSize()
    if size_bytes > MAX_CALL_BYTES:
        raise CallTooLarge(f"the job's call has {size_bytes} bytes; at most {MAX_CALL_BYTES} are kept")
    if len(request.idempotency_key) > MAX_KEY_CHARACTERS:
        raise InvalidArgument(
            f"the idempotency key has {len(request.idempotency_key)} characters; it takes up to {MAX_KEY_CHARACTERS}"
        )


def _not_offered(method: str) -> Unimplemented:
    return Unimplemented(f"{method} is between gateways and schedulers; applications submit, watch, cancel and replay jobs")
