"""PostgreSQL and S3 that fail on a test's word: stopped, started again where they were, frozen in the middle of their work."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import asyncpg
import psutil

from tests.support.postgres import Postgres, as_nobody, free_port, running_postgres
from tests.support.s3 import S3Server

_PATIENCE_S = 20.0


class FailingPostgres:
    """One server, on the port and folder of the one that was started for it."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self._process: subprocess.Popen[bytes] = server.process

    async def stop(self) -> None:
        """As `pg_ctl stop -m fast` does: transactions are rolled back, connections closed."""
        self._process.send_signal(signal.SIGINT)
        await asyncio.to_thread(self._process.wait, _PATIENCE_S)

    async def start(self) -> None:
        """Answering when this returns."""
        with (self.server.folder / "log").open("ab") as log:
            self._process = await asyncio.to_thread(self._started, log)
        async with asyncio.timeout(_PATIENCE_S):
            while not await self._answers():
                assert self._process.poll() is None, (self.server.folder / "log").read_text(errors="replace")[-2000:]
                await asyncio.sleep(0.02)

    def freeze(self) -> None:
        """Nothing moves, nothing is closed: as behind a hung disk, or a network that swallows packets."""
        for process in self._tree():
            process.suspend()

    def thaw(self) -> None:
        for process in self._tree():
            process.resume()

    def end(self) -> None:
        """However it stands."""
        with suppress(psutil.NoSuchProcess):
            self.thaw()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(_PATIENCE_S)

    async def fetched(self, database: str, statement: str) -> Any:
        """The first value that a statement gives."""
        connection = await asyncpg.connect(self.server.url(database))
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    def _started(self, log: Any) -> subprocess.Popen[bytes]:
        settings = ["fsync=off", "max_connections=200", f"unix_socket_directories={self.server.folder}"]
        words = [word for setting in (*settings, "listen_addresses=127.0.0.1") for word in ("-c", setting)]
        program, data = str(self.server.binaries / "postgres"), str(self.server.folder / "data")
        command = as_nobody([program, "-D", data, "-p", str(self.server.port), *words])
        return subprocess.Popen(command, stdout=log, stderr=log, cwd="/")

    async def _answers(self) -> bool:
        try:
            return bool(await self.fetched("postgres", "SELECT 1"))
        except (OSError, asyncpg.PostgresError):
            return False

    def _tree(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]


@contextmanager
def failing_postgres() -> Iterator[FailingPostgres]:
    """One of its own: other tests' would be gone with it."""
    with running_postgres() as server:
        failing = FailingPostgres(server)
        try:
            yield failing
        finally:
            failing.end()


class FailingS3:
    """A server that keeps objects in memory: one that was killed comes back empty, on the same port."""

    def __init__(self) -> None:
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def server(self) -> S3Server:
        return S3Server(f"http://127.0.0.1:{self._port}")

    async def start(self) -> None:
        self._process = self._started()
        async with asyncio.timeout(_PATIENCE_S):
            while not await asyncio.to_thread(self._answers):
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait, _PATIENCE_S)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def new_bucket(self, name: str) -> str:
        return await asyncio.to_thread(self.server.new_bucket, name)

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.server.endpoint}/", timeout=1).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


@asynccontextmanager
async def failing_s3() -> AsyncIterator[FailingS3]:
    s3 = FailingS3()
    await s3.start()
    try:
        yield s3
    finally:
        await s3.kill()
