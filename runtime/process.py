"""How a service process runs: uvloop, signals that end it in order, one clear line when it cannot start.

Also tells whoever started it where it answers. Never knows what is served.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import uvloop

from runtime.errors import PenstockError


def run_service(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run until the main coroutine returns; SIGTERM and SIGINT set its event. Returns the exit status."""
    status = 0
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_with_signals(main))
    except* PenstockError as errors:
        sys.stderr.write("".join(f"penstock: {line}\n" for line in _messages(errors)))
        status = 1
    return status


def started(start: Callable[[], int]) -> int:
    """The exit status of a service; where its settings are wrong, one clear line and 2."""
    try:
        return start()
    except PenstockError as error:
        sys.stderr.write(f"penstock: {error.message}\n")
        return 2


def announce(ready_file: Path | None, **ports: int | None) -> None:
    """Tell whoever started this process that it answers, and on which ports: a JSON object, written whole or not at all."""
    announce_whole(ready_file, {name: port for name, port in ports.items() if port is not None})


def announce_whole(ready_file: Path | None, told: Mapping[str, object]) -> None:
    """The same, in the words of the caller."""
    if ready_file is None:
        return
    draft = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
    draft.write_text(json.dumps(told))
    draft.replace(ready_file)


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
