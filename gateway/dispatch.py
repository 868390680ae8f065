"""The way from a request to its answer: an answer given before, the model asked for, those that stand in for it.

What all doors call. Composes response cache, fallbacks and hedging over the router. Never parses a payload. Where no rule of
the routing policy names fallbacks or hedges, a request is the router's at once. Requests of a sequence always are: the worker
with its state is the one that can answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from gateway.cache.response_cache import ResponseCache
from gateway.exchange import Exchange
from gateway.fallbacks import Detour, Fallbacks
from gateway.hedging import Hedges
from gateway.links.types import CallContext, Method
from gateway.routes import Routes
from gateway.routing import Router
from placement.rules import Route
from placement.types import Request
from runtime.errors import PenstockError


@dataclass(frozen=True, slots=True)
class Detours:
    """What may be done besides asking one worker of the model that is named, as far as rules say so."""

    routes: Routes
    fallbacks: Fallbacks
    hedges: Hedges

    def route_of(self, request: Request, call: CallContext) -> Route:
        return self.routes.at_home(call.tenant, request.model, request.region)


class Dispatch:
    """Belongs to one event loop."""

    def __init__(self, router: Router, detours: Detours | None = None, cache: ResponseCache | None = None) -> None:
        """Without detours, requests go straight to the router, whatever rules say; without a cache, all are asked."""
        self._router, self._detours, self._cache = router, detours, cache

    def infer(self, request: Request, payload: bytes, call: CallContext, exchange: Exchange) -> Coroutine[Any, Any, bytes]:
        """inference.ModelInferRequest → ModelInferResponse. Raises what the worker answered, or why none was asked."""
        if self._cache is not None and self._cache.covers(request.model):
            return self._cache.infer(self._ask, request, payload, call, exchange)
        return self._ask(request, payload, call, exchange)

    async def _ask(self, request: Request, payload: bytes, call: CallContext, exchange: Exchange) -> bytes:
        detours = self._detours
        if detours is None or not detours.routes.has_detours or request.session_key:
            return await self._router.infer(request, payload, call, exchange)
        route = detours.route_of(request, call)
        if not route.fallbacks:
            return await self._infer(detours, route, request, payload, call, exchange)
        detour = Detour(detours.fallbacks, Method.INFER, request, route, call, exchange)
        asked = detour.first()
        while True:
            try:
                return await self._infer(detours, detours.route_of(asked, call), asked, payload, call, exchange)
            except PenstockError as error:
                asked = detour.after(asked, error)

    def stream(
        self, method: Method, request: Request, payload: bytes, call: CallContext, exchange: Exchange
    ) -> AsyncGenerator[bytes, None]:
        """The answers, one by one; close it when leaving early. Raises like `infer`."""
        if self._cache is not None and self._cache.covers(request.model):
            return self._cache.stream(self._ask_stream, method, request, payload, call, exchange)
        return self._ask_stream(method, request, payload, call, exchange)

    def _ask_stream(
        self, method: Method, request: Request, payload: bytes, call: CallContext, exchange: Exchange
    ) -> AsyncGenerator[bytes, None]:
        detours = self._detours
        if detours is not None and detours.routes.has_detours and not request.sticky:
            route = detours.route_of(request, call)
            if route.fallbacks:
                detour = Detour(detours.fallbacks, method, request, route, call, exchange)
                return self._stream(detour, method, payload, call, exchange)
        return self._router.stream(method, request, payload, call, exchange)

    async def warm(self, request: Request, call: CallContext) -> None:
        """Return once a copy is ready. Sends nothing. Raises like `infer` where none becomes ready."""
        await self._router.warm(request, call)

    async def _infer(
        self, detours: Detours, route: Route, request: Request, payload: bytes, call: CallContext, exchange: Exchange
    ) -> bytes:
        """One model's answer."""
        if route.hedge_quantile:
            return await detours.hedges.infer(request, payload, call, exchange, route)
        return await self._router.infer(request, payload, call, exchange)

    async def _stream(
        self, detour: Detour, method: Method, payload: bytes, call: CallContext, exchange: Exchange
    ) -> AsyncGenerator[bytes, None]:
        """The answers of whoever gives a first one."""
        asked, has_begun = detour.first(), False
        while True:
            try:
                async with aclosing(self._router.stream(method, asked, payload, call, exchange)) as answers:
                    async for answer in answers:
                        has_begun = True
                        yield answer
                return
            except PenstockError as error:
                if has_begun:
                    raise
                asked = detour.after(asked, error)
