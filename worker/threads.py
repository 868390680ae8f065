"""Blocking file work off the event loop, in a way that nobody lets go of a file under a thread that still uses it.

A thread cannot be stopped. Work that may take long calls `check_wanted` between its blocks, and so ends soon after its caller
was cancelled: hashing gigabytes never delays a process that is told to end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from runtime.errors import Code, PenstockError

P = ParamSpec("P")
T = TypeVar("T")

_given_up: ContextVar[threading.Event | None] = ContextVar("given_up", default=None)


class WorkGivenUp(PenstockError, code=Code.CANCELLED, reason="WORK_GIVEN_UP"):
    """Nobody waits for this work any more."""


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run in a thread. A cancelled caller waits until the work has ended or has noticed at its next block."""
    given_up, context = threading.Event(), copy_context()
    context.run(_given_up.set, given_up)
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(loop.run_in_executor(None, context.run, partial(work, *args, **kwargs)))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait((running,))
        except asyncio.CancelledError as error:
            cancelled = error
            given_up.set()
    if cancelled is not None:
        running.exception()  # taken note of: the caller is going away and cannot be told
        raise cancelled
    return running.result()


def check_wanted(_: int = 0) -> None:
    """Called between blocks of long work. Raises WorkGivenUp once the caller of `in_thread` was cancelled."""
    given_up = _given_up.get()
    if given_up is not None and given_up.is_set():
        raise WorkGivenUp("the work was given up, because nobody waits for it any more")
