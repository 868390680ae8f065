"""What becomes of a sealed call: who may make it, that it is made once, and that its answer leaves sealed.

In this order: the reservation is kept here, the box opens with this worker's key, the secret in it is the reservation's, it
was sealed for this reservation and this worker, and it did not come before. Up to there a stranger may be calling, and is told
one sentence whatever was wrong. From there on everything leaves under the call's own reply key, failures too: that the place is
busy, that the payload is for another model, what the engine says.

Owns the calls that are open. The places are `worker.holds`', what is computed is inference's, as for a gateway's calls. Never
logs what was in a box.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import ParamSpec, TypeVar

import structlog
from nacl.public import PrivateKey

from runtime.errors import DeadlineExceeded, Internal, InvalidArgument, PenstockError
from runtime.ids import WorkerId
from runtime.sealing import AnswerSealer, BoxRefused, SealedCall, SealedRefused, is_token, open_call, reservation_parts
from worker.execute.execution_stream import Draining, Intake
from worker.execute.frames import Method
from worker.holds import Hold, Holds
from worker.sealed.boxes import Boxes
from worker.sealed.codec import data_answer, failure_answer, named
from worker.sealed.types import SealedLimits
from worker.threads import in_thread
from worker.types import CallContext, Inference

OFF_LOOP_BYTES = 64 * 1024
"""From here on a thread opens and seals: the loop has others to answer."""

_MAX_ID_CHARACTERS = 128
_log = structlog.get_logger("penstock.sealed")
P = ParamSpec("P")
T = TypeVar("T")

Part = tuple[bytes, bytes]
"""Header (of the first one alone) and sealed message."""


class Door:
    """Belongs to one event loop."""

    def __init__(
        self,
        inference: Inference,
        holds: Holds,
        worker_id: WorkerId,
        private_key: PrivateKey,
        intake: Intake,
        limits: SealedLimits | None = None,
    ) -> None:
        limits = limits or SealedLimits()
        self._inference, self._holds, self._intake = inference, holds, intake
        self._worker_id, self._private_key = worker_id, private_key
        self._boxes = Boxes(lambda hold_id: holds.reserved(hold_id) is not None, at_most=limits.boxes)
        self._loop = asyncio.get_running_loop()
        self._steps: set[asyncio.Timeout] = set()
        self._is_cut = False
        self.answered = 0
        self.refused = 0

    async def answers(self, reservation: str, box: bytes, deadline_s: float | None) -> AsyncGenerator[Part, None]:
        """The sealed parts of the answer; close it when leaving early. Raises what a stranger is told."""
        if (refusal := self._intake.refusal()) is not None:
            raise refusal
        try:
            hold, call = await self._let_in(reservation, box)
        except PenstockError:
            self.refused += 1
            raise
        self._intake.began()
        try:
            async with aclosing(self._sealed(hold, call, deadline_s)) as parts:
                async for part in parts:
                    yield part
        finally:
            self._intake.ended()
        self.answered += 1

    def cut_off(self) -> None:
        """Break off what is open, and tell its callers."""
        self._is_cut = True
        for step in self._steps:
            if not step.expired():
                step.reschedule(self._loop.time())

    async def _let_in(self, reservation: str, box: bytes) -> tuple[Hold, SealedCall]:
        """What is kept for whoever has the secret. Raises SealedRefused, SealedReplayed, ReservationWorn."""
        try:
            worker_id, hold_id = reservation_parts(reservation)
            hold = self._holds.reserved(hold_id)
            if hold is None or worker_id != self._worker_id:
                raise SealedRefused()
            call = await _aside(len(box), open_call, box, self._private_key)
        except (InvalidArgument, BoxRefused) as error:
            raise SealedRefused() from error
        is_for_this = (call.reservation_id, call.worker_id) == (reservation, worker_id)
        if not (is_token(call.token, hold.token_sha256) and is_for_this):
            raise SealedRefused()
        self._boxes.note(hold_id, box)
        return hold, call

    async def _sealed(self, hold: Hold, call: SealedCall, deadline_s: float | None) -> AsyncGenerator[Part, None]:
        sealer = AnswerSealer(call.reply_key)
        header, last = sealer.header, b""
        try:
            async with aclosing(self._served(hold, call, deadline_s)) as answers:
                async for answer in answers:
                    yield header, await _aside(len(answer), sealer.seal, data_answer(answer))
                    header = b""
        except PenstockError as error:
            last = failure_answer(error)
        except Exception as error:
            _log.error("sealed_call_broke", model=hold.model, error=type(error).__name__)  # its text may quote the payload
            last = failure_answer(Internal("the worker failed inside; its log says which model, and nothing of what was sent"))
        yield header, sealer.seal(last, final=True)

    async def _served(self, hold: Hold, call: SealedCall, deadline_s: float | None) -> AsyncGenerator[bytes, None]:
        """The answers as a gateway would get them."""
        if call.timeout_s:
            asked_s = self._loop.time() + call.timeout_s
            deadline_s = asked_s if deadline_s is None else min(asked_s, deadline_s)
        _check_reserved(hold, named(call.method, call.payload))
        with self._holds.enter_reserved(hold.hold_id) as admission:
            request_id = call.request_id[:_MAX_ID_CHARACTERS]
            context = CallContext(request_id, hold.tenant, deadline_s=deadline_s, admission=admission)
            if call.method == Method.INFER:
                infer = self._inference.infer(hold.model, hold.version, call.payload, context)
                yield await self._in_time(infer, deadline_s)
                return
            serve = self._inference.generate if call.method == Method.GENERATE else self._inference.stream_infer
            answers = serve(hold.model, hold.version, call.payload, context)
            try:
                while (answer := await self._in_time(_next(answers), deadline_s)) is not None:
                    yield answer
            finally:
                if isinstance(answers, AsyncGenerator):
                    await answers.aclose()

    async def _in_time(self, step: Awaitable[T], deadline_s: float | None) -> T:
        """The step's result. Raises DeadlineExceeded, and Draining where it was cut off."""
        timeout = asyncio.timeout_at(self._loop.time() if self._is_cut else deadline_s)
        try:
            async with timeout:
                self._steps.add(timeout)
                return await step
        except TimeoutError as error:
            if self._is_cut:
                raise Draining("this worker left before the call was done; reserve a place at another") from error
            raise DeadlineExceeded("no time is left for this call; give it a longer deadline") from error
        finally:
            self._steps.discard(timeout)


def _check_reserved(hold: Hold, named: tuple[str, str]) -> None:
    model, version = named
    if model not in ("", hold.model) or version not in ("", hold.version):
        raise InvalidArgument(
            f"the payload is for model {model[:80]!r} version {version[:40] or 'any'}; reserved is {hold.model!r} version"
            f" {hold.version}: name that one, or none"
        )


async def _next(answers: AsyncIterator[bytes]) -> bytes | None:
    return await anext(answers, None)


async def _aside(size_bytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Done here where it is little, else in a thread."""
    return await in_thread(work, *args, **kwargs) if size_bytes > OFF_LOOP_BYTES else work(*args, **kwargs)
