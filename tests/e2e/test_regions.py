"""Two regions for real: a scheduler, a gateway and workers each, over one etcd and one registry, an Envoy before one gateway.

Requests stay in their region unless a rule lets them go; they come home again; a region whose workers all die is served by the
other where that is allowed, and says why not where it is not.
"""

from __future__ import annotations

import asyncio
import re
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2

from gateway.refusals import ModelCold, RegionUnserved
from gateway.regions import HEADER
from gateway.xds.bootstrap import Bootstrap
from gateway.xds.types import Endpoint
from runtime.errors import PenstockError
from runtime.identity import Role
from runtime.status import error_of
from tests.support.envoy import free_endpoint, running_envoy
from tests.support.hosts import HostedMesh, Service, hosted_mesh
from tests.support.steady_load import SteadyLoad, digit_request, until_answered

HOME, AWAY = "europe", "asia"
DEADLINE_S = 20.0
FROM_AWAY, FROM_NOWHERE = "127.0.0.2", "127.0.0.3"
"""Addresses of callers: all of 127.0.0.0/8 is this machine."""

_FOUND_OUT = {"region": "auto", "public_address": "203.0.113.9", "region_overrides": f"203.0.113.0/24={AWAY}"}
_SERVED = re.compile(r'^nv_inference_request_success\{[^}]*model="digits"[^}]*\} ([0-9.e+]+)$', re.MULTILINE)


@dataclass
class World:
    mesh: HostedMesh
    envoy: str
    digits: scheduler_pb2.Placement

    def service(self, name: str) -> Service:
        return self.mesh.services[name]

    def edge(self, region: str) -> str:
        return self.service(f"{region}-gate").address("edge_port")

    async def place(self, region: str) -> None:
        self.digits.region = region
        await self.mesh.place(self.service(f"{region}-sched"), self.digits)

    async def rule(self, *, cross_region: bool) -> None:
        """Put this in force, everywhere: wherever it is set, all hear of it."""
        rule = scheduler_pb2.RoutingRule(name="digits abroad", models=["digits"], cross_region=cross_region)
        async with self.mesh.fleet(self.service(f"{HOME}-sched")) as fleet:
            policy = scheduler_pb2.RoutingPolicy(rules=[rule])
            await fleet.SetRoutingPolicy(scheduler_pb2.SetRoutingPolicyRequest(routing_policy=policy), timeout=10)

    def served(self) -> Counter[str]:
        """Requests that each region's workers have answered."""
        found: Counter[str] = Counter()
        for service in self.mesh.services.values():
            if service.identity.certificate.peer.role is Role.WORKER and not service.has_ended:
                found[service.name.partition("-")[0]] += _answered(service)
        return found

    def worker(self, name: str) -> Service:
        """Those in asia find out by themselves that they are there."""
        region = name.partition("-")[0]
        said = _FOUND_OUT if region == AWAY else {"region": region}
        own: dict[str, Any] = {"max_in_flight": 1, "metrics_port": 0, "lease_ttl_s": 3, **said}
        return self.mesh.worker(name, **own)


def _answered(worker: Service) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.ports['metrics_port']}/metrics", timeout=5) as page:
        return sum(int(float(each)) for each in _SERVED.findall(page.read().decode()))


@asynccontextmanager
async def opened_world(folder: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(hosted_mesh(folder))
        registry = await mesh.registry().started()
        envoy, listen = mesh.authority.enrol(folder / "envoy", Role.ENVOY), free_endpoint()
        world = World(mesh, f"http://{listen.host}:{listen.port}", scheduler_pb2.Placement())
        for region in (HOME, AWAY):
            told: dict[str, Any] = {"registry_address": registry.address(), "region": region}
            scheduler = mesh.start("scheduler", f"{region}-sched", regions=region, **told)
            world.worker(f"{region}-one")
            more: dict[str, Any] = {"scheduler_address": (await scheduler.started()).address(), "auth": "off"}
            if region == HOME:
                more |= {"caller_region": "address", "region_overrides": f"{FROM_AWAY}/32={AWAY},{FROM_NOWHERE}/32=africa"}
                more |= {"allow_region_header": "true", "http_host": listen.host, "http_port": listen.port}
                more |= {"envoy_identity_dir": envoy.folder}
            else:
                more |= _FOUND_OUT
            mesh.start("gateway", f"{region}-gate", edge_port=0, cold_wait_s=3, **(told | more))
        for service in mesh.services.values():
            await service.started()
        world.digits = (await mesh.publish("digits"))["digits"]
        control_plane = Endpoint("127.0.0.1", world.service(f"{HOME}-gate").ports["port"])
        bootstrap = Bootstrap("regions", [control_plane], envoy.files)
        running = await stack.enter_async_context(running_envoy(bootstrap, folder / "envoy-run"))
        await running.until_listening(listen)
        yield world


async def infer(address: str, *, region: str = "", timeout_s: float = DEADLINE_S) -> None:
    """Raises PenstockError."""
    metadata = ((HEADER, region),) if region else ()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            await stub.ModelInfer(digit_request(), metadata=metadata, timeout=timeout_s)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure


async def refused(address: str, *, region: str = "", timeout_s: float = DEADLINE_S) -> PenstockError:
    with pytest.raises(PenstockError) as caught:
        await infer(address, region=region, timeout_s=timeout_s)
    return caught.value


async def burst(address: str, count: int = 32, *, region: str = "") -> None:
    """Many at once, of which a worker takes one at a time."""
    metadata = ((HEADER, region),) if region else ()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await asyncio.gather(*(stub.ModelInfer(digit_request(), metadata=metadata, timeout=DEADLINE_S) for _ in range(count)))


async def infer_from(source: str, url: str, **headers: str) -> None:
    """By gRPC-Web through Envoy, from this address of this machine."""
    payload = digit_request().SerializeToString()
    path = f"{url}/inference.GRPCInferenceService/ModelInfer"
    told = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", **headers}
    transport = httpx.AsyncHTTPTransport(local_address=source)
    async with httpx.AsyncClient(transport=transport, timeout=DEADLINE_S) as client:
        answer = await client.post(path, content=b"\0" + len(payload).to_bytes(4, "big") + payload, headers=told)
    assert answer.status_code == 200, answer.text
    length = int.from_bytes(answer.content[1:5], "big")
    assert answer.content[0] == 0, answer.content[:200]
    assert pb.ModelInferResponse.FromString(answer.content[5 : 5 + length]).model_name == "digits"


async def since(world: World, before: Mapping[str, int]) -> dict[str, int]:
    now = await asyncio.to_thread(world.served)
    return {region: now[region] - before.get(region, 0) for region in (HOME, AWAY)}


@pytest.mark.timeout(150)
async def test_two_regions(tmp_path: Path) -> None:
    async with opened_world(tmp_path) as world:
        home, away = world.edge(HOME), world.edge(AWAY)
        await world.place(HOME)
        await until_answered(home)
        await _absent_ones_say_so(world, home, away)
        await world.place(AWAY)
        await until_answered(away)
        await _requests_stay(world, home, away)
        await _callers_are_where_they_call_from(world)
        await _a_rule_lets_them_go_and_they_come_home(world, home)
        await _a_region_dies_and_heals(world, home)
        assert all("Traceback" not in service.log.read_text() for service in world.mesh.services.values())


async def _absent_ones_say_so(world: World, home: str, away: str) -> None:
    for gateway, region in ((away, ""), (home, AWAY), (home, "africa")):
        error = await refused(gateway, region=region)
        assert isinstance(error, RegionUnserved), error
        assert f"is not found in region '{region or AWAY}'; it is in: {HOME}," in error.message
    error = await refused(home, region="atlantis")
    assert error.code.name == "INVALID_ARGUMENT"
    assert "atlantis" in error.message


async def _requests_stay(world: World, home: str, away: str) -> None:
    before = await asyncio.to_thread(world.served)
    await burst(home)
    assert await since(world, before) == {HOME: 32, AWAY: 0}, "who finds its region full waits for it"
    await burst(away, 5)
    assert await since(world, before) == {HOME: 32, AWAY: 5}
    await burst(home, 16, region=AWAY)
    assert await since(world, before) == {HOME: 32, AWAY: 21}, "another region's queue is its own leader's"


async def _callers_are_where_they_call_from(world: World) -> None:
    url, before = world.envoy, await asyncio.to_thread(world.served)
    await infer_from("127.0.0.1", url)
    await infer_from(FROM_NOWHERE, url)
    await infer_from("127.0.0.1", url, **{"x-forwarded-for": FROM_AWAY})
    assert await since(world, before) == {HOME: 3, AWAY: 0}, "what a caller writes itself does not count"
    await infer_from(FROM_AWAY, url)
    assert await since(world, before) == {HOME: 3, AWAY: 1}
    await infer_from(FROM_AWAY, url, **{HEADER: HOME})
    assert await since(world, before) == {HOME: 4, AWAY: 1}


async def _a_rule_lets_them_go_and_they_come_home(world: World, home: str) -> None:
    before = await asyncio.to_thread(world.served)
    await world.rule(cross_region=True)
    async with asyncio.timeout(DEADLINE_S):
        while not (await since(world, before))[AWAY]:
            await burst(home)
    before = await asyncio.to_thread(world.served)
    for _ in range(10):
        await infer(home)
    assert await since(world, before) == {HOME: 10, AWAY: 0}, "home has room again"


async def _a_region_dies_and_heals(world: World, home: str) -> None:
    worker = world.service(f"{HOME}-one")
    load = SteadyLoad(home, callers=2)
    async with load.running():
        await load.goes_on()
        await worker.kill()
        await load.goes_on(100)
        before = await asyncio.to_thread(world.served)
        await load.goes_on()
        assert (await since(world, before))[AWAY] >= 50
    assert set(load.outcomes) == {"ok"}
    assert load.longest_s < DEADLINE_S
    sys.stdout.write(f"a region's workers died: {dict(load.outcomes)}, the longest took {load.longest_s:.2f} s\n")

    await world.rule(cross_region=False)
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await infer(home)
            except PenstockError as error:
                sys.stdout.write(f"where requests may not leave: {error.code.name} {error.reason}: {error.message}\n")
                assert isinstance(error, ModelCold), error
                assert f"no worker is in region '{HOME}' now" in error.message
                assert f"it is in: {AWAY}," in error.message
                break
    before = await asyncio.to_thread(world.served)
    await world.worker(f"{HOME}-one").started()
    await until_answered(home)
    await burst(home, 5)
    assert (await since(world, before))[AWAY] == 0
