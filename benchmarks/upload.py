"""A large file into the registry: how fast, in how much of the registry's memory, and what a kill in the middle costs.

The registry is a process as operators start it, with a local folder, SQLite and no etcd; the sender is this process, over mTLS
on loopback. The file is random bytes, made for the run and deleted after it. Peak memory is the kernel's own figure
for the registry process (VmHWM); idle is what it has before the first call.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio
import psutil
import uvloop
from penstock.registry.v1 import files_pb2_grpc
from rich.console import Console
from rich.table import Table

from cli.upload import upload_file
from registry.master_keys import new_master_keys, write_master_keys
from runtime.channel import inner_channel
from runtime.identity import Authority, NodeIdentity, Role

ROOT = Path(__file__).resolve().parent.parent
BAR_MIB = 200
_BLOCK_BYTES = 8 * 1024 * 1024
_MIB = 1024 * 1024
_NO_ETCD = "127.0.0.1:1"


@dataclass(frozen=True, slots=True)
class Sample:
    what: str
    parts_at_once: int
    size_bytes: int
    sent_s: float
    """Until the last byte had arrived."""
    verified_s: float
    """From there until the registry had read all of it back."""
    idle_rss_mib: float
    peak_rss_mib: float
    cpu_s_per_gb: float
    """Of the registry process."""
    resent_bytes: int = 0

    @property
    def mb_per_s(self) -> float:
        return self.size_bytes / 1e6 / (self.sent_s + self.verified_s)


@dataclass(slots=True)
class Registry:
    """A running one."""

    process: subprocess.Popen[bytes]
    stub: files_pb2_grpc.FileServiceStub

    @property
    def rss_mib(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / _MIB)

    @property
    def peak_rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

    @property
    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(30)


@asynccontextmanager
async def registry(folder: Path, operator: NodeIdentity) -> AsyncIterator[Registry]:
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    (folder / "trusted").write_text("# nobody\n")
    command = [
        *(sys.executable, "-m", "registry", "--identity-dir", str(folder / "identities" / "registry")),
        *("--database", str(folder / "registry.db"), "--objects", str(folder / "objects")),
        *("--master-keys", str(folder / "master.keys"), "--trusted-signers", str(folder / "trusted")),
        *("--etcd-endpoints", _NO_ETCD, "--ready-file", str(ready), "--log-level", "error"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen")))}
    process = subprocess.Popen(command, env=environment, cwd=ROOT)  # noqa: ASYNC220 - nothing else runs yet
    try:
        end_s = time.monotonic() + 60
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > end_s:
                raise SystemExit("the registry did not start")
            await asyncio.sleep(0.05)
        address = f"127.0.0.1:{json.loads(ready.read_text())['port']}"
        async with inner_channel(address, operator, Role.REGISTRY) as channel:
            yield Registry(process, files_pb2_grpc.FileServiceStub(channel))
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass(slots=True)
class Watch:
    """When the last byte had arrived, and who is to be told once so many have."""

    size_bytes: int
    call_at_bytes: int = 2**63
    started_s: float = field(default_factory=time.perf_counter)
    sent_s: float = 0.0
    first_bytes: int | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, done_bytes: int, _: int) -> None:
        if self.first_bytes is None:
            self.first_bytes = done_bytes
        if done_bytes >= self.call_at_bytes:
            self.reached.set()
        if done_bytes == self.size_bytes and not self.sent_s:
            self.sent_s = time.perf_counter() - self.started_s


@dataclass(frozen=True, slots=True)
class Large:
    """The file that is sent."""

    file: Path
    sha256: str
    size_bytes: int


async def whole(folder: Path, operator: NodeIdentity, sent: Large, parts_at_once: int, what: str = "whole") -> Sample:
    """Until it is a verified file."""
    async with registry(folder, operator) as running:
        watch, before_s, idle_mib = Watch(sent.size_bytes), running.cpu_s, running.rss_mib
        await upload_file(running.stub, sent.file, sent.sha256, "", watch, parts_at_once=parts_at_once)
        total_s = time.perf_counter() - watch.started_s
        return Sample(
            what,
            parts_at_once,
            sent.size_bytes,
            watch.sent_s,
            total_s - watch.sent_s,
            idle_mib,
            running.peak_rss_mib,
            (running.cpu_s - before_s) / (sent.size_bytes / 1e9),
            # What had been sent before the kill, and had not arrived.
            max(0, sent.size_bytes // 2 - (watch.first_bytes or 0)) if what != "whole" else 0,
        )


async def killed(folder: Path, operator: NodeIdentity, sent: Large) -> Sample:
    """The registry is killed half-way; how long the rest takes, and how much is sent twice."""
    async with registry(folder, operator) as running:
        watch = Watch(sent.size_bytes, call_at_bytes=sent.size_bytes // 2)
        uploading = asyncio.create_task(upload_file(running.stub, sent.file, sent.sha256, "", watch, patience_s=0.0))
        await watch.reached.wait()
        running.end(signal.SIGKILL)
        with suppress(grpc.aio.AioRpcError):
            await uploading
    return await whole(folder, operator, sent, 4, "killed half-way")


def made_file(folder: Path, size_bytes: int) -> Large:
    """Random bytes."""
    file, hasher, rest = folder / "model.bin", hashlib.sha256(), size_bytes
    with file.open("wb") as stream:
        while rest:
            block = os.urandom(min(rest, _BLOCK_BYTES))
            stream.write(block)
            hasher.update(block)
            rest -= len(block)
    return Large(file, hasher.hexdigest(), size_bytes)


def fresh(folder: Path, name: str) -> tuple[Path, NodeIdentity]:
    """A registry's folder, and who may call it."""
    made = folder / name
    made.mkdir()
    authority = Authority.open(made / "authority")
    identities = {role: authority.enrol(made / "identities" / role.value, role) for role in (Role.REGISTRY, Role.OPERATOR)}
    write_master_keys(made / "master.keys", new_master_keys())
    return made, identities[Role.OPERATOR]


async def measure(folder: Path, size_bytes: int, parts: list[int]) -> list[Sample]:
    sent, samples = made_file(folder, size_bytes), list[Sample]()
    for parts_at_once in parts:
        made, operator = fresh(folder, f"registry-{parts_at_once}")
        samples.append(await whole(made, operator, sent, parts_at_once))
        shutil.rmtree(made)
    made, operator = fresh(folder, "registry-killed")
    samples.append(await killed(made, operator, sent))
    shutil.rmtree(made)
    return samples


def table(samples: list[Sample]) -> Table:
    printed = Table(title=f"upload of {samples[0].size_bytes / 1e9:g} GB", caption=machine())
    headings = ("", "parts", "MB/s", "sent s", "read back s", "idle MiB", "peak MiB", "bar", "CPU s/GB", "twice MB")
    for heading in headings:
        printed.add_column(heading, justify="right" if heading else "left")
    for sample in samples:
        colour = "[green]" if sample.peak_rss_mib < BAR_MIB else "[red]"
        rate = f"{sample.mb_per_s:.0f}" if sample.what == "whole" else ""
        printed.add_row(
            sample.what,
            str(sample.parts_at_once),
            rate,
            f"{sample.sent_s:.1f}",
            f"{sample.verified_s:.1f}",
            f"{sample.idle_rss_mib:.0f}",
            f"{colour}{sample.peak_rss_mib:.0f}",
            str(BAR_MIB),
            f"{sample.cpu_s_per_gb:.1f}",
            f"{sample.resent_bytes / 1e6:.0f}",
        )
    return printed


def machine() -> str:
    memory_gib = psutil.virtual_memory().total >> 30
    return f"{psutil.cpu_count()} cores, {memory_gib} GiB, Python {platform.python_version()}, sender and registry on it"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-gb", type=float, default=5.0)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 4])
    parser.add_argument(
        "--folder", type=Path, default=None, help="where files and registries lie [default: a temporary folder]"
    )
    parser.add_argument("--output", type=Path, default=None, help="write the samples as JSON")
    arguments = parser.parse_args()
    size_bytes = int(arguments.size_gb * 1e9)
    with tempfile.TemporaryDirectory(prefix="penstock-upload-", dir=arguments.folder) as folder:
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < 2.2 * size_bytes + 1e9:
            raise SystemExit(f"{folder} has {free_bytes / 1e9:.1f} GB free; {2.2 * size_bytes / 1e9 + 1:.1f} are needed")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            samples = runner.run(measure(Path(folder), size_bytes, arguments.parts))
    Console().print(table(samples))
    if arguments.output is not None:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        found = {"when": when, "machine": machine(), "samples": [asdict(sample) for sample in samples]}
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
