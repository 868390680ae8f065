"""A gateway's link to one worker: its streams kept open, calls spread over them.

Owns the connection and its reconnecting. Never retries a call and never chooses a worker: the router does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
import structlog

from gateway.links.calls import StreamingCall
from gateway.links.stream import LinkStream, RawCall
from gateway.links.types import CallContext, LinkLoad, LinkLost, LinkSettings, Method, Others
from runtime.channel import inner_channel
from runtime.errors import Internal
from runtime.gathering import FlightPeak, GatherRule
from runtime.identity import NodeIdentity, Role
from runtime.ids import NodeId, WorkerId

_log = structlog.get_logger("penstock.links")
_METHOD = "/penstock.worker.v1.WorkerService/Execute"

_CONNECTING_TRIPS = 3
"""Round trips until a worker's first message where there is no connection yet: TCP's, TLS 1.3's (RFC 8446, section 2), the
stream's own."""

GATHER_BOUND_S = 0.003
GATHER_FREE_IN_FLIGHT = 2


def gather_rule() -> GatherRule:
    """How requests gather on a stream to a worker. The constants: docs/decisions/0005-gather-rule.md."""
    return FlightPeak(GATHER_BOUND_S, GATHER_FREE_IN_FLIGHT)


class WorkerLink:
    """Calls to one worker. Open from `start` (or entering) to `close` (or leaving); it reconnects by itself in between."""

    def __init__(
        self,
        address: str,
        identity: NodeIdentity,
        worker_id: WorkerId,
        *,
        settings: LinkSettings | None = None,
        open_channel: Callable[[], grpc.aio.Channel] | None = None,
        rule: Callable[[], GatherRule] = gather_rule,
        others: Others | None = None,
    ) -> None:
        """`open_channel` replaces the mTLS channel to `address` that only this very worker can answer.

        `others`: who takes calls over that a silent worker owes; without, they wait for it.
        """
        self.address = address
        self.worker_id = worker_id
        self._settings = settings or LinkSettings()
        self._open_channel = open_channel or (lambda: inner_channel(address, identity, Role.WORKER, node_id=NodeId(worker_id)))
        self._rule, self._others = rule, others
        self._streams: list[LinkStream] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._channel: grpc.aio.Channel | None = None
        self._connected = asyncio.Event()
        self._load = LinkLoad()
        self.last_failure = ""
        self.rtt_ms = 0.0
        """Round trip to the worker, as the last stream's beginning took it; 0: not measured yet."""

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to connect; `ready` tells when a worker has accepted."""
        self._channel = self._open_channel()
        self._keepers = [asyncio.create_task(self._keep(self._channel)) for _ in range(self._settings.streams)]

    async def close(self) -> None:
        """Fail what is open with LinkLost and disconnect."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers.clear()
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def wait_connected(self, timeout_s: float) -> bool:
        """Whether a stream is open, or comes to be within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError:
            return False
        return True

    @property
    def ready(self) -> bool:
        """A stream is open and the worker is not draining."""
        return bool(self._streams) and not self._load.draining

    @property
    def is_silent(self) -> bool:
        """The worker owes answers and has said nothing for a while."""
        return any(stream.is_silent for stream in self._streams)

    @property
    def in_flight(self) -> int:
        """Calls of this gateway that are open to the worker."""
        return sum(stream.in_flight for stream in self._streams)

    @property
    def load(self) -> LinkLoad:
        """What the worker last said, of all its callers."""
        return self._load

    async def call(self, model: str, version: str, payload: bytes, context: CallContext) -> bytes:
        """inference.ModelInferRequest → inference.ModelInferResponse.

        Cancelling the caller cancels the call at the worker. Raises LinkLost, LinkFull, DeadlineExceeded, and what the
        worker answered.
        """
        stream = self._pick()
        unary = stream.open_unary(model, version, payload, context)
        try:
            return await unary.answer
        except asyncio.CancelledError:
            stream.abandon(unary)
            raise

    def stream(self, method: Method, model: str, version: str, payload: bytes, context: CallContext) -> Answers:
        """STREAM_INFER or GENERATE; raises like `call`, also while it is read."""
        stream = self._pick()
        return Answers(stream, stream.open_streaming(method, model, version, payload, context))

    def _pick(self) -> LinkStream:
        streams = self._streams
        if not streams:
            raise LinkLost(f"worker {self.worker_id} at {self.address} is not connected: {self.last_failure or 'connecting'}")
        return streams[0] if len(streams) == 1 else min(streams, key=_in_flight)

    async def _keep(self, channel: grpc.aio.Channel) -> None:
        """Keep one stream open: connect, serve, wait a little longer after each failure in a row."""
        failures = 0
        execute: Callable[[], RawCall] = channel.stream_stream(_METHOD)
        while True:
            stream = LinkStream(self.worker_id, self._settings, self._rule(), self._take_load, self._others)
            accepted, began_s = False, asyncio.get_running_loop().time()
            trips = 1 if channel.get_state() is grpc.ChannelConnectivity.READY else _CONNECTING_TRIPS

            def on_accepted(opened: LinkStream = stream, began_s: float = began_s, trips: int = trips) -> None:
                nonlocal accepted
                accepted = True
                self.rtt_ms = (asyncio.get_running_loop().time() - began_s) * 1000 / trips
                self._streams.append(opened)
                self._connected.set()

            try:
                lost = await stream.run(execute(), on_accepted)
            except Exception:
                _log.exception("a link failed in a way nobody mapped", worker_id=self.worker_id, address=self.address)
                lost = Internal(f"the link to worker {self.worker_id} failed inside; the gateway's log says why")
            finally:
                if stream in self._streams:
                    self._streams.remove(stream)
                if not self._streams:
                    self._connected.clear()
                    self._load = LinkLoad()
            failures = 0 if accepted else failures + 1
            self.last_failure = lost.message
            _log.info("link lost", worker_id=self.worker_id, address=self.address, reason=lost.reason, failures=failures)
            await asyncio.sleep(backoff_s(failures, self._settings, random.random()))  # noqa: S311 (spreads reconnects)

    def _take_load(self, load: LinkLoad) -> None:
        self._load = load


class Answers(AsyncIterator[bytes]):
    """The answers of one streaming call. Leaving it early cancels the call: by `aclose`, or when nobody holds it any more."""

    __slots__ = ("_call", "_stream")

    def __init__(self, stream: LinkStream, call: StreamingCall) -> None:
        self._stream = stream
        self._call = call

    @property
    def started(self) -> bool:
        """An answer has arrived."""
        return self._call.started

    async def __anext__(self) -> bytes:
        try:
            answer = await self._call.next()
        except asyncio.CancelledError:
            self._stream.abandon(self._call)
            raise
        if answer is None:
            raise StopAsyncIteration
        return answer

    async def aclose(self) -> None:
        self._stream.abandon(self._call)

    def __del__(self) -> None:
        self._stream.abandon(self._call)


def backoff_s(failures: int, settings: LinkSettings, spread: float) -> float:
    """Doubling from the initial to the longest wait, of which a random half is left out. `spread` in [0, 1)."""
    longest_s = min(settings.backoff_max_s, settings.backoff_initial_s * 2.0 ** min(failures, 16))
    return longest_s * (0.5 + spread / 2)


def _in_flight(stream: LinkStream) -> int:
    return stream.in_flight
