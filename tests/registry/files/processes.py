"""Registry processes that tests start and kill."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from penstock.registry.v1 import files_pb2_grpc

from runtime.channel import inner_channel
from runtime.identity import NodeIdentity, Role

PATIENCE_S = 30.0


@dataclass(slots=True)
class Running:
    process: asyncio.subprocess.Process
    address: str
    stub: files_pb2_grpc.FileServiceStub
    halt_file: Path

    async def kill(self) -> None:
        """As a power cut would."""
        self.process.kill()
        await self.process.wait()

    async def halted(self) -> None:
        await until(self.halt_file.with_suffix(".reached").exists)


@asynccontextmanager
async def file_process(
    folder: Path, identities: dict[Role, NodeIdentity], *more: str, halt_at: str = "", database: str = ""
) -> AsyncIterator[Running]:
    """On the database and the objects in this folder."""
    ready, halt_file = folder / "ready.json", folder / "halt"
    for file in (ready, halt_file.with_suffix(".reached")):
        file.unlink(missing_ok=True)
    halt_file.touch()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.registry.files.serve"),
        *("--database", database or str(folder / "registry.db"), "--objects", str(folder / "objects")),
        *("--identity", str(identities[Role.REGISTRY].folder), "--ready-file", str(ready)),
        *(("--halt-at", halt_at, "--halt-file", str(halt_file)) if halt_at else ()),
        *more,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        await until(lambda: ready.exists() or process.returncode is not None)
        assert process.returncode is None, "the process did not start"
        address = f"127.0.0.1:{json.loads(ready.read_text())['port']}"
        async with inner_channel(address, identities[Role.OPERATOR], Role.REGISTRY) as channel:
            yield Running(process, address, files_pb2_grpc.FileServiceStub(channel), halt_file)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(holds: Callable[[], bool]) -> None:
    """Ask again until it does: for what becomes true in another process."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.01)
