"""A worker that an operator starts by hand, beside those of `penstock up`."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.mesh import ROOT, RunningMesh, environment

_START_S = 30.0
_STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class JoinedWorker:
    process: Process
    port: int
    log: Path

    @property
    def has_ended(self) -> bool:
        return self.process.returncode is not None


def words_of(mesh: RunningMesh, identity: Path, ready: Path) -> list[str]:
    """Those of the mesh's first worker, with what is this one's own."""
    own = {"identity-dir": identity, "ready-file": ready, "cache-dir": identity.with_name(f"{identity.name}-cache")}
    told = psutil.Process(mesh.pid_of("worker-1")).cmdline()
    kept = [word for word in told[told.index("worker") + 1 :] if word.partition("=")[0].removeprefix("--") not in own]
    return [*kept, *(f"--{name}={value}" for name, value in own.items())]


@asynccontextmanager
async def joined_worker(mesh: RunningMesh, identity: Path) -> AsyncIterator[JoinedWorker]:
    """Answering on its port when this is entered; ended, however it was, when it is left."""
    ready, log = identity.with_name(f"{identity.name}.json"), identity.with_name(f"{identity.name}.log")
    ready.unlink(missing_ok=True)
    words = [sys.executable, "-m", "worker", *words_of(mesh, identity, ready)]
    with log.open("ab") as sink:
        process = await asyncio.create_subprocess_exec(*words, stdout=sink, stderr=sink, cwd=ROOT, env=environment())
    try:
        async with asyncio.timeout(_START_S):
            while not ready.exists():
                assert process.returncode is None, f"the worker ended: {log.read_text()[-3000:]}"
                await asyncio.sleep(0.02)
        yield JoinedWorker(process, int(json.loads(ready.read_text())["port"]), log)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
