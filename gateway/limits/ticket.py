"""What a request was let in with: permits that it gives back, tokens that are set right when they are known.

Owns one request's part of holdings. Never waits, never refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.limits.dues import Due
from gateway.limits.holding import Holding
from gateway.limits.telling import Headers, headers_of
from placement.limits.types import Moment


class Room(Protocol):
    """Where holdings are kept: gateway.limits.limiter.Limiter."""

    def settled(self, holding: Holding) -> None: ...

    def moment(self) -> Moment: ...


class Ticket:
    """Of one request. A `gateway.exchange.Ticket`."""

    __slots__ = ("_charged", "_closed", "_due", "_room")

    def __init__(self, room: Room, due: Due, charged: Sequence[int]) -> None:
        """`charged`: what each of the holdings of tokens was charged before anybody knew."""
        self._room, self._due, self._charged, self._closed = room, due, charged, False

    def used(self, prompt_tokens: int, completion_tokens: int) -> None:
        """What it came to. What was used beyond what is left is a debt, paid back before others get in."""
        if not self._charged:
            return
        charged, self._charged = self._charged, ()
        for holding, tokens in zip(self._due.tokens, charged, strict=True):
            holding.tokens_used(tokens, prompt_tokens + completion_tokens)
            self._room.settled(holding)

    def close(self) -> None:
        """The request has ended. What was charged for tokens that nobody told of is given back."""
        if self._closed:
            return
        self._closed = True
        self.used(0, 0)
        for holding in self._due.permits:
            holding.held += 1
            holding.used -= 1
            self._room.settled(holding)

    def headers(self) -> Headers:
        return headers_of(self._due.all, self._room.moment())
