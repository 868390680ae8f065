"""A real etcd for a test: on loopback, in a folder of its own, to be stopped, killed, emptied and compacted at will."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_PATIENCE_S = 20.0


def program(name: str) -> str:
    """etcd or etcdctl: from PATH, else from the Python environment that runs the tests."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name) or (str(beside) if beside.exists() else None)
    if found is None:
        raise FileNotFoundError(f"{name} is neither on PATH nor beside {sys.executable}; install requirements/dev.txt")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EtcdServer:
    """One etcd member. It keeps its ports and its data over restarts, unless it is emptied."""

    def __init__(
        self,
        folder: Path,
        *,
        extra: Sequence[str] = (),
        scheme: str = "http",
        name: str = "one",
        host: str = "127.0.0.1",
        words: Sequence[str] = (),
    ) -> None:
        """`host`: its address; `words`: what is said before its command, as where it runs in a namespace of its own."""
        self.name, self._folder, self._scheme, self._extra = name, folder, scheme, tuple(extra)
        self._host, self._words = host, tuple(words)
        self.port, self.peer_port, self._metrics_port = free_port(), free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self._host}:{self.port}"

    @property
    def peer(self) -> str:
        """How its cluster calls it, for `--initial-cluster`."""
        return f"{self.name}=http://{self._host}:{self.peer_port}"

    def start(self, *, cluster: Sequence[EtcdServer] = (), wait: bool = True) -> None:
        client, peer = f"{self._scheme}://{self.endpoint}", f"http://{self._host}:{self.peer_port}"
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._words,
                    program("etcd"),
                    *("--name", self.name, "--data-dir", str(self._folder / self.name)),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--listen-metrics-urls", f"http://{self._host}:{self._metrics_port}"),
                    *("--initial-cluster", ",".join(member.peer for member in cluster or (self,))),
                    # Tests kill processes, not machines: what the kernel has is safe without fsync.
                    *("--unsafe-no-fsync", "--heartbeat-interval", "10", "--election-timeout", "100"),
                    *self._extra,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_until_healthy()

    def wait_until_healthy(self) -> None:
        give_up_at_s = time.monotonic() + START_PATIENCE_S
        while time.monotonic() < give_up_at_s:
            if self._process is None or self._process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                if json.loads(self._page("/health")).get("health") == "true":
                    return
            time.sleep(0.02)
        raise AssertionError(f"etcd did not start:\n{(self._folder / f'{self.name}.log').read_text()[-3000:]}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def freeze(self) -> None:
        """Nothing moves, nothing is closed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def empty(self) -> None:
        """Lose all data. Only while it is stopped."""
        assert self._process is None, "stop it first"
        shutil.rmtree(self._folder / self.name)

    async def astart(self) -> None:
        await asyncio.to_thread(self.start)

    async def astop(self) -> None:
        await asyncio.to_thread(self.stop)

    async def akill(self) -> None:
        await asyncio.to_thread(self.kill)

    async def compact(self) -> int:
        """Forget all history up to now; returns the revision."""
        status = json.loads(await asyncio.to_thread(self.control, "endpoint", "status", "-w", "json"))
        revision = int(status[0]["Status"]["header"]["revision"])
        await asyncio.to_thread(self.control, "compact", str(revision), "--physical")
        return revision

    def control(self, *arguments: str) -> str:
        """Run etcdctl against it."""
        command = [program("etcdctl"), "--endpoints", f"{self._scheme}://{self.endpoint}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout

    async def metric(self, name: str) -> float:
        page = await asyncio.to_thread(self._page, "/metrics")
        return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} "))

    def _page(self, path: str) -> str:
        connection = http.client.HTTPConnection(self._host, self._metrics_port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()


@contextmanager
def running_etcd(*, extra: Sequence[str] = (), scheme: str = "http") -> Iterator[EtcdServer]:
    """A started etcd in a folder that goes away with it."""
    with tempfile.TemporaryDirectory(prefix="penstock-etcd-") as folder:
        server = EtcdServer(Path(folder), extra=extra, scheme=scheme)
        try:
            server.start()
            yield server
        finally:
            server.stop()
