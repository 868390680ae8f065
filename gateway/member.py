"""One of several processes of a gateway, as `gateway.processes` starts it: settings come as a line on standard input, where it
answers goes as a line to standard output, and the end of the input is the end of the supervisor, and so its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from io import FileIO

from gateway.__main__ import serve
from gateway.config import GatewaySettings
from gateway.processes import Place
from runtime.process import run_service, started


async def serve_until_alone(settings: GatewaySettings, number: int, stop: asyncio.Event) -> None:
    """Serve until a signal, or until nobody holds the other end of standard input."""
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(_watch(stop), name="supervisor")
        try:
            await serve(settings, stop, Place(_tell, number, is_shared=True))
        finally:
            watching.cancel()


async def _watch(stop: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), _standard_input()
    )
    try:
        await reader.read()
        stop.set()
    finally:
        transport.close()


def _standard_input() -> FileIO:
    """Unbuffered: what was not asked for stays in it."""
    return FileIO(0, closefd=False)


def _tell(**ports: int | None) -> None:
    said = {name: port for name, port in ports.items() if port is not None}
    sys.stdout.write(f"{json.dumps(said)}\n")
    sys.stdout.flush()


def main() -> int:
    settings = GatewaySettings.model_validate_json(_standard_input().readline())
    return started(lambda: run_service(partial(serve_until_alone, settings, int(sys.argv[1]))))


if __name__ == "__main__":
    sys.exit(main())
