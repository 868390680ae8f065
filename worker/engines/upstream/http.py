"""HTTP to one upstream: connections, time limits, retries. The only file that knows httpx.

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

import httpx
import structlog

from runtime.backoff import Backoff
from runtime.errors import DeadlineExceeded, PenstockError, UpstreamUnavailable
from worker.engines.upstream.api import DONE, Call
from worker.engines.upstream.config import UpstreamConfig
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

_MAX_ERROR_BYTES = 64 * 1024
_KEEPALIVE_S = 4.0
"""Below the 5 s after which common servers (uvicorn, and so vLLM) close an idle connection, perhaps under a request."""

_DRAIN_S = 0.05
"""How long the end of an answer is waited for, so that its connection can be used again."""

_HURRY_S = 2.0
"""How long an upstream may take to say how many tokens an answer had that has ended."""

_BACKOFF = Backoff(first_s=0.2, max_s=5.0)
_REPEATABLE = (429, 503)
_log = structlog.get_logger("penstock.upstream")
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
        self._http = httpx.AsyncClient(
            # Not compressed: bodies are bounded as they come.
            headers={"user-agent": "penstock", "accept-encoding": "identity", **dict(config.headers), **headers},
            timeout=httpx.Timeout(None, connect=config.patience.connect_s, pool=config.patience.connect_s),
            limits=httpx.Limits(
                max_connections=config.max_concurrency,
                max_keepalive_connections=config.max_concurrency,
                keepalive_expiry=_KEEPALIVE_S,
            ),
            follow_redirects=False,
        )
        self._rng = random.SystemRandom()
        self._waits: set[asyncio.Timeout] = set()
        self._closed = False

    @asynccontextmanager
    async def streaming(self, call: Call, deadline_s: float | None) -> AsyncIterator[EventStream]:
        """The call's events, once its answer has begun. Leaving closes the answer, and its connection if it was not whole."""
        loop = asyncio.get_running_loop()
        limits = _Limits(self._config, loop.time(), deadline_s)
        first_s = self._config.patience.first_token_s
        due_s = loop.time() + first_s
        response = await self._answer(call, limits, due_s, f"first_token_s = {first_s:g}")
        try:
            _check_type(response, "text/event-stream")
            yield EventStream(self, self._config, response, limits, due_s)
        finally:
            await response.aclose()

    async def whole(self, call: Call, deadline_s: float | None) -> bytes:
        """The body of the call's answer."""
        loop = asyncio.get_running_loop()
        limits = _Limits(self._config, loop.time(), deadline_s)
        seconds = self._config.patience.first_token_s
        due_s, waited = loop.time() + seconds, f"first_token_s = {seconds:g}"
        response = await self._answer(call, limits, due_s, waited)
        try:
            _check_type(response, "application/json")
            return await self.within(_body(response, MAX_BODY_BYTES), limits, due_s, waited)
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Calls under way end with UpstreamClosed."""
        self._closed = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0.0)
        await self._http.aclose()

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
        except TimeoutError as error:
            if self._closed:
                raise _closed() from error
            raise limits.overdue(due_s, waited) from error
        except (httpx.TransportError, httpx.StreamError) as error:
            if self._closed:
                raise _closed() from error
            raise _broken(error) from error

    async def _answer(self, call: Call, limits: _Limits, due_s: float, waited: str) -> httpx.Response:
        """An answer with status 200, its body unread."""
        for attempt in itertools.count(1):
            tried = await self.within(self._try(call), limits, due_s, waited)
            if isinstance(tried, httpx.Response):
                return tried
            hinted_s = tried.error.retry_after_s
            wait_s = _BACKOFF.delay_s(attempt, self._rng) if hinted_s is None else hinted_s
            now_s = asyncio.get_running_loop().time()
            if not tried.repeatable or attempt > self._config.max_retries or now_s + wait_s >= min(due_s, limits.until_s):
                raise tried.error
            _log.info("upstream_retried", error=tried.error.reason, attempt=attempt, wait_s=round(wait_s, 2))
            await self.within(asyncio.sleep(wait_s), limits, due_s, waited)
        raise AssertionError("unreachable")

    async def _try(self, call: Call) -> httpx.Response | _Failed:
        if self._closed:
            raise _closed()
        request = self._http.build_request(
            "POST" if call.body else "GET",
            f"{self._config.base_url}{call.path}",
            content=call.body or None,
            headers={"content-type": "application/json"} if call.body else None,
        )
        try:
            response = await self._http.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return _Failed(_broken(error), repeatable=True)
        if response.status_code == 200:
            return response
        try:
            with suppress(httpx.TransportError, UpstreamGarbled):  # the status says enough
                raw = await _body(response, _MAX_ERROR_BYTES)
                return self._refusal(response, raw)
            return self._refusal(response, b"")
        finally:
            await response.aclose()

    def _refusal(self, response: httpx.Response, raw: bytes) -> _Failed:
        status = response.status_code
        hinted_s = retry_after_s(response.headers, time.time())
        error = error_of(status, error_object(raw), hinted_s, self._secret)
        return _Failed(error, repeatable=status in _REPEATABLE)


class EventStream:
    """The events of one answer, read as they are asked for."""

    def __init__(
        self, client: UpstreamClient, config: UpstreamConfig, response: httpx.Response, limits: _Limits, due_s: float
    ) -> None:
        self._client = client
        self._limits = limits
        self._chunks = response.aiter_raw()
        self._reader = EventReader()
        self._events: list[bytes] = []  # of one chunk, the next one last
        self._due_s, self._waited = due_s, f"first_token_s = {config.patience.first_token_s:g}"
        self._between_s = config.patience.between_tokens_s
        self._begun = False

    def hurry(self) -> None:
        """The model has ended: wait for the rest for a moment only."""
        self._between_s = min(self._between_s, _HURRY_S)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> bytes:
        if not self._events:
            if self._begun:  # time that the reader took does not count
                self._due_s = asyncio.get_running_loop().time() + self._between_s
                self._waited = f"between_tokens_s = {self._between_s:g}"
            await self._fill()
            self._begun = True
        event = self._events.pop()
        if event == DONE:
            await self._drain()
        return event

    async def _fill(self) -> None:
        """Read until an event is whole. Comments, which some upstreams send to keep a connection, do not extend the wait."""
        while not self._events:
            chunk = await self._client.within(anext(self._chunks, None), self._limits, self._due_s, self._waited)
            if chunk is None:
                raise StopAsyncIteration
            self._events = self._reader.feed(chunk)[::-1]

    async def _drain(self) -> None:
        with suppress(TimeoutError, httpx.TransportError, httpx.StreamError):
            async with asyncio.timeout(_DRAIN_S):
                async for _ in self._chunks:
                    pass


async def _body(response: httpx.Response, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size_bytes = 0
    async for part in response.aiter_raw():
        size_bytes += len(part)
        if size_bytes > max_bytes:
            raise UpstreamGarbled(f"the upstream answered with more than {max_bytes} bytes; ask for less at once")
        parts.append(part)
    return b"".join(parts)


def _check_type(response: httpx.Response, expected: str) -> None:
    encoding = response.headers.get("content-encoding", "identity")
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != expected or encoding != "identity":
        raise UpstreamGarbled(
            f"the upstream answered with {kind[:80]!r}, encoded {encoding[:40]!r}; {expected} as it is was asked for:"
            " an operator has to look at base_url in upstream.toml"
        )


def _broken(error: Exception) -> UpstreamUnavailable:
    """Only the kind of failure is told: the transport's own words may name addresses."""
    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        return UpstreamUnavailable("the upstream took no connection within connect_s; retry")
    if isinstance(error, httpx.ConnectError):
        return UpstreamUnavailable("the upstream takes no connections, or shows no certificate that is trusted here; retry")
    return UpstreamUnavailable("the upstream broke off its answer; retry")


def _closed() -> UpstreamClosed:
    return UpstreamClosed("the model was unloaded while the upstream answered; retry")
