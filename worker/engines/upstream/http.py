"""HTTP to one upstream: connections, time limits, retries. With `connections.py` the only file that knows aiohttp.

Owns a copy's connections and its calls under way. Reads no further than it is asked to, so a slow reader slows the upstream.
Sends a call again only before the first byte of an answer, and only where it never arrived or was put off (429, 503). Redirects
are not followed: a key goes to the host that it was given for. Never looks into a body, but for an error's.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import structlog

from runtime.backoff import Backoff
from runtime.errors import DeadlineExceeded, PenstockError, UpstreamUnavailable
from worker.engines.upstream.api import DONE, Call
from worker.engines.upstream.config import UpstreamConfig
from worker.engines.upstream.connections import Connections
from worker.engines.upstream.errors import (
    UpstreamClosed,
    UpstreamGarbled,
    UpstreamSilent,
    error_object,
    error_of,
    retry_after_s,
)
from worker.engines.upstream.sse import EventReader

MAX_BODY_BYTES = 128 * 1024 * 1024
"""Of an answer in one: 2,048 embeddings of 4,096 numbers in decimals take some 100 MB."""

FREE_STREAMS = 8
"""So many answers of one copy are read as their bytes come."""

DISTANCE_S = 0.005
"""Between two reads of one answer where there are more: each costs what ten events do, all the way to the caller."""

_MAX_ERROR_BYTES = 64 * 1024
_DRAIN_S = 0.05
"""How long the end of an answer is waited for, so that its connection can be used again."""

_HURRY_S = 2.0
"""How long an upstream may take to say how many tokens an answer had that has ended."""

_BACKOFF = Backoff(first_s=0.2, max_s=5.0)
_REPEATABLE = (429, 503)
_log = structlog.get_logger("penstock.upstream")
_REFUSED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""The upstream never saw the call."""

_BROKEN = (aiohttp.ClientError, RuntimeError)
"""What aiohttp says of a transport that failed; of one that is gone it says so as a RuntimeError."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Failed:
    """A call without an answer."""

    error: PenstockError
    repeatable: bool


class _Limits:
    """How long a call's steps may take, and what to say when one took longer."""

    def __init__(self, config: UpstreamConfig, now_s: float, deadline_s: float | None) -> None:
        self._total_s = config.patience.total_s
        self._deadline_s = deadline_s
        self.until_s = now_s + self._total_s if deadline_s is None else min(deadline_s, now_s + self._total_s)

    def overdue(self, due_s: float, waited: str) -> PenstockError:
        if due_s < self.until_s:
            return UpstreamSilent(f"the upstream was silent for longer than {waited}; retry, or have an operator allow more")
        if self.until_s == self._deadline_s:
            return DeadlineExceeded("the deadline passed while the upstream was waited for")
        return UpstreamSilent(f"the upstream's answer took longer than total_s = {self._total_s:g}; ask for less at once")


class UpstreamClient:
    """One copy's connections. Made anywhere, used on one loop."""

    def __init__(self, config: UpstreamConfig, headers: Mapping[str, str], secret: str = "") -> None:
        self._config = config
        self._secret = secret
        self._connections = Connections(config, headers)
        self._rng = random.SystemRandom()
        self._waits: set[asyncio.Timeout] = set()
        self._closed = False
        self.streams = 0
        """Answers that are read."""

    @asynccontextmanager
    async def streaming(self, call: Call, deadline_s: float | None) -> AsyncIterator[EventStream]:
        """The call's events, once its answer has begun. Leaving closes the answer, and its connection if it was not whole."""
        loop = asyncio.get_running_loop()
        limits = _Limits(self._config, loop.time(), deadline_s)
        first_s = self._config.patience.first_token_s
        due_s = loop.time() + first_s
        response = await self._answer(call, limits, due_s, f"first_token_s = {first_s:g}")
        self.streams += 1
        try:
            _check_type(response, "text/event-stream")
            yield EventStream(self, self._config, response, limits, due_s)
        finally:
            self.streams -= 1
            response.close()

    async def whole(self, call: Call, deadline_s: float | None, patience_s: float | None = None) -> bytes:
        """The body of the call's answer. `patience_s`: how long it may take; without it as long as a first token."""
        loop = asyncio.get_running_loop()
        limits = _Limits(self._config, loop.time(), deadline_s)
        seconds = self._config.patience.first_token_s if patience_s is None else patience_s
        due_s, waited = loop.time() + seconds, f"first_token_s = {seconds:g}"
        response = await self._answer(call, limits, due_s, waited)
        try:
            _check_type(response, "application/json")
            return await self.within(_body(response, MAX_BODY_BYTES), limits, due_s, waited)
        finally:
            response.close()

    async def aclose(self) -> None:
        """Calls under way end with UpstreamClosed."""
        self._closed = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0.0)
        await self._connections.aclose()

    async def within(self, step: Awaitable[T], limits: _Limits, due_s: float, waited: str) -> T:
        """The step's result in time. Raises what the limits say, UpstreamClosed, and the transport's failures as ours."""
        wait = asyncio.timeout_at(0.0 if self._closed else min(due_s, limits.until_s))
        try:
            async with wait:
                self._waits.add(wait)
                try:
                    return await step
                finally:
                    self._waits.discard(wait)
        except _BROKEN as error:  # some of them are TimeoutErrors too
            if self._closed:
                raise _closed() from error
            raise _broken(error) from error
        except TimeoutError as error:
            if self._closed:
                raise _closed() from error
            raise limits.overdue(due_s, waited) from error

    async def _answer(self, call: Call, limits: _Limits, due_s: float, waited: str) -> aiohttp.ClientResponse:
        """An answer with status 200, its body unread."""
        for attempt in itertools.count(1):
            tried = await self.within(self._try(call), limits, due_s, waited)
            if isinstance(tried, aiohttp.ClientResponse):
                return tried
            hinted_s = tried.error.retry_after_s
            wait_s = _BACKOFF.delay_s(attempt, self._rng) if hinted_s is None else hinted_s
            now_s = asyncio.get_running_loop().time()
            if not tried.repeatable or attempt > self._config.max_retries or now_s + wait_s >= min(due_s, limits.until_s):
                raise tried.error
            _log.info("upstream_retried", error=tried.error.reason, attempt=attempt, wait_s=round(wait_s, 2))
            await self.within(asyncio.sleep(wait_s), limits, due_s, waited)
        raise AssertionError("unreachable")

    async def _try(self, call: Call) -> aiohttp.ClientResponse | _Failed:
        if self._closed:
            raise _closed()
        try:
            response = await self._connections.send(call)
        except _REFUSED as error:
            return _Failed(_broken(error), repeatable=True)
        if response.status == 200:
            return response
        raw = b""
        try:
            with suppress(aiohttp.ClientError, UpstreamGarbled):  # the status says enough
                raw = await _body(response, _MAX_ERROR_BYTES)
        finally:
            response.close()
        return self._refusal(response, raw)

    def _refusal(self, response: aiohttp.ClientResponse, raw: bytes) -> _Failed:
        hinted_s = retry_after_s(response.headers, time.time())
        error = error_of(response.status, error_object(raw), hinted_s, self._secret)
        return _Failed(error, repeatable=response.status in _REPEATABLE)


class EventStream:
    """The events of one answer, read as they are asked for: those that came together come together."""

    def __init__(
        self, client: UpstreamClient, config: UpstreamConfig, response: aiohttp.ClientResponse, limits: _Limits, due_s: float
    ) -> None:
        self._client = client
        self._limits = limits
        self._content = response.content
        self._reader = EventReader()
        self._due_s, self._waited = due_s, f"first_token_s = {config.patience.first_token_s:g}"
        self._between_s = config.patience.between_tokens_s
        self._now_s = asyncio.get_running_loop().time
        self._begun = self._done = self._gathers = False
        self._read_s = 0.0

    def gather(self) -> None:
        """The first was given on: from now on reads keep a distance, where many answers are read."""
        self._gathers = True

    def hurry(self) -> None:
        """The model has ended: wait for the rest for a moment only."""
        self._between_s = min(self._between_s, _HURRY_S)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> list[bytes]:
        if self._done:
            await self._drain()
            raise StopAsyncIteration
        if self._begun:  # time that the reader took does not count
            self._due_s = self._now_s() + self._between_s
            self._waited = f"between_tokens_s = {self._between_s:g}"
        if self._gathers and self._client.streams > FREE_STREAMS:
            await self._distance()
        events = await self._read()
        self._read_s = self._now_s()
        self._begun, self._done = True, DONE in events
        return events

    async def _distance(self) -> None:
        wait_s = self._read_s + DISTANCE_S - self._now_s()
        if wait_s > 0 and not self._content.is_eof():
            await asyncio.sleep(wait_s)

    async def _read(self) -> list[bytes]:
        """Until an event is whole. Comments, which some upstreams send to keep a connection, do not extend the wait."""
        content = self._content
        while True:
            chunk = await self._client.within(content.readany(), self._limits, self._due_s, self._waited)
            if not chunk:
                raise StopAsyncIteration
            if events := self._reader.feed(chunk):
                return events

    async def _drain(self) -> None:
        content = self._content
        if content.at_eof():  # it came with the last event
            return
        with suppress(TimeoutError, *_BROKEN):
            async with asyncio.timeout(_DRAIN_S):
                while await content.readany():
                    pass


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size_bytes = 0
    while part := await response.content.readany():
        size_bytes += len(part)
        if size_bytes > max_bytes:
            raise UpstreamGarbled(f"the upstream answered with more than {max_bytes} bytes; ask for less at once")
        parts.append(part)
    return b"".join(parts)


def _check_type(response: aiohttp.ClientResponse, expected: str) -> None:
    encoding = response.headers.get("content-encoding", "identity")
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != expected or encoding != "identity":
        raise UpstreamGarbled(
            f"the upstream answered with {kind[:80]!r}, encoded {encoding[:40]!r}; {expected} as it is was asked for:"
            " an operator has to look at base_url in upstream.toml"
        )


def _broken(error: Exception) -> UpstreamUnavailable:
    """Only the kind of failure is told: the transport's own words may name addresses."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamUnavailable("the upstream took no connection within connect_s; retry")
    if isinstance(error, aiohttp.ClientConnectorError):
        return UpstreamUnavailable("the upstream takes no connections, or shows no certificate that is trusted here; retry")
    return UpstreamUnavailable("the upstream broke off its answer; retry")


def _closed() -> UpstreamClosed:
    return UpstreamClosed("the model was unloaded while the upstream answered; retry")
