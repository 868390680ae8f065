"""One Execute stream on the worker: which calls are open, what each may still send, and that each ends exactly once.

Owns the calls of one stream and their tasks. A call ends by its last answer, by a failure frame, or silently when the gateway
cancelled it or went away. Never decides whether the worker takes calls at all (`execution.py` does) and never looks into
a payload.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from runtime.errors import Code, DeadlineExceeded, Internal, InvalidArgument, PenstockError
from runtime.gathering import FrameWriter, GatherRule
from runtime.streams import PART_BYTES, PayloadTooLarge, Reassembly
from worker.execute.frames import (
    CancelAsked,
    CreditGranted,
    Event,
    Method,
    Opened,
    PartCame,
    answer_frame,
    answer_parts,
    end_frame,
    events_of,
    failure_frame,
)
from worker.types import Inference

_log = structlog.get_logger("penstock.execution")

_TELL_S = 0.5
"""How old the load may be that the other end knows, while nothing else is written and no call is open."""

BEAT_S = 0.25
"""While calls are open something is written at least every two of these: a gateway takes long silence for a lost worker."""


class StreamFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="STREAM_FULL"):
    """This stream, or the memory for payloads under way, holds as many calls as it may."""


class Draining(PenstockError, code=Code.UNAVAILABLE, reason="DRAINING"):
    """The worker is leaving; another one should be asked."""


class _PeerGone(PenstockError, code=Code.CANCELLED, reason="EXECUTE_PEER_GONE"):
    """The stream's other end does not read any more: nobody to tell."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one Execute stream may hold."""

    payload_bytes: int = 64 * 1024 * 1024
    """One call's payload."""
    upload_bytes: int = 256 * 1024 * 1024
    """Announced sizes of all payloads that have not come whole yet."""
    calls: int = 1024
    """Open at once."""


class Intake(Protocol):
    """Whether calls are taken, and who counts them."""

    def refusal(self) -> PenstockError | None: ...

    def began(self, hold_id: str = "") -> None: ...

    def ended(self, hold_id: str = "") -> None: ...


class _Call:
    __slots__ = ("credit", "cut_off", "more_credit", "opened", "task", "upload")

    def __init__(self, opened: Opened, upload: Reassembly | None) -> None:
        self.opened = opened
        self.upload = upload
        self.credit = opened.credit
        self.more_credit: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.cut_off = False


class ExecuteStream:
    """The calls of one stream. `run` returns when the peer closed its side and all is answered, or after `finish`."""

    def __init__(
        self,
        inference: Inference,
        intake: Intake,
        limits: StreamLimits,
        write: Callable[[bytes], Awaitable[None]],
        header: Callable[[], bytes],
        rule: GatherRule,
        beat: Callable[[], bytes] = bytes,
    ) -> None:
        """`header`: what to put in front of a message. `beat`: a message for when there is nothing else to say."""
        self._inference = inference
        self._intake = intake
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, _Call] = {}
        self._uploading_bytes = 0
        self._raw_write = write
        self._beat = beat
        self._wrote = False
        self._writer = FrameWriter(self._write, rule, self._open_calls, header=header)
        self._over: asyncio.Future[PenstockError | None] = self._loop.create_future()
        self._idle = asyncio.Event()
        self._idle.set()
        self._group = asyncio.TaskGroup()

    async def run(self, read: Callable[[], Awaitable[bytes | None]]) -> None:
        """Serve the stream. `read` gives None at its end. Raises what the peer did wrong, after cancelling its calls."""
        try:
            async with self._group as group:
                self.announce()
                writer = group.create_task(self._writer.run())
                reader = group.create_task(self._read(read))
                teller = group.create_task(self._tell())
                how = await self._over
                reader.cancel()
                if how is not None:
                    self._cancel_all()
                self._fail_unfinishable()
                await self._idle.wait()
                teller.cancel()
                await self._writer.flush()
                writer.cancel()
        finally:
            for call in list(self._calls.values()):
                self._forget(call)
        if how is not None and not isinstance(how, _PeerGone):
            raise how

    def _fail_unfinishable(self) -> None:
        """No frame will come any more: neither the rest of a payload nor credit."""
        for call in list(self._calls.values()):
            if call.upload is not None:
                self._fail(call, InvalidArgument("the stream's requests ended before this payload did; send all of it"))
            elif call.more_credit is not None and not call.more_credit.done():
                call.more_credit.set_result(None)

    def finish(self) -> None:
        """Take nothing further; `run` returns once what is open has ended."""
        self._end(None)

    def cut_off(self) -> None:
        """Cancel what is still running and say so to its callers."""
        for call in list(self._calls.values()):
            call.cut_off = True
            if call.task is None:
                self._fail(call, Draining("this worker left before the whole payload had come; send it to another"))
            else:
                call.task.cancel()

    def announce(self) -> None:
        """Send the load if it changed, although no answer is due."""
        self._writer.push(0, b"")

    async def _tell(self) -> None:
        """Tell a gateway without answers due how busy others keep this worker; one that waits for some, that it is there."""
        while True:
            await asyncio.sleep(BEAT_S if self._calls else _TELL_S)
            silent, self._wrote = not self._wrote, False
            self._writer.push(0, self._beat() if silent and self._calls else b"")

    def _open_calls(self) -> int:
        return len(self._calls)

    def _end(self, violation: PenstockError | None) -> None:
        if not self._over.done():
            self._over.set_result(violation)

    async def _write(self, message: bytes) -> None:
        self._wrote = True
        try:
            await self._raw_write(message)
        except Exception as error:
            # The peer is gone or the RPC is over: grpc.aio tells it in several exception types. Nobody is left to answer.
            _log.info("execute stream no longer takes answers", error=type(error).__name__)
            self._end(_PeerGone("the gateway no longer reads this stream"))
            raise asyncio.CancelledError from error

    async def _read(self, read: Callable[[], Awaitable[bytes | None]]) -> None:
        try:
            while (raw := await read()) is not None:
                self._writer.answered()
                for event in events_of(raw, self._loop.time()):
                    self._take(event)
        except PenstockError as error:
            self._end(error)
        else:
            self._end(None)

    def _take(self, event: Event) -> None:
        if isinstance(event, Opened):
            self._open(event)
            return
        call = self._calls.get(event.call_id)
        if call is None:
            return  # It ended while this frame was on its way.
        if isinstance(event, PartCame):
            self._part(call, event)
        elif isinstance(event, CreditGranted):
            call.credit += event.messages
            if call.more_credit is not None and not call.more_credit.done():
                call.more_credit.set_result(None)
        elif isinstance(event, CancelAsked):
            self._cancel(call)

    def _open(self, opened: Opened) -> None:
        if opened.call_id in self._calls:
            raise InvalidArgument(f"call {opened.call_id} is open already; ids are unique among a stream's open calls")
        refusal = self._intake.refusal() or self._over_limit(opened)
        if refusal is not None:
            self._writer.push(opened.call_id, failure_frame(opened.call_id, refusal))
            return
        upload = None
        if not opened.payload_end:
            upload = Reassembly(opened.payload_bytes, "a payload")
            upload.add(opened.payload)
            self._uploading_bytes += opened.payload_bytes
        self._calls[opened.call_id] = call = _Call(opened, upload)
        self._idle.clear()
        self._intake.began(opened.context.hold_id)
        if upload is None:
            self._start(call, opened.payload)

    def _over_limit(self, opened: Opened) -> PenstockError | None:
        limits, size = self._limits, max(opened.payload_bytes, len(opened.payload))
        if size > limits.payload_bytes:
            return PayloadTooLarge(
                f"a payload of {size} bytes; this worker takes up to {limits.payload_bytes}: send less at once"
            )
        if not opened.payload_end and opened.payload_bytes <= len(opened.payload):
            return InvalidArgument(f"a payload in parts must say its size first; {opened.payload_bytes} bytes were announced")
        if len(self._calls) >= limits.calls:
            return StreamFull(
                f"{len(self._calls)} calls are open on this stream, as many as it holds; retry", retry_after_s=0.05
            )
        if not opened.payload_end and self._uploading_bytes + size > limits.upload_bytes:
            return StreamFull(
                f"{self._uploading_bytes} bytes of payloads are under way on this stream; retry", retry_after_s=0.1
            )
        return None

    def _part(self, call: _Call, event: PartCame) -> None:
        if call.upload is None:
            raise InvalidArgument(f"call {event.call_id}: a part came after the payload's end")
        try:
            call.upload.add(event.part)
        except PayloadTooLarge as error:
            self._fail(call, error)
            return
        if event.payload_end:
            payload = call.upload.whole()
            self._uploaded(call)
            self._start(call, payload)

    def _uploaded(self, call: _Call) -> None:
        if call.upload is not None:
            self._uploading_bytes -= call.upload.limit_bytes
            call.upload = None

    def _start(self, call: _Call, payload: bytes) -> None:
        call.task = self._group.create_task(self._serve(call, payload))
        # A task that is cancelled before its first step never runs its own clean-up.
        call.task.add_done_callback(lambda _: self._forget(call))

    def _cancel(self, call: _Call) -> None:
        if call.task is None:
            self._forget(call)
        else:
            call.task.cancel()
        self._writer.drop(call.opened.call_id)

    def _cancel_all(self) -> None:
        for call in list(self._calls.values()):
            self._cancel(call)

    def _fail(self, call: _Call, error: PenstockError) -> None:
        call_id = call.opened.call_id
        if self._calls.get(call_id) is call:
            self._writer.push(call_id, failure_frame(call_id, error))
            self._forget(call)

    def _forget(self, call: _Call) -> None:
        call_id = call.opened.call_id
        if self._calls.get(call_id) is not call:
            return
        self._uploaded(call)
        del self._calls[call_id]
        self._intake.ended(call.opened.context.hold_id)
        if not self._calls:
            self._idle.set()

    async def _serve(self, call: _Call, payload: bytes) -> None:
        opened = call.opened
        try:
            self._refuse_late(opened)
            if opened.method == Method.INFER:
                answer = await self._inference.infer(opened.model, opened.version, payload, opened.context)
                self._send(opened.call_id, answer, end=True)
            else:
                await self._stream(call, self._answers(opened, payload))
                self._writer.push(opened.call_id, end_frame(opened.call_id))
            self._forget(call)
        except asyncio.CancelledError:
            if call.cut_off:
                self._fail(call, Draining("this worker left before the call was done; send it to another"))
            raise
        except PenstockError as error:
            self._fail(call, error)
        except Exception:
            _log.exception("a call failed in a way nobody mapped", model=opened.model, method=opened.method)
            self._fail(call, Internal("the worker failed inside; its log says why"))

    def _refuse_late(self, opened: Opened) -> None:
        deadline_s = opened.context.deadline_s
        if deadline_s is not None and self._loop.time() >= deadline_s:
            raise DeadlineExceeded("no time was left when the worker had the whole request; give it a longer deadline")

    def _answers(self, opened: Opened, payload: bytes) -> AsyncIterator[bytes]:
        if opened.method == Method.STREAM_INFER:
            return self._inference.stream_infer(opened.model, opened.version, payload, opened.context)
        if opened.method == Method.GENERATE:
            return self._inference.generate(opened.model, opened.version, payload, opened.context)
        raise InvalidArgument(f"method {opened.method} is none this worker knows; known are 1 to {max(Method)}")

    async def _stream(self, call: _Call, answers: AsyncIterator[bytes]) -> None:
        try:
            async for answer in answers:
                while call.credit <= 0:
                    if self._over.done():
                        raise InvalidArgument("the stream's requests ended while this call was out of credit; grant it before")
                    # The engine is not asked for a further answer before this one may leave.
                    call.more_credit = self._loop.create_future()
                    await call.more_credit
                call.credit -= 1
                self._send(call.opened.call_id, answer, end=False)
        finally:
            close = getattr(answers, "aclose", None)
            if close is not None:
                await close()

    def _send(self, call_id: int, answer: bytes, *, end: bool) -> None:
        if len(answer) > PART_BYTES:
            self._writer.push_parts(call_id, answer_parts(call_id, answer, end=end))
        else:
            self._writer.push(call_id, answer_frame(call_id, answer, end=end))
