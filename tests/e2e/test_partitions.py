"""Cables pulled under load: a worker's, the schedulers', a region's, and an etcd that goes away and comes back empty.

Two regions, each with a scheduler, a gateway and workers on hosts of their own (network namespaces), over one etcd and one
registry. Warm requests run the whole time; none may fail, and nothing may have to be started again.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
from penstock.scheduler.v1 import scheduler_pb2

from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.ids import Region, WorkerId, presence_key
from tests.support.hosts import HostedMesh, Service, hosted_mesh
from tests.support.netns import Host, Network, NoNamespaces, network
from tests.support.steady_load import SteadyLoad, until_answered

EAST, WEST = "east", "west"
BACK_WITHIN_S = 10.0


@dataclass
class World:
    net: Network
    mesh: HostedMesh
    hosts: dict[str, Host]
    west: int
    """The segment of the region west."""

    def service(self, name: str) -> Service:
        return self.mesh.services[name]

    async def members(self, scheduler: str) -> set[str]:
        """Names of the workers that a scheduler believes in."""
        async with self.mesh.fleet(self.service(scheduler)) as fleet:
            there = await fleet.ListWorkers(scheduler_pb2.ListWorkersRequest(), timeout=5)
        names = {str(service.identity.node_id): service.name for service in self.mesh.services.values()}
        return {names[worker.worker_id] for worker in there.workers}

    async def until_members(self, scheduler: str, *names: str, within_s: float = 30.0) -> float:
        """Once it believes in exactly these; after how long that was."""
        began_s = time.monotonic()
        async with asyncio.timeout(within_s):
            while True:
                try:
                    if await self.members(scheduler) == set(names):
                        return time.monotonic() - began_s
                except grpc.aio.AioRpcError:
                    pass
                await asyncio.sleep(0.1)

    async def lease_of(self, worker: str, region: str) -> int:
        """Under which lease its presence is."""
        async with EtcdStore(EtcdSettings.at(self.mesh.etcd.endpoint)) as store:
            key = presence_key(Region(region), WorkerId(self.service(worker).identity.node_id))
            found = await store.get(key)
        return found.lease_id if found is not None else 0

    async def until_fresh(self, *schedulers: str, within_s: float = BACK_WITHIN_S) -> float:
        """Once each of them sees etcd, and leads its region."""
        began_s = time.monotonic()
        async with asyncio.timeout(within_s):
            await asyncio.gather(*(self._fresh(name) for name in schedulers))
        return time.monotonic() - began_s

    async def _fresh(self, scheduler: str) -> None:
        """A watch begun now tells: not stale, and this scheduler is among the leaders."""
        own = self.service(scheduler).identity.node_id
        while True:
            async with self.mesh.fleet(self.service(scheduler)) as fleet:
                watch = fleet.WatchFleet(scheduler_pb2.WatchFleetRequest())
                first = await watch.read()
                watch.cancel()
            assert isinstance(first, scheduler_pb2.WatchFleetResponse)
            if not first.stale and own in {leader.scheduler_id for leader in first.leaders.leaders}:
                return
            await asyncio.sleep(0.1)

    @asynccontextmanager
    async def load(self, *gateways: str) -> AsyncIterator[list[SteadyLoad]]:
        """Steady requests through these while the context lasts. All of them are answered."""
        loads = [SteadyLoad(self.service(name).address("edge_port")) for name in gateways]
        async with AsyncExitStack() as stack:
            for load in loads:
                await stack.enter_async_context(load.running())
            await asyncio.gather(*(load.goes_on() for load in loads))
            yield loads
            await asyncio.gather(*(load.goes_on() for load in loads))
        for name, load in zip(gateways, loads, strict=True):
            sys.stdout.write(f"{name}: {dict(load.outcomes)}, the longest took {load.longest_s:.2f} s\n")
            assert set(load.outcomes) == {"ok"}


@pytest.fixture
def net() -> Iterator[Network]:
    with ExitStack() as stack:
        try:
            made = stack.enter_context(network())
        except NoNamespaces as why:
            pytest.skip(f"no network namespaces: {why}")
        yield made


@asynccontextmanager
async def opened_world(folder: Path, net: Network) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        core, west = net.segment(), net.segment()
        hosts = {name: net.host(name, core) for name in ("core", "e-sched", "e-gate", "e-one", "e-two")}
        hosts |= {name: net.host(name, west) for name in ("w-sched", "w-gate", "w-one")}
        mesh = await stack.enter_async_context(hosted_mesh(folder, hosts["core"]))
        world = World(net, mesh, hosts, west)
        registry = await mesh.registry(hosts["core"]).started()
        told = {"registry_address": registry.address(), "log_level": "info"}
        for letter, region in (("e", EAST), ("w", WEST)):
            scheduler = mesh.start(
                "scheduler", f"{letter}-sched", hosts[f"{letter}-sched"], region=region, regions=region, **told
            )
            for number in ("one", "two")[: 2 if region == EAST else 1]:
                mesh.worker(f"{letter}-{number}", hosts[f"{letter}-{number}"], region=region)
            address = (await scheduler.started()).address()
            more = {"scheduler_address": address, "auth": "off", "edge_host": hosts[f"{letter}-gate"].address, "edge_port": 0}
            mesh.start("gateway", f"{letter}-gate", hosts[f"{letter}-gate"], region=region, **more, **told)
        for service in mesh.services.values():
            await service.started()
        wish = (await mesh.publish("digits"))["digits"]
        for name, region, copies in (("e-sched", EAST, 2), ("w-sched", WEST, 1)):
            wish.region, wish.copies = region, copies
            await mesh.place(world.service(name), wish)
        await asyncio.gather(*(until_answered(world.service(name).address("edge_port")) for name in ("e-gate", "w-gate")))
        yield world


@pytest.mark.timeout(180)
async def test_cables_are_pulled_and_no_warm_request_fails(tmp_path: Path, net: Network) -> None:
    everyone = ("e-one", "e-two", "w-one")
    async with opened_world(tmp_path, net) as world:
        pids = {name: service.pid for name, service in world.mesh.services.items()}
        await world.until_members("e-sched", *everyone)

        # One worker: out of routing, then back as the one it was.
        before = await world.lease_of("e-two", EAST)
        async with world.load("e-gate") as [load]:
            world.net.cut(world.hosts["e-two"])
            gone_s = await world.until_members("e-sched", "e-one", "w-one")
            await load.goes_on()
            world.net.heal(world.hosts["e-two"])
            back_s = await world.until_members("e-sched", *everyone, within_s=BACK_WITHIN_S)
            sys.stdout.write(
                f"a worker without its cable was gone after {gone_s:.1f} s, and back {back_s:.1f} s after it had it\n"
            )
            assert await world.lease_of("e-two", EAST) not in (0, before)

        # Its scheduler: the gateway goes on by what it knows.
        async with world.load("e-gate") as [load]:
            world.net.cut(world.hosts["e-sched"])
            await asyncio.sleep(20.0)  # longer than its lease, and than keep-alive on every link
            await load.goes_on()
            world.net.heal(world.hosts["e-sched"])
            sys.stdout.write(f"its scheduler was back after {await world.until_fresh('e-sched'):.1f} s\n")

        # A region: cut off from etcd, registry and the other, both serve their own.
        async with world.load("e-gate", "w-gate") as loads:
            world.net.cut_segment(world.west)
            gone_s = await world.until_members("e-sched", "e-one", "e-two")
            assert await world.members("w-sched") == set(everyone), "whoever is cut off keeps its last view"
            await asyncio.gather(*(load.goes_on() for load in loads))
            world.net.heal_segment(world.west)
            back_s = await world.until_members("e-sched", *everyone, within_s=BACK_WITHIN_S)
            back_s = max(back_s, await world.until_fresh("e-sched", "w-sched"))
            sys.stdout.write(f"a region was gone after {gone_s:.1f} s, and whole again {back_s:.1f} s after it had its cable\n")

        # etcd: frozen, then dead, then back with nothing.
        async with world.load("e-gate", "w-gate") as loads:
            world.mesh.etcd.freeze()
            await asyncio.sleep(10.0)
            world.mesh.etcd.thaw()
            await world.mesh.etcd.akill()
            await asyncio.sleep(10.0)
            await asyncio.gather(*(load.goes_on() for load in loads))
            world.mesh.etcd.empty()
            await world.mesh.etcd.astart()
            back_s = await world.until_fresh("e-sched", "w-sched")
            back_s = max(back_s, await world.until_members("e-sched", *everyone, within_s=BACK_WITHIN_S))
            sys.stdout.write(f"after an etcd that lost everything, all was known again within {back_s:.1f} s\n")
            await _until_registered_anew(world)

        assert {name: service.pid for name, service in world.mesh.services.items() if not service.has_ended} == pids
        assert all("Traceback" not in service.log.read_text() for service in world.mesh.services.values())


async def _until_registered_anew(world: World) -> None:
    """Wishes and presence are in etcd itself again, not merely in somebody's memory."""
    async with asyncio.timeout(BACK_WITHIN_S):
        while True:
            keys = await asyncio.to_thread(world.mesh.etcd.control, "get", "/penstock/", "--prefix", "--keys-only")
            there = Counter(line.split("/")[2] for line in keys.split() if line)
            placed = keys.count("/placements/digits/")
            if there["presence"] == 3 and placed == 2 and keys.count("/assignments/") == 3:
                return
            await asyncio.sleep(0.1)
