"""Whether this gateway answers requests: what ServerReady says, whichever door asks.

Decides by what is wanted and what is there. Never changes either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from placement.copies.assign import Placement
from placement.types import Copy, Worker
from runtime.errors import Code, PenstockError


class ServerExiting(PenstockError, code=Code.UNAVAILABLE, reason="SERVER_EXITING"):
    """This gateway finishes what it has and takes no more. The sentence is Triton's."""


class Fleet(Protocol):
    """What is there and what is wanted: gateway.fleet.Fleet."""

    @property
    def synced(self) -> bool: ...

    def expected(self) -> Iterator[Placement]: ...

    def ready(self, model: str, version: str = "") -> tuple[tuple[Worker, Copy], ...]: ...


class Readiness:
    """Belongs to one event loop. `strict`: every model that should be loaded has to be, as Triton has it."""

    def __init__(self, fleet: Fleet, *, strict: bool) -> None:
        self._fleet, self._strict = fleet, strict
        self._exiting = False

    def leave(self) -> None:
        """From now on it is not ready. What has come, and what still comes, is answered."""
        self._exiting = True

    def ready(self) -> bool:
        """Raises ServerExiting."""
        if self._exiting:
            raise ServerExiting("Server exiting")
        if not self._fleet.synced:
            return False
        return not self._strict or all(self._fleet.ready(wish.model, wish.version) for wish in self._fleet.expected())
