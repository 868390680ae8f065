"""One request and its answer, from the door to the log: what is known of it while it lasts, and who is told how it ended.

Every door begins an exchange for each request, has it admitted once it is known what is asked, and ends it once. Owns that each
is ended once, whatever happened. Never looks at a payload, never decides who may call.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from gateway.admission import KeyFacts, RateLimited
from gateway.callers import Caller
from gateway.metrics import GatewayMetrics
from runtime.errors import Cancelled, PenstockError

OK = "OK"
MOST_SAID_BYTES = 64 * 1024
"""Of a request or an answer; of longer ones the log knows the size alone."""

Headers = tuple[tuple[str, str], ...]


class Ticket(Protocol):
    """What a request was let in with: gateway.limits.ticket.Ticket."""

    def used(self, prompt_tokens: int, completion_tokens: int) -> None:
        """What it came to, once that is known. Counted in full, also beyond what is left."""
        ...

    def close(self) -> None:
        """The request has ended. Doing it again does nothing."""
        ...

    def headers(self) -> Headers:
        """What its caller is told of the limits it falls under, as it is now."""
        ...


class Limiter(Protocol):
    """Lets requests in as far as limits allow: gateway.limits.limiter.Limiter."""

    async def admit(self, key: KeyFacts, model: str, tokens: int, deadline_s: float | None = None) -> Ticket | None:
        """`model` may be empty: the call asks nothing of one. `tokens`: what it is thought to come to; 0: nobody knows.

        `deadline_s`: when the request ends, on the event loop's clock. None: nothing limits it. Raises RateLimited.
        """
        ...


class Log(Protocol):
    """Keeps what is to be known of requests later: gateway.request_log.log.RequestLog."""

    @property
    def keeps_words(self) -> bool:
        """Whether it wants to know what was said, too."""
        ...

    def note(self, exchange: Exchange, elapsed_s: float) -> None:
        """Never waits and never raises."""
        ...


@dataclass(slots=True)
class Said:
    """A request and its answer in words, where the log keeps them: doors whose requests are JSON say what they have."""

    asked: bytes = b""
    answered: bytes = b""


@dataclass(slots=True)
class Exchange:
    """What is known of one request. Times by `perf_counter`."""

    method: str
    """The RPC's name."""
    request_bytes: int = 0
    started_s: float = field(default_factory=perf_counter)
    caller: Caller | None = None
    """None until it was let in."""
    asked: str = ""
    """The model as its caller named it."""
    model: str = ""
    """Who answers, or was asked last."""
    version: str = ""
    worker_id: str = ""
    code: str = OK
    reason: str = ""
    """Of the error it ended with."""
    streamed: bool = False
    attempts: int = 0
    """Workers asked, hedges included."""
    hedged: bool = False
    migrations: int = 0
    """How often a generation went on at another worker."""
    fell_back: str = ""
    """The model that could not answer, where another one did."""
    cache: str = ""
    """hit, miss, or empty: it was not looked for."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    answer_bytes: int = 0
    first_answer_s: float | None = None
    waited_s: float | None = None
    """Of its time, what went by while a place or a worker's answer was waited for; None: nobody measured it."""
    ticket: Ticket | None = None
    refused: Headers = ()
    """What is told of the limits it did not fit into."""
    said: Said | None = None
    """None: nobody wants to know."""
    ended: bool = False

    def granted(self, worker_id: str, model: str, version: str) -> None:
        """This worker is asked; what leaves from now on is its answer."""
        self.worker_id, self.model, self.version = worker_id, model, version
        self.attempts += 1

    def answering(self, size_bytes: int) -> None:
        """So much of an answer came."""
        if self.first_answer_s is None:
            self.first_answer_s = perf_counter()
        self.answer_bytes += size_bytes

    def used(self, prompt_tokens: int, completion_tokens: int) -> None:
        """What the engine said it took. Added up: one request may be several generations."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def says(self, *, asked: bytes | memoryview = b"", answered: bytes | memoryview = b"") -> None:
        """The words of it, JSON, of a caller who was let in; for a log that keeps them."""
        if self.said is not None:
            if 0 < len(asked) <= MOST_SAID_BYTES:
                self.said.asked = bytes(asked)
            if 0 < len(answered) <= MOST_SAID_BYTES:
                self.said.answered = bytes(answered)

    def headers(self) -> Headers:
        """What its caller is told in the answer's headers besides the request's id and version."""
        limits = self.refused if self.ticket is None else self.ticket.headers()
        return limits if not self.cache else (*limits, ("x-penstock-cache", self.cache))


class Exchanges:
    """Begins and ends them. Belongs to one event loop."""

    def __init__(self, metrics: GatewayMetrics, limiter: Limiter | None = None, log: Log | None = None) -> None:
        self._metrics, self._limiter, self._log = metrics, limiter, log
        self._keeps_words = log is not None and log.keeps_words

    def begin(self, method: str, request_bytes: int = 0) -> Exchange:
        return Exchange(method, request_bytes, said=Said() if self._keeps_words else None)

    async def admit(self, exchange: Exchange, model: str = "", tokens: int = 0) -> None:
        """Let it ask this model, as far as limits allow. Raises RateLimited."""
        exchange.asked = exchange.model = model
        caller = exchange.caller
        if self._limiter is not None and caller is not None and caller.key.limits:
            try:
                exchange.ticket = await self._limiter.admit(caller.key, model, tokens, caller.deadline_s)
            except RateLimited as refused:
                exchange.refused = refused.headers
                raise

    async def charge(self, caller: Caller) -> None:
        """One request of a call that asks nothing of a model and is not followed to its end. Raises RateLimited."""
        if self._limiter is not None and caller.key.limits:
            await self._limiter.admit(caller.key, "", 0, caller.deadline_s)

    def answered(self, exchange: Exchange) -> None:
        """It went well."""
        elapsed_s = perf_counter() - exchange.started_s
        self._metrics.answered(exchange.method, exchange.model, elapsed_s)
        self._end(exchange, elapsed_s)

    def failed(self, exchange: Exchange, raised: BaseException) -> None:
        """It did not, or its caller went away."""
        if isinstance(raised, PenstockError):
            exchange.code, exchange.reason = raised.code.name, raised.reason
        else:
            cancelled = isinstance(raised, asyncio.CancelledError)
            exchange.code = exchange.reason = Cancelled.code.name if cancelled else "INTERNAL"
        self._metrics.failed(exchange.method, exchange.model, exchange.code)
        self._end(exchange, perf_counter() - exchange.started_s)

    def _end(self, exchange: Exchange, elapsed_s: float) -> None:
        if exchange.ended:
            return
        exchange.ended = True
        if exchange.ticket is not None:
            exchange.ticket.used(exchange.prompt_tokens, exchange.completion_tokens)
            exchange.ticket.close()
        if self._log is not None:
            self._log.note(exchange, elapsed_s)
