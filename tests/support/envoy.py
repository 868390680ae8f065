"""The real Envoy, started the way the mesh starts it, and ended with the test."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.xds.bootstrap import Bootstrap, write_bootstrap
from gateway.xds.envoy import EnvoyProcess, envoy_command, find_envoy
from gateway.xds.types import Endpoint

LOOPBACK = "127.0.0.1"
_START_S = 10.0
_STOP_S = 10.0


@dataclass(slots=True)
class RunningEnvoy:
    """One process. Its log is a file, so that a failed test can show it."""

    process: asyncio.subprocess.Process
    log: Path

    async def until_listening(self, edge: Endpoint) -> None:
        """Return once it takes connections; fails with the log when it ended instead."""
        async with asyncio.timeout(_START_S):
            while not await _connects(edge):
                if self.process.returncode is not None:
                    raise AssertionError(f"envoy ended with {self.process.returncode}:\n{self.log.read_text()}")
                await asyncio.sleep(0.01)

    async def until_refusing(self, edge: Endpoint) -> None:
        """Return once nothing listens there."""
        async with asyncio.timeout(_START_S):
            while await _connects(edge):  # another process: there is no event to wait for
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running_envoy(bootstrap: Bootstrap, folder: Path, *, concurrency: int = 1) -> AsyncIterator[RunningEnvoy]:
    """Envoy on this bootstrap, refusing configuration it does not know, so that a wrong field number fails the test."""
    command = envoy_command(EnvoyProcess(find_envoy(), _prepared(bootstrap, folder), concurrency=concurrency, strict=True))
    log = folder / "envoy.log"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(*command, stdout=sink, stderr=sink)
    try:
        yield RunningEnvoy(process, log)
    finally:
        await _end(process)


def free_endpoint() -> Endpoint:
    """A loopback port that nobody had a moment ago. Only for a listener whose address has to be known beforehand."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return Endpoint(LOOPBACK, int(probe.getsockname()[1]))


def _prepared(bootstrap: Bootstrap, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_bootstrap(bootstrap, folder / "bootstrap.json")


async def _connects(endpoint: Endpoint) -> bool:
    try:
        _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), _STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()
