"""A real mesh for end-to-end tests: `penstock up` in a folder of its own, on free ports, with everything a user gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
START_S = 90.0
STOP_S = 40.0


@dataclass(frozen=True, slots=True)
class RunningMesh:
    """How tests reach the mesh, and its processes by name."""

    data: Path
    process: subprocess.Popen[bytes]
    grpc_address: str
    http_url: str
    api_key: str

    def pid_of(self, name: str) -> int:
        """The process of one child: the one whose command line names its ready file, or its binary."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            words = process.cmdline()
            if any(word.endswith(f"/run/{name}.json") for word in words) or Path(words[0]).name == name:
                return process.pid
        raise LookupError(f"no child {name}")

    def penstock(self, *words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a `penstock` command against this mesh, as a user would."""
        return penstock(*words, data=self.data, timeout_s=timeout_s)


def environment(data: Path | None = None) -> dict[str, str]:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "gen")))
    chosen = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "160", "NO_COLOR": "1"}
    chosen.pop("PENSTOCK_API_KEY", None)
    return {**chosen, "PENSTOCK_DATA": str(data)} if data is not None else chosen


def penstock(*words: str, data: Path | None = None, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT, env=environment(data), check=False
    )


@contextmanager
def running_mesh(data: Path, *options: str, settings: Mapping[str, str] | None = None) -> Iterator[RunningMesh]:
    """Start `penstock up`, wait until it says it is ready, stop it as Ctrl-C would; nothing of it is left.

    `settings`: of its services, in their environment.
    """
    command = [sys.executable, "-m", "cli", "up", "--data", str(data), "--grpc-port", "0", "--http-port", "0", *options]
    output = data.with_name(f"{data.name}.out")
    with output.open("wb") as stream:
        told = {**environment(), **(settings or {})}
        process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=ROOT, env=told)
    try:
        _await_ready(process, data, output)
        client = json.loads((data / "client.json").read_text())
        yield RunningMesh(data, process, client["grpc_address"], client["http_url"], client["api_key"])
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGINT, then wait; a mesh that does not end is killed and reported."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def _await_ready(process: subprocess.Popen[bytes], data: Path, output: Path) -> None:
    end_s = time.monotonic() + START_S
    while not (data / "ready").exists():
        if process.poll() is not None or time.monotonic() > end_s:
            logs = "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in (data / "logs").glob("*.log"))
            raise AssertionError(f"the mesh did not start:\n{output.read_text(errors='replace')}\n{logs}")
        time.sleep(0.05)
