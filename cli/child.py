"""One child process of `penstock up`: started, watched, restarted with back-off, stopped within a bound.

Owns the process and its log file. Never decides what is run nor in which order; says what happens through a callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cli.supervision import RestartState, restart_delay_s

GUARD = Path(__file__).with_name("guard.py")
_POLL_S = 0.02
_LOG_BYTES = 8 * 1024 * 1024


class ChildState(enum.Enum):
    """What a person sees of a child."""

    STARTING = "starting"
    READY = "ready"
    CRASHED = "crashed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run, and how to tell that it answers: by a file it writes, or by a port that takes connections."""

    name: str
    command: tuple[str, ...]
    ready_file: Path | None = None
    ready_port: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    grace_s: float = 15.0
    stop_signal: signal.Signals = signal.SIGTERM


OnChange = Callable[["Child", str], None]
"""Told of each change of state, with a sentence."""


class Child:
    """Runs one ChildSpec until told to stop."""

    def __init__(self, spec: ChildSpec, log_dir: Path, on_change: OnChange) -> None:
        self.spec = spec
        self.state = ChildState.STARTING
        self.ready = asyncio.Event()
        self.ports: dict[str, int] = {}
        self.log_file = log_dir / f"{spec.name}.log"
        self._on_change = on_change
        self._process: Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Keep it running. Returns after `stop`."""
        restart = RestartState()
        while not self._stopping:
            restart = RestartState(restart.failures, time.monotonic())
            status = await self._run_once()
            if self._stopping:
                break
            restart, delay_s = restart_delay_s(restart, time.monotonic())
            ended = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            self._change(ChildState.CRASHED, f"ended {ended}; starting it again in {delay_s:.1f} s{self._last_words()}")
            await asyncio.sleep(delay_s)
        self._change(ChildState.STOPPED, "stopped")

    async def stop(self) -> None:
        """Ask it to end, wait for its grace, then end it."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(self.spec.stop_signal)
        try:
            async with asyncio.timeout(self.spec.grace_s):
                await process.wait()
        except TimeoutError:
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """End it at once."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _run_once(self) -> int:
        self.ready.clear()
        if self.spec.ready_file is not None:
            self.spec.ready_file.unlink(missing_ok=True)
        self._change(ChildState.STARTING, "starting")
        guarded = (sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *self.spec.command)
        environment = {**self.spec.environment, **os.environ}  # what the operator set wins
        self.trim_log()
        with _opened_log(self.log_file) as log:
            self._process = await asyncio.create_subprocess_exec(
                *guarded, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        process = self._process
        watching = asyncio.create_task(self._watch_ready(), name=f"ready-{self.spec.name}")
        try:
            return await process.wait()
        finally:
            self.ready.clear()
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    def trim_log(self) -> None:
        """Keep the log within its bound: what is over goes to `.log.1`. Children append, so truncating loses no place."""
        with contextlib.suppress(FileNotFoundError):
            if self.log_file.stat().st_size > _LOG_BYTES:
                shutil.copyfile(self.log_file, self.log_file.with_suffix(".log.1"))
                os.truncate(self.log_file, 0)

    async def _watch_ready(self) -> None:
        while not await self._answers():
            await asyncio.sleep(_POLL_S)
        self.ready.set()
        self._change(ChildState.READY, "ready")

    async def _answers(self) -> bool:
        if self.spec.ready_file is not None:
            if not self.spec.ready_file.exists():
                return False
            self.ports = json.loads(self.spec.ready_file.read_text())
        if self.spec.ready_port is not None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.spec.ready_port)
            except OSError:
                return False
            writer.close()
        return True

    def _change(self, state: ChildState, sentence: str) -> None:
        self.state = state
        self._on_change(self, sentence)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = [line for line in self.log_file.read_text(errors="replace")[-4000:].splitlines() if line.strip()]
            for line in reversed(lines):
                if line.startswith("penstock: "):
                    return f" ({line.removeprefix('penstock: ')})"
        return f" (see {self.log_file})"


@contextlib.contextmanager
def _opened_log(file: Path) -> Iterator[int]:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
