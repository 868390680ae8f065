"""envoy.service.ext_proc.v3.ExternalProcessor on the wire: one stream for each HTTP request that passes an Envoy.

The request's headers are answered at once where they name the model; else as soon as the body has named it. Bodies are passed
on as they came. What was granted is given back when the stream ends.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from xds import external_processor_pb2 as pb
from xds import external_processor_pb2_grpc

from placement.types import Outcome
from runtime.clock import Clock
from runtime.errors import Code
from scheduler.picker import codec
from scheduler.picker.picking import Picker
from scheduler.picker.reading import (
    MAX_JSON_BYTES,
    SESSION_HEADER,
    Unreadable,
    asked_by_grpc,
    asked_by_headers,
    asked_by_json,
    how_to_read,
)
from scheduler.picker.types import Asked, Picked, Reading, TurnedAway

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
Context = grpc.aio.ServicerContext[Any, Any]
_FAILED_AT = 500
_WRONG_MODE = (
    "the model is named in the body, which this Envoy does not show in time; set request_body_mode to FULL_DUPLEX_STREAMED or "
    "BUFFERED, or name the model in x-gateway-model-name"
)


class PickerServicer(external_processor_pb2_grpc.ExternalProcessorServicer):
    """Belongs to one event loop."""

    def __init__(self, picker: Picker, clock: Clock, rng: random.Random) -> None:
        self._picker, self._clock, self._rng = picker, clock, rng

    # A coroutine that writes: cancelled generators leak natively in grpc.aio (grpc#43360).
    async def Process(self, request_iterator: AsyncIterator[pb.ProcessingRequest], context: Context) -> None:  # type: ignore[override]
        passage = _Passage(self._picker, self._clock, self._rng.getrandbits(64))
        try:
            async for message in request_iterator:
                for response in passage.answer(message):
                    await context.write(response)
                if passage.refused:
                    return
        finally:
            passage.close()


class _Passage:
    """One request on its way."""

    def __init__(self, picker: Picker, clock: Clock, draw: int) -> None:
        self._picker, self._clock, self._draw = picker, clock, draw
        self._headers: dict[str, str] = {}
        self._subset: frozenset[str] | None = None
        self._reading = Reading.HEADERS
        self._streamed, self._streams_answer = False, False
        self._body = bytearray()
        self._picked: Picked | None = None
        self._began_s = 0.0
        self._outcome = Outcome.UNKNOWN
        self._latency_ms: float | None = None
        self.refused = False

    def answer(self, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        """What to say to this part; nothing, where it is not said yet."""
        kind = message.WhichOneof("request")
        try:
            match kind:
                case "request_headers":
                    return self._on_headers(message)
                case "request_body":
                    return self._on_body(message.request_body)
                case "request_trailers" if self._picked is None:
                    return [*self._on_body(pb.HttpBody(end_of_stream=True)), codec.continued(kind, message)]
                case "response_headers":
                    self._heard(message)
                case "response_body" if self._streams_answer:
                    return [codec.response_passed_on(message)]
        except Unreadable as error:
            return self._refuse(TurnedAway(400, Code.INVALID_ARGUMENT, error.message))
        return [codec.continued(kind or "", message)]

    def close(self) -> None:
        """Give back what was granted."""
        if self._picked is not None:
            self._picker.settle(self._picked, self._outcome, self._latency_ms)
            self._picked = None

    def _on_headers(self, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        self._began_s = self._clock.monotonic_s()
        self._headers, self._subset = codec.headers_of(message.request_headers), codec.subset_of(message)
        mode = message.protocol_config.request_body_mode
        self._streamed = mode == codec.STREAMED_WHOLE
        self._streams_answer = message.protocol_config.response_body_mode == codec.STREAMED_WHOLE
        self._reading = how_to_read(self._headers)
        if self._reading is Reading.HEADERS:
            return self._pick(asked_by_headers(self._headers), codec.to_headers)
        if message.request_headers.end_of_stream:
            raise Unreadable("the request names no model: its path does not, and it has no body")
        if mode not in codec.READABLE:
            return self._refuse(TurnedAway(500, Code.FAILED_PRECONDITION, _WRONG_MODE))
        # Streamed bodies come without the headers' being answered first; buffered ones only then.
        return [] if self._streamed else [codec.continued("request_headers", message)]

    def _on_body(self, body: pb.HttpBody) -> list[pb.ProcessingResponse]:
        if self._picked is not None:
            return list(codec.passed_on(body.body, ended=body.end_of_stream)) if self._streamed else [_go_on()]
        self._body += body.body
        if len(self._body) > MAX_JSON_BYTES and self._reading is Reading.JSON:
            return self._refuse(TurnedAway(413, Code.RESOURCE_EXHAUSTED, f"a JSON body of more than {MAX_JSON_BYTES} bytes"))
        asked = self._asked(ended=body.end_of_stream)
        if asked is None:
            return [] if self._streamed else [_go_on()]
        if not self._streamed:
            return self._pick(asked, codec.to_body)
        answers = self._pick(asked, codec.to_headers)
        if not self.refused:
            answers += codec.passed_on(bytes(self._body), ended=body.end_of_stream)
            self._body.clear()
        return answers

    def _asked(self, *, ended: bool) -> Asked | None:
        session = self._headers.get(SESSION_HEADER, "")
        if self._reading is Reading.GRPC:
            return asked_by_grpc(bytes(self._body[:4096]), session, ended=ended or len(self._body) >= 4096)
        return asked_by_json(bytes(self._body), session) if ended else None

    def _pick(self, asked: Asked, said: Any) -> list[pb.ProcessingResponse]:
        self.close()  # of an Envoy that tells of its request twice
        found = self._picker.pick(asked, self._subset, self._draw)
        if isinstance(found, TurnedAway):
            return self._refuse(found)
        self._picked = found
        return [said(found)]

    def _refuse(self, turned: TurnedAway) -> list[pb.ProcessingResponse]:
        self.refused = True
        speaks_grpc = self._headers.get("content-type", "").startswith("application/grpc")
        return [codec.refusal(turned, speaks_grpc=speaks_grpc)]

    def _heard(self, message: pb.ProcessingRequest) -> None:
        """The answer has begun: whoever gave it works."""
        headers, served = codec.headers_of(message.response_headers), codec.served_by(message)
        status = headers.get(":status", "")
        failed = status.isdecimal() and int(status[:4]) >= _FAILED_AT
        if self._picked is not None and served and served != self._picked.endpoints[0]:
            self._outcome = Outcome.PATH_FAILED  # Envoy had to fall back: the first did not take it
        elif failed:
            self._outcome = Outcome.PATH_FAILED if status == "503" else Outcome.FAILED
        else:
            self._outcome = Outcome.ANSWERED
            self._latency_ms = (self._clock.monotonic_s() - self._began_s) * 1000


def _go_on() -> pb.ProcessingResponse:
    return pb.ProcessingResponse(request_body=pb.BodyResponse(response=pb.CommonResponse()))
