"""The services of a mesh, each started by itself as an operator does it, on loopback or on a host of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from cli.demo_models import FOLDER as DEMO
from cli.publish import publish_folder
from runtime.channel import inner_channel
from runtime.grpc_core import tune
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import EVERY_TENANT
from tests.support.etcd import EtcdServer
from tests.support.mesh import ROOT
from tests.support.netns import LOOPBACK, Host

START_S = 40.0
STOP_S = 15.0


@dataclass(slots=True)
class Service:
    """One process of ours. Its pid is its own, also on a host: the words before its command become it."""

    name: str
    host: Host
    identity: NodeIdentity
    process: subprocess.Popen[bytes]
    ready: Path
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def ports(self) -> Mapping[str, int]:
        found: dict[str, int] = json.loads(self.ready.read_text())
        return found

    def address(self, port: str = "port") -> str:
        return f"{self.host.address}:{self.ports[port]}"

    async def started(self) -> Service:
        """Once it answers."""
        end_s = time.monotonic() + START_S
        while not self.ready.exists():
            if self.has_ended or time.monotonic() > end_s:
                raise AssertionError(f"{self.name} did not start:\n{self.tail()}")
            await asyncio.sleep(0.02)
        return self

    def tail(self, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:]

    def said(self, event: str) -> list[dict[str, object]]:
        """What it logged under this name."""
        lines = (line for line in self.log.read_text(errors="replace").splitlines() if f'"{event}"' in line)
        return [json.loads(line) for line in lines if line.startswith("{")]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await asyncio.to_thread(self.process.wait, STOP_S)

    async def stop(self) -> int:
        """In order, whatever was done to it before."""
        if not self.has_ended:
            self.thaw()
            self.signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self.process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            await self.kill()
            raise


@dataclass(slots=True)
class HostedMesh:
    """What one test has running."""

    folder: Path
    etcd: EtcdServer
    authority: Authority
    operator: NodeIdentity
    services: dict[str, Service] = field(default_factory=dict)

    def start(self, kind: str, name: str, host: Host = LOOPBACK, **settings: object) -> Service:
        """Begin to start a service; `await service.started()` before it is used."""
        identity = self.authority.enrol(self.folder / name, Role(kind))
        ready, log = self.folder / f"{name}.json", self.folder / f"{name}.log"
        ready.unlink(missing_ok=True)
        common = {"identity_dir": identity.folder, "ready_file": ready, "etcd_endpoints": self.etcd.endpoint}
        said = {**common, "host": host.address, **settings}
        words = [f"--{key.replace('_', '-')}={value}" for key, value in said.items()]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen")))}
        environment.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        tune(environment)
        command = [*host.words, sys.executable, "-m", kind, *words]
        with log.open("ab") as sink:
            process = subprocess.Popen(command, stdout=sink, stderr=sink, cwd=ROOT, env=environment)
        self.services[name] = service = Service(name, host, identity, process, ready, log)
        return service

    def registry(self, host: Host = LOOPBACK) -> Service:
        """On SQLite and a folder; its authority issues certificates."""
        return self.start(
            "registry",
            "registry",
            host,
            database=self.folder / "registry.db",
            objects=self.folder / "objects",
            master_keys=self.folder / "master.keys",
            trusted_signers=self.trusted_signers,
            authority_dir=self.folder / "ca",
        )

    def worker(self, name: str, host: Host = LOOPBACK, **settings: object) -> Service:
        own = {"trusted_signers": self.trusted_signers, "cache_dir": self.folder / f"{name}-cache", "memory_bytes": 2**30}
        return self.start("worker", name, host, registry_address=self.services["registry"].address(), **own, **settings)

    @property
    def trusted_signers(self) -> Path:
        file = self.folder / "trusted-signers"
        if not file.exists():
            file.write_text(f"{self.operator.ed25519_public_key.hex()}  # operator\n")
        return file

    async def publish(self, *names: str) -> dict[str, scheduler_pb2.Placement]:
        """Demo models; a wish for one copy of each, without a region."""
        made = {}
        async with inner_channel(self.services["registry"].address(), self.operator, Role.REGISTRY) as registry:
            for name in names:
                published = await publish_folder(registry, self.operator.signing_key, DEMO / name, shared_with=(EVERY_TENANT,))
                made[name] = scheduler_pb2.Placement(model=name, version=published.version, digest=published.digest, copies=1)
        return made

    @asynccontextmanager
    async def fleet(self, scheduler: Service) -> AsyncIterator[scheduler_pb2_grpc.FleetServiceStub]:
        """One scheduler's FleetService, as an operator."""
        async with inner_channel(scheduler.address(), self.operator, Role.SCHEDULER) as channel:
            yield scheduler_pb2_grpc.FleetServiceStub(channel)

    async def place(self, scheduler: Service, wish: scheduler_pb2.Placement) -> scheduler_pb2.Placement:
        async with self.fleet(scheduler) as stub:
            request = scheduler_pb2.PlaceModelRequest(placement=wish)
            return (await stub.PlaceModel(request, timeout=10)).placement

    async def close(self) -> None:
        """Whatever still runs: what serves requests first."""
        order = ("gateway", "worker", "scheduler", "registry")
        by_kind = sorted(self.services.values(), key=lambda service: order.index(service.identity.certificate.peer.role.value))
        for service in by_kind:
            if not service.has_ended:
                with suppress(ProcessLookupError):
                    service.thaw()
                service.signal(signal.SIGTERM)
        for service in by_kind:
            try:
                await asyncio.to_thread(service.process.wait, STOP_S)
            except subprocess.TimeoutExpired:
                await service.kill()


@asynccontextmanager
async def hosted_mesh(folder: Path, host: Host = LOOPBACK) -> AsyncIterator[HostedMesh]:
    """An etcd that answers, on this host, and nothing else yet; everything that was started is ended."""
    authority = Authority.open(folder / "ca")
    operator = authority.enrol(folder / "operator", Role.OPERATOR)
    etcd = EtcdServer(folder, host=host.address, words=host.words)
    mesh = HostedMesh(folder, etcd, authority, operator)
    async with AsyncExitStack() as stack:
        stack.callback(etcd.kill)
        await etcd.astart()
        stack.push_async_callback(mesh.close)
        yield mesh
