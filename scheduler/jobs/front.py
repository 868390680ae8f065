"""Stands in a server for a servicer that may not be there yet, or not at all: a call is passed on, or told why it cannot be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from scheduler.jobs.callers import Context, caller


class Front:
    """`behind` is the servicer; it raises the error to answer with where there is none."""

    def __init__(self, behind: Callable[[], object]) -> None:
        self._behind = behind

    def __getattr__(self, name: str) -> Callable[[Any, Context], Awaitable[Any]]:
        if not name[:1].isupper():  # the name of every RPC begins so, and of nothing else that is asked for
            raise AttributeError(name)

        async def passed_on(request: Any, context: Context) -> Any:
            caller(context)
            return await getattr(self._behind(), name)(request, context)

        return passed_on
