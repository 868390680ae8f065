"""Gives an answer again where a model says that the same request gets the same answer; else has it asked for, and keeps it.

Decides which requests are looked for, and which answers are kept: whole ones that ended well, of the very version that the
request was for. Equal requests at the same time wait for one answer; not where the answer is streamed to its caller, whose
first token would wait for another's last. Never nearly equal requests, never across tenants, nothing of a version that was
withdrawn. Owns shelf and flights. Never decides who may ask: whoever comes here was let in and has paid.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from time import perf_counter_ns
from types import TracebackType

from gateway.cache.canonical import MAX_INPUT_BYTES, canonical
from gateway.cache.codec import Part, is_repeatable, part_of, with_id, without_id
from gateway.cache.flights import Flight, Flights
from gateway.cache.shelf import Shelf
from gateway.cache.types import Answer, CacheCounts, CacheSettings, Key, answer_of
from gateway.exchange import Exchange
from gateway.fleet import Fleet
from gateway.links.types import CallContext, Method
from gateway.metrics import GatewayMetrics
from placement.types import Request
from runtime.ids import Digest, ModelName, ModelVersion

HIT, MISS = "hit", "miss"
_INFER, _GENERATE = Method.INFER.value, Method.GENERATE.value
MAX_COUNTED = 1_000
"""Model versions that are counted apart."""

_PATIENCE = 2
"""Answers in vain that a request waits for before it is sent to a worker itself: no queue of failures behind one another."""

Ask = Callable[[Request, bytes, CallContext, Exchange], Awaitable[bytes]]
"""The way to a worker, as `gateway.routing.Router.infer`."""
AskText = Callable[[Method, Request, bytes, CallContext, Exchange], AsyncGenerator[bytes, None]]
"""As `gateway.routing.Router.stream`."""


class ResponseCache:
    """Belongs to one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        metrics: GatewayMetrics,
        settings: CacheSettings,
        now_s: Callable[[], float] | None = None,
    ) -> None:
        self._fleet, self._metrics, self._settings = fleet, metrics, settings
        self._now_s = now_s or asyncio.get_running_loop().time
        self._shelf, self._flights = Shelf(settings), Flights(settings.waiting)
        self._counts: dict[tuple[ModelName, ModelVersion], CacheCounts] = {}
        metrics.follow_cache(lambda: len(self._shelf), lambda: self._shelf.size_bytes, lambda: self._shelf.evicted)

    @property
    def counts(self) -> Mapping[tuple[ModelName, ModelVersion], CacheCounts]:
        """What was found here since this process began, of each version that was looked for."""
        return self._counts

    def covers(self, model: ModelName) -> bool:
        """Whether answers of a model may be here. All that a request to any other one costs."""
        return model in self._fleet.view.repeatable

    async def infer(self, ask: Ask, request: Request, payload: bytes, call: CallContext, exchange: Exchange) -> bytes:
        """inference.ModelInferRequest → ModelInferResponse, given before or by `ask`. Raises as that, and DeadlineExceeded."""
        began_ns = perf_counter_ns()
        known = self._known_version(request)
        form = canonical(payload) if known is not None and not request.sticky else None
        if known is None or form is None:
            return await ask(request, payload, call, exchange)
        version, digest = known
        key = Key(call.tenant, digest, _INFER, form.sha256)
        search = _Search(self, key, request.model, version, exchange, began_ns)
        if (found := await search.found(call.deadline_s, waits=True)) is not None:
            return with_id(found.messages[0], form.request_id)
        with search:
            given = await ask(request, payload, call, exchange)
            if (kept := without_id(given)) is not None:
                search.keep(answer_of([kept]))
            return given

    def stream(
        self, ask: AskText, method: Method, request: Request, payload: bytes, call: CallContext, exchange: Exchange
    ) -> AsyncGenerator[bytes, None]:
        """The answers, given before or by `ask`; close it when leaving early. Raises like `infer`."""
        fits = method is Method.GENERATE and len(payload) <= MAX_INPUT_BYTES
        known = self._known_version(request) if fits else None
        if known is None or not is_repeatable(payload):
            return ask(method, request, payload, call, exchange)
        return self._generated(ask, known, request, payload, call, exchange)

    async def _generated(
        self,
        ask: AskText,
        known: tuple[ModelVersion, Digest],
        request: Request,
        payload: bytes,
        call: CallContext,
        exchange: Exchange,
    ) -> AsyncGenerator[bytes, None]:
        began_ns, (version, digest) = perf_counter_ns(), known
        key = Key(call.tenant, digest, _GENERATE, hashlib.sha256(payload).digest())
        search = _Search(self, key, request.model, version, exchange, began_ns)
        if (found := await search.found(call.deadline_s, waits=not exchange.streamed)) is not None:
            for message in found.messages:
                yield message
            return
        with search:
            whole = _Whole(self._settings.answer_bytes)
            async with aclosing(ask(Method.GENERATE, request, payload, call, exchange)) as answers:
                async for answer in answers:
                    if whole.add(answer):
                        search.keep(answer_of(whole.messages))  # before the last leaves: its reader may not come back
                    yield answer

    def _known_version(self, request: Request) -> tuple[ModelVersion, Digest] | None:
        """What would answer this request now, if its answers may be given again."""
        view = self._fleet.view
        digests = view.repeatable.get(request.model)
        if digests is None:
            return None
        version: ModelVersion | None = request.version
        if not version:
            version = view.models[request.model].newest_ready.get(request.region or self._fleet.home)
        digest = digests.get(version) if version else None
        return None if version is None or digest is None else (version, digest)

    async def find(self, key: Key, deadline_s: float | None, *, waits: bool) -> Answer | Flight | None:
        """An answer; the lead, which the caller has to end; or None: it is nobody's lead. Raises DeadlineExceeded."""
        in_vain = 0
        while True:
            if (found := self._shelf.get(key, self._now_s())) is not None or not waits:
                return found
            flight = self._flights.under_way(key)
            if flight is None:
                return self._flights.begin(key)
            if in_vain >= _PATIENCE or not self._flights.has_room:
                return None
            await self._flights.follow(flight, deadline_s)
            if flight.answer is not None:
                return flight.answer
            in_vain += not flight.was_abandoned

    def keep(self, key: Key, answer: Answer) -> None:
        self._shelf.put(key, answer, self._now_s())

    def end(self, key: Key, flight: Flight, answer: Answer | None, *, abandoned: bool = False) -> None:
        self._flights.end(key, flight, answer, abandoned=abandoned)

    def still_is(self, model: ModelName, version: ModelVersion, digest: Digest) -> bool:
        """Whether a version is what it was, and its answers may be given."""
        return self._fleet.view.repeatable.get(model, {}).get(version) == digest

    def count(self, model: ModelName, version: ModelVersion, took_ns: int, *, hit: bool) -> None:
        counts = self._counts.get((model, version))
        if counts is None:
            if len(self._counts) >= MAX_COUNTED:
                del self._counts[next(iter(self._counts))]
            counts = self._counts[model, version] = CacheCounts()
        if hit:
            counts.hits += 1
            counts.hit_ns += took_ns
        else:
            counts.misses += 1
            counts.miss_ns += took_ns
        self._metrics.cached(model, hit=hit)


class _Search:
    """One request that is looked for; as a context, the time in which a worker is asked for what was not found."""

    __slots__ = ("_cache", "_exchange", "_key", "_lead", "_model", "_spent_ns", "_version")

    def __init__(
        self, cache: ResponseCache, key: Key, model: ModelName, version: ModelVersion, exchange: Exchange, began_ns: int
    ) -> None:
        self._cache, self._key, self._exchange = cache, key, exchange
        self._model, self._version = model, version
        self._lead: Flight | None = None
        self._spent_ns = -began_ns

    async def found(self, deadline_s: float | None, *, waits: bool) -> Answer | None:
        """What is given again; None: ask a worker, in this context. Raises DeadlineExceeded."""
        found = await self._cache.find(self._key, deadline_s, waits=waits)
        self._spent_ns += perf_counter_ns()
        exchange = self._exchange
        if isinstance(found, Answer):
            exchange.cache = exchange.cache or HIT  # of several generations, all have to be given again
            exchange.model, exchange.version = self._model, self._version
            self._cache.count(self._model, self._version, self._spent_ns, hit=True)
            return found
        exchange.cache, self._lead = MISS, found
        return None

    def keep(self, answer: Answer) -> None:
        """It came whole. Kept where it is the answer of what was looked for: not a fallback's, nor another version's."""
        began_ns, exchange, lead = perf_counter_ns(), self._exchange, self._lead
        fits = (exchange.model, exchange.version) == (self._model, self._version)
        if fits and self._cache.still_is(self._model, self._version, self._key.digest):
            self._cache.keep(self._key, answer)
            if lead is not None:
                self._cache.end(self._key, lead, answer)
        self._spent_ns += perf_counter_ns() - began_ns

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, _: TracebackType | None) -> None:
        if self._lead is not None:
            self._cache.end(self._key, self._lead, None, abandoned=raised is not None and not isinstance(raised, Exception))
        self._cache.count(self._model, self._version, self._spent_ns, hit=False)


class _Whole:
    """A generation's messages, as long as they may become an answer to keep."""

    __slots__ = ("_left_bytes", "messages")

    def __init__(self, most_bytes: int) -> None:
        self._left_bytes = most_bytes
        self.messages: list[bytes] = []

    def add(self, message: bytes) -> bool:
        """Whether the answer is whole with it, and fit to be kept."""
        if self._left_bytes < 0:
            return False
        self._left_bytes -= len(message)
        part = Part.UNFIT if self._left_bytes < 0 else part_of(message)
        if part is Part.UNFIT:
            self._left_bytes = -1
            self.messages.clear()
            return False
        self.messages.append(message)
        return part is Part.WHOLE
