"""WorkerService: Execute streams for gateways, Status, Drain, and what `model_service.py` and `hold_service.py` add.

Owns whether this worker still takes calls, and how it stops: refuse, finish what is open, cut off what outlasts the grace, end
the streams, set `stop`. Each stream's calls are `worker.execute.execution_stream`'s. Never runs inference itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import grpc.aio
import structlog
from penstock.worker.v1 import worker_pb2

from runtime.errors import PenstockError
from runtime.gathering import AtOnce, GatherRule
from runtime.identity import Role
from runtime.ids import WorkerId
from runtime.serving import inner_peer
from worker.execute.execution_stream import Draining, ExecuteStream, StreamLimits
from worker.execute.frames import load_message, load_prefix
from worker.execute.hold_service import HoldService
from worker.execute.model_service import ModelService
from worker.types import Inference

SERVICE = "penstock.worker.v1.WorkerService"
_UNWIND_S = 5.0
"""How long cancelled calls and ended streams may take to be gone before the worker stops regardless."""

_log = structlog.get_logger("penstock.execution")

Context = grpc.aio.ServicerContext[Any, Any]
Authorise = Callable[[Context, tuple[Role, ...]], object]
"""Raises if the peer bears none of the roles."""


def _by_certificate(context: Context, roles: tuple[Role, ...]) -> object:
    return inner_peer(context, *roles)


class Execution:
    """The worker's side of the inner hop. `register` is a `runtime.serving.Register`; `stop` is set once drained.

    `changed` is called as a drain begins: what others are told of this worker's copies is different from then on.
    """

    def __init__(
        self,
        inference: Inference,
        worker_id: WorkerId,
        stop: asyncio.Event,
        *,
        copies: Callable[[], Iterable[worker_pb2.ModelCopy]] = tuple,
        models: ModelService | None = None,
        holds: HoldService | None = None,
        changed: Callable[[], None] = lambda: None,
        limits: StreamLimits | None = None,
        authorise: Authorise = _by_certificate,
        rule: Callable[[], GatherRule] = AtOnce,
    ) -> None:
        self._inference = inference
        self._worker_id = worker_id
        self._stop = stop
        self._copies = copies
        self._models = models or ModelService()
        self._holds = holds
        self._changed = changed
        self._limits = limits or StreamLimits()
        self._authorise = authorise
        self._rule = rule
        self._streams: set[ExecuteStream] = set()
        self._open_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._gone = asyncio.Event()
        self._gone.set()
        self._draining: asyncio.Task[None] | None = None
        self._over = False

    def register(self, server: grpc.aio.Server) -> None:
        """Add WorkerService. Execute takes and gives raw bytes: its messages are put together frame by frame."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Execute": grpc.stream_stream_rpc_method_handler(self._execute),
            "Status": grpc.unary_unary_rpc_method_handler(
                self._status,
                request_deserializer=worker_pb2.StatusRequest.FromString,
                response_serializer=worker_pb2.StatusResponse.SerializeToString,
            ),
            "Drain": grpc.unary_unary_rpc_method_handler(
                self._drain_rpc,
                request_deserializer=worker_pb2.DrainRequest.FromString,
                response_serializer=worker_pb2.DrainResponse.SerializeToString,
            ),
            **self._models.handlers(self._authorise, self.refusal),
            **(self._holds.handlers(self._authorise, self.refusal, self._copies) if self._holds is not None else {}),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    @property
    def draining(self) -> bool:
        return self._draining is not None

    @property
    def open_calls(self) -> int:
        return self._open_calls

    async def drain(self, grace_s: float) -> None:
        """Take no more calls, finish those that are open within the grace, end the streams. Idempotent: the first grace counts.

        Goes on if the caller is cancelled: a drain that has begun is not taken back.
        """
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(grace_s))
            self._changed()
        await asyncio.shield(self._draining)

    def refusal(self) -> PenstockError | None:
        """Intake: why a new call is not taken."""
        if self._draining is None:
            return None
        return Draining(f"worker {self._worker_id} is draining and takes no new calls; send this one to another")

    def began(self, hold_id: str = "") -> None:
        """Intake: a call was taken; the place that is kept for it stays while its payload comes."""
        self._open_calls += 1
        self._idle.clear()
        if hold_id and self._holds is not None:
            self._holds.expect(hold_id)

    def ended(self, hold_id: str = "") -> None:
        """Intake: a call that had been taken is over, and its place is not kept for it any more."""
        self._open_calls -= 1
        if hold_id and self._holds is not None:
            self._holds.forgo(hold_id)
        if not self._open_calls:
            self._idle.set()

    async def _drain(self, grace_s: float) -> None:
        _log.info("draining", open_calls=self._open_calls, grace_s=grace_s)
        if self._holds is not None and (why := self.refusal()) is not None:
            self._holds.close(why)
        for stream in self._streams:
            stream.announce()
        if not await _within(self._idle, grace_s):
            _log.warning("calls outlasted the grace and are cut off", open_calls=self._open_calls)
            for stream in self._streams:
                stream.cut_off()
            await _within(self._idle, _UNWIND_S)
        self._over = True
        for stream in self._streams:
            stream.finish()
        await _within(self._gone, _UNWIND_S)
        self._stop.set()

    async def _execute(self, _: Any, context: Context) -> None:
        self._authorise(context, (Role.GATEWAY, Role.OPERATOR))
        if self._over:
            raise Draining(f"worker {self._worker_id} has drained and is about to end; use another")

        async def read() -> bytes | None:
            message = await context.read()
            return None if message is grpc.aio.EOF else message

        stream = ExecuteStream(
            self._inference, self, self._limits, context.write, self._load_header(), self._rule(), self._load_now
        )
        self._streams.add(stream)
        self._gone.clear()
        try:
            await stream.run(read)
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._gone.set()

    def _load_now(self) -> bytes:
        return load_prefix(self._inference.load, draining=self.draining)

    def _load_header(self) -> Callable[[], bytes]:
        last: tuple[int, int, bool] | None = None

        def header() -> bytes:
            nonlocal last
            load, draining = self._inference.load, self.draining
            now = (load.in_flight, load.queued_rows, draining)
            if now == last:
                return b""
            last = now
            return load_prefix(load, draining=draining)

        return header

    async def _status(self, _: worker_pb2.StatusRequest, context: Context) -> worker_pb2.StatusResponse:
        self._authorise(context, (Role.GATEWAY, Role.SCHEDULER, Role.OPERATOR))
        load = load_message(self._inference.load, draining=self.draining)
        return worker_pb2.StatusResponse(worker_id=self._worker_id, load=load, models=self._copies())

    async def _drain_rpc(self, request: worker_pb2.DrainRequest, context: Context) -> worker_pb2.DrainResponse:
        self._authorise(context, (Role.SCHEDULER, Role.OPERATOR))
        await self.drain(request.grace_ms / 1000)
        return worker_pb2.DrainResponse()


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
