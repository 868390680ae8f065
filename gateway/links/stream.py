"""One Execute stream on the gateway: calls go out gathered, answers find their call, a loss fails every call at once.

Owns the open calls of one stream from its first message to its end. Each call leaves `_calls` exactly once: answered, failed,
out of time, abandoned by its caller, given up because its worker fell silent, or lost with the stream. Calls of a silent worker
that nobody else could answer stay. Never reconnects: `gateway.links.link` opens the next stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import structlog

from gateway.links.calls import OpenCall, StreamingCall, UnaryCall
from gateway.links.codec import answers_of, cancel_frame, grant_frame, open_frame, open_parts
from gateway.links.silence import IDLE_LOOK_S, LOOK_S, Silence, Verdict
from gateway.links.types import CallContext, LinkFull, LinkLoad, LinkLost, LinkSettings, Method, Others
from runtime.errors import DeadlineExceeded, PenstockError
from runtime.gathering import FrameWriter, GatherRule
from runtime.ids import WorkerId
from runtime.status import error_of
from runtime.streams import PART_BYTES

_log = structlog.get_logger("penstock.links")
RawCall = grpc.aio.StreamStreamCall[Any, Any]


class LinkStream:
    """Calls over one stream. `run` serves it until it is lost; before `accepted` no call may be opened."""

    def __init__(
        self,
        worker_id: WorkerId,
        settings: LinkSettings,
        rule: GatherRule,
        on_load: Callable[[LinkLoad], None],
        others: Others | None = None,
    ) -> None:
        """Without `others` a silent worker's calls wait for it, until the connection ends."""
        self._worker_id = worker_id
        self._settings = settings
        self._rule = rule
        self._on_load = on_load
        self._others = others
        self._silence = Silence(settings)
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, OpenCall] = {}
        self._unary = 0
        self._last_id = 0
        self._writer: FrameWriter | None = None
        self.accepted = False

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    @property
    def is_silent(self) -> bool:
        """The worker owes answers and has said nothing for a while."""
        return self._silence.is_silent

    async def run(self, raw_call: RawCall, on_accepted: Callable[[], None]) -> PenstockError:
        """Serve until the stream is lost; returns why. Every call that was open has failed by then."""
        lost: PenstockError = LinkLost(f"the link to worker {self._worker_id} was closed")
        try:
            async with asyncio.TaskGroup() as group:
                refusal = await self._accept(raw_call)
                if refusal is None:
                    self._writer = FrameWriter(_writing(raw_call), self._rule, self._awaited)
                    writer = group.create_task(self._writer.run())
                    self.accepted = True
                    on_accepted()
                    lost = await _first(group.create_task(self._read(raw_call)), group.create_task(self._watch()))
                    writer.cancel()
                else:
                    lost = refusal
        finally:
            self.accepted = False
            raw_call.cancel()
            self._lose(lost)
        return lost

    def open_unary(self, model: str, version: str, payload: bytes, call: CallContext) -> UnaryCall:
        """Raises LinkLost, LinkFull, DeadlineExceeded."""
        self._last_id = call_id = self._last_id + 1
        unary = UnaryCall(call_id, self._loop, self._settings.answer_bytes)
        self._open(unary, Method.INFER, model, version, payload, call, 0)
        return unary

    def open_streaming(self, method: Method, model: str, version: str, payload: bytes, call: CallContext) -> StreamingCall:
        """Raises LinkLost, LinkFull, DeadlineExceeded."""
        self._last_id = call_id = self._last_id + 1
        credit = self._settings.credit
        streaming = StreamingCall(call_id, self._settings.answer_bytes, credit, self._grant)
        self._open(streaming, method, model, version, payload, call, credit)
        return streaming

    def abandon(self, call: OpenCall) -> None:
        """Nobody waits for it any more: the worker is told, unless it has ended."""
        if self._forget(call) and self._writer is not None:
            self._writer.drop(call.call_id)
            self._writer.push(call.call_id, cancel_frame(call.call_id))

    def _open(
        self, opening: OpenCall, method: Method, model: str, version: str, payload: bytes, call: CallContext, credit: int
    ) -> None:
        if not self.accepted or self._writer is None:
            raise LinkLost(f"worker {self._worker_id} is not connected")
        if len(self._calls) >= self._settings.calls_per_stream:
            raise LinkFull(f"{len(self._calls)} calls are open to worker {self._worker_id}, as many as a stream holds")
        now_s, deadline_s, call_id = self._loop.time(), call.deadline_s, opening.call_id
        if deadline_s is not None:
            if deadline_s <= now_s:
                raise DeadlineExceeded("no time was left before the request was sent to a worker; give it a longer deadline")
            opening.timer = self._loop.call_at(deadline_s, self._expire, opening)
        opening.model, opening.version = model, version
        self._calls[call_id] = opening
        if isinstance(opening, UnaryCall):
            self._unary += 1
        if len(payload) > PART_BYTES:
            self._writer.push_parts(call_id, open_parts(call_id, method, model, version, payload, call, now_s, credit))
        else:
            self._writer.push(call_id, open_frame(call_id, method, model, version, payload, call, now_s, credit))

    def _awaited(self) -> int:
        # Calls that end with their first answer: streaming ones stay open long and say nothing of what the worker owes.
        return self._unary

    def _grant(self, call_id: int, messages: int) -> None:
        if self._writer is not None and call_id in self._calls:
            self._writer.push(call_id, grant_frame(call_id, messages))

    def _expire(self, call: OpenCall) -> None:
        self.abandon(call)
        call.fail(DeadlineExceeded(f"worker {self._worker_id} had not finished when the request's time ran out"))

    def _forget(self, call: OpenCall) -> bool:
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        if self._calls.pop(call.call_id, None) is None:
            return False
        if isinstance(call, UnaryCall):
            self._unary -= 1
        return True

    def _lose(self, why: PenstockError) -> None:
        """Fail all that is open, each knowing whether an answer had come."""
        for call in list(self._calls.values()):
            self._forget(call)
            call.fail(LinkLost(f"lost worker {self._worker_id} mid-call: {why.message}", started=call.started))

    async def _watch(self) -> PenstockError:
        """Return once the worker has been silent for so long that every call it owes can be answered sooner by others."""
        while True:
            await asyncio.sleep(LOOK_S if self._calls else IDLE_LOOK_S)
            verdict = self._silence.look(is_open=bool(self._calls))
            if self._others is None or verdict is Verdict.HEARD:
                continue
            if verdict is Verdict.FELL_SILENT:
                self._others.pass_over(self._silence.silent_s)
            elif verdict is Verdict.LOST and self._give_up(self._others):
                return self._gone()

    def _give_up(self, others: Others) -> bool:
        """Fail the calls that others can answer, so that they are sent there; whether none is left."""
        known: dict[tuple[str, str], bool] = {}
        moved = 0
        for call in list(self._calls.values()):
            wanted = call.model, call.version
            if wanted not in known:
                known[wanted] = others.have(*wanted)
            if known[wanted]:
                moved += 1
                self.abandon(call)
                call.fail(LinkLost(self._gone().message, started=call.started))
        if moved:
            others.took_over(moved)
        return not self._calls

    def _gone(self) -> LinkLost:
        return LinkLost(f"worker {self._worker_id} has said nothing for {self._silence.silent_s:.1f} s")

    async def _accept(self, raw_call: RawCall) -> PenstockError | None:
        """Wait for the worker's first message: only then is it known that it takes this stream."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                return await self._read_one(raw_call)
        except TimeoutError:
            return LinkLost(f"worker {self._worker_id} did not accept a stream within {self._settings.connect_timeout_s} s")

    async def _read(self, raw_call: RawCall) -> PenstockError:
        while True:
            lost = await self._read_one(raw_call)
            if lost is not None:
                return lost

    async def _read_one(self, raw_call: RawCall) -> PenstockError | None:
        try:
            raw = await raw_call.read()
        except grpc.aio.AioRpcError as failure:
            return error_of(failure)
        if not isinstance(raw, bytes):  # grpc.aio.EOF
            return LinkLost(f"worker {self._worker_id} ended the stream")
        try:
            self._take(raw)
        except PenstockError as error:
            return error
        return None

    def _take(self, raw: bytes) -> None:
        self._silence.heard = True
        load, answers = answers_of(raw)
        if load is not None:
            self._on_load(load)
        for call_id, data, more, end, failure in answers:
            call = self._calls.get(call_id)
            if call is None:
                continue  # Its caller went away while the answer was on its way.
            if failure is not None:
                self._forget(call)
                call.fail(failure)
                continue
            if end:
                self._forget(call)
            try:
                call.take(data, more=more, end=end)
            except PenstockError as error:
                self.abandon(call)
                call.fail(error)
        if answers and self._writer is not None:
            self._writer.answered()


async def _first(*ends: asyncio.Task[PenstockError]) -> PenstockError:
    """What the first of them returns; the others are cancelled."""
    try:
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for end in ends:
            end.cancel()


def _writing(raw_call: RawCall) -> Callable[[bytes], Any]:
    async def write(message: bytes) -> None:
        try:
            await raw_call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            # The reader learns of the same loss and tells every call; the writer just ends.
            raise asyncio.CancelledError from error

    return write
