"""The registry as a process of its own, as an operator starts it: to be reached, killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 30.0


@dataclass(frozen=True, slots=True)
class Ground:
    """What replicas share."""

    database: str
    objects: str
    etcd: str
    master_keys: Path
    trusted_signers: Path
    environment: Mapping[str, str]
    authority_dir: Path | None = None


@dataclass(slots=True)
class RegistryProcess:
    name: str
    port: int
    process: asyncio.subprocess.Process
    log: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def kill(self) -> None:
        """Without a word: kill -9."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """In order; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


@asynccontextmanager
async def registry_process(
    folder: Path, name: str, identity_dir: Path, ground: Ground, *more: str, port: int = 0
) -> AsyncIterator[RegistryProcess]:
    """Answering when this is entered; ended, however it was, when it is left."""
    ready, log = folder / f"{name}.json", folder / f"{name}.log"
    ready.unlink(missing_ok=True)
    words = [
        *("--identity-dir", str(identity_dir), "--port", str(port), "--ready-file", str(ready)),
        *("--database", ground.database, "--objects", ground.objects, "--etcd-endpoints", ground.etcd),
        *("--master-keys", str(ground.master_keys), "--trusted-signers", str(ground.trusted_signers)),
        *(("--authority-dir", str(ground.authority_dir)) if ground.authority_dir else ()),
        *more,
    ]
    environment = {**os.environ, **ground.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("ab") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "registry", *words, env=environment, stdout=sink, stderr=sink
        )
    try:
        async with asyncio.timeout(START_S):
            while not ready.exists():
                if process.returncode is not None:
                    raise AssertionError(f"the registry ended with {process.returncode}: {log.read_text()[-3000:]}")
                await asyncio.sleep(0.02)
        yield RegistryProcess(name, int(json.loads(ready.read_text())["port"]), process, log)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(15):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
