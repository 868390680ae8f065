"""How a service process runs: uvloop, signals that end it in order, one clear line when it cannot start."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

import uvloop

from runtime.errors import PenstockError


def run_service(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run until the main coroutine returns; SIGTERM and SIGINT set its event. Returns the exit status."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_with_signals(main))
    except* PenstockError as errors:
        sys.stderr.write("".join(f"penstock: {line}\n" for line in _messages(errors)))
        return 1
    return 0


async def _with_signals(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await main(stop)


def _messages(errors: BaseExceptionGroup[PenstockError]) -> list[str]:
    found: list[str] = []
    for error in errors.exceptions:
        found.extend(_messages(error) if isinstance(error, BaseExceptionGroup) else [error.message])
    return found
