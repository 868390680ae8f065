"""A call as it comes in: who makes it, under which id, how much time it has. Nothing of its payload is looked at before.

Decides whether a call is let in at all. What it may ask for is `KeyFacts.authorise`, once the model is known.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import grpc.aio

from gateway.admission import EVERYBODY, KeyFacts, secret_of
from gateway.keys import Keys
from gateway.links.types import CallContext
from gateway.metrics import GatewayMetrics
from runtime.errors import PenstockError
from runtime.ids import KeyId
from runtime.telemetry import request_id_var

Context = grpc.aio.ServicerContext[Any, Any]
REQUEST_ID = "x-request-id"
_MAX_ID_CHARACTERS = 128
_MAX_TRACEPARENT_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and what travels with the call."""

    key: KeyFacts
    request_id: str
    named_it: bool
    """The id is the caller's own."""
    deadline_s: float | None
    """On the event loop's clock."""
    traceparent: str
    headers: Mapping[str, str | bytes]
    address: str = ""
    """The IP address that the call comes from, where that matters here; empty: it does not, or nobody knows."""
    priority: int = 0
    """Of everything that is asked for this caller, where a request names none; 0 = the model's default."""

    def call(self, priority: int = 0) -> CallContext:
        return CallContext(self.request_id, self.key.tenant, priority or self.priority, self.deadline_s, self.traceparent)


class Callers:
    """Lets calls in. Without keys everybody is let in."""

    def __init__(
        self,
        keys: Keys | None,
        metrics: GatewayMetrics,
        current_traceparent: Callable[[], str] | None = None,
        address_of: Callable[[Context, Mapping[str, str | bytes]], str] | None = None,
    ) -> None:
        """`current_traceparent` tells the span of the call being served; without it the caller's own is passed on.

        `address_of` tells from where a call with these headers comes; without it nobody asks.
        """
        self._keys, self._metrics = keys, metrics
        self._current_traceparent, self._address_of = current_traceparent, address_of
        self._loop = asyncio.get_running_loop()
        self._prefix, self._count = secrets.token_hex(6), itertools.count(1)

    async def enter(self, context: Context) -> Caller:
        """Raises Unauthenticated kinds, RateLimited, KeysUnavailable. Costs the key one request."""
        headers = cast("dict[str, str | bytes]", dict(context.invocation_metadata() or ()))
        request_id = headers.get(REQUEST_ID)
        named_it = isinstance(request_id, str) and 0 < len(request_id) <= _MAX_ID_CHARACTERS and request_id.isprintable()
        if not named_it:
            request_id = f"{self._prefix}-{next(self._count):x}"
        request_id_var.set(cast("str", request_id))
        key = EVERYBODY if self._keys is None else await self.charge(headers)
        left_s = context.time_remaining()
        deadline_s = None if left_s is None else self._loop.time() + left_s
        address = "" if self._address_of is None else self._address_of(context, headers)
        return Caller(key, cast("str", request_id), named_it, deadline_s, self._traceparent(headers), headers, address)

    async def charge(self, headers: Mapping[str, str | bytes]) -> KeyFacts:
        """The key of a call, which pays for one request. Raises like `enter`."""
        if self._keys is None:
            return EVERYBODY
        try:
            known = await self._keys.find(secret_of(headers))
            known.take(self._loop.time())
        except PenstockError as error:
            self._metrics.refused(error.reason)
            raise
        return known.facts

    async def stands(self, key_id: KeyId) -> bool | None:
        """Whether a key that did something earlier is still good; None: nobody can tell here. As `Keys.stands`."""
        return True if self._keys is None else await self._keys.stands(key_id)

    def _traceparent(self, headers: Mapping[str, str | bytes]) -> str:
        if self._current_traceparent is not None:
            return self._current_traceparent()
        value = headers.get("traceparent", "")
        return value if isinstance(value, str) and len(value) <= _MAX_TRACEPARENT_CHARACTERS else ""


async def name_request(context: Context, caller: Caller) -> None:
    """Tell the caller the id that its request goes by, in the initial metadata."""
    await context.send_initial_metadata(((REQUEST_ID, caller.request_id),))
