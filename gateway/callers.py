"""A call as it comes in: who makes it, under which id, how much time it has. Nothing of its payload is looked at before.

Decides whether a call is let in at all. What it may ask for is `KeyFacts.authorise`, once the model is known, and how much is
`gateway.limits`.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import grpc.aio

from gateway.admission import EVERYBODY, KeyFacts, KeyRefused, TooManyGuesses, secret_of
from gateway.guesses import Guesses
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
        guesser_of: Callable[[Context, Mapping[str, str | bytes]], str] | None = None,
    ) -> None:
        """`current_traceparent` tells the span of the call being served; without it the caller's own is passed on.

        `address_of` tells from where a call with these headers comes; without it nobody asks. `guesser_of` tells the same of
        calls whose key was refused, or is not known while others were: without it, whoever guesses keys is not slowed down.
        """
        self._keys, self._metrics = keys, metrics
        self._current_traceparent, self._address_of = current_traceparent, address_of
        self._guesser_of, self._guesses = guesser_of, Guesses()
        self._loop = asyncio.get_running_loop()
        self._prefix, self._count = secrets.token_hex(6), itertools.count(1)

    async def enter(self, context: Context) -> Caller:
        """Who calls. Raises Unauthenticated kinds, TooManyGuesses, KeysUnavailable."""
        headers = cast("dict[str, str | bytes]", dict(context.invocation_metadata() or ()))
        request_id = headers.get(REQUEST_ID)
        named_it = isinstance(request_id, str) and 0 < len(request_id) <= _MAX_ID_CHARACTERS and request_id.isprintable()
        if not named_it:
            request_id = f"{self._prefix}-{next(self._count):x}"
        request_id_var.set(cast("str", request_id))
        key = EVERYBODY if self._keys is None else await self.identify(headers, context)
        left_s = context.time_remaining()
        deadline_s = None if left_s is None else self._loop.time() + left_s
        address = "" if self._address_of is None else self._address_of(context, headers)
        return Caller(key, cast("str", request_id), named_it, deadline_s, self._traceparent(headers), headers, address)

    async def identify(self, headers: Mapping[str, str | bytes], context: Context | None = None) -> KeyFacts:
        """The key of a call, as it is now. `context`: of a call that was not let in before. Raises like `enter`."""
        if self._keys is None:
            return EVERYBODY
        try:
            secret = secret_of(headers)
            if self._guesses and context is not None and not self._keys.knows(secret):
                self._slow_down(context, headers)
            return (await self._keys.find(secret)).facts
        except PenstockError as error:
            self._metrics.refused(error.reason)
            if isinstance(error, KeyRefused) and context is not None and self._guesser_of is not None:
                self._guesses.refused(self._guesser_of(context, headers), self._loop.time())
            raise

    async def stands(self, key_id: KeyId) -> bool | None:
        """Whether a key that did something earlier is still good; None: nobody can tell here. As `Keys.stands`."""
        return True if self._keys is None else await self._keys.stands(key_id)

    def _slow_down(self, context: Context, headers: Mapping[str, str | bytes]) -> None:
        """Raises TooManyGuesses."""
        if self._guesser_of is None:
            return
        wait_s = self._guesses.wait_s(self._guesser_of(context, headers), self._loop.time())
        if wait_s > 0:
            raise TooManyGuesses(
                "too many API keys from this address were refused; wait before trying another", retry_after_s=wait_s
            )

    def _traceparent(self, headers: Mapping[str, str | bytes]) -> str:
        if self._current_traceparent is not None:
            return self._current_traceparent()
        value = headers.get("traceparent", "")
        return value if isinstance(value, str) and len(value) <= _MAX_TRACEPARENT_CHARACTERS else ""


async def name_request(context: Context, caller: Caller) -> None:
    """Tell the caller the id that its request goes by, in the initial metadata."""
    await context.send_initial_metadata(((REQUEST_ID, caller.request_id),))
