"""A worker that says nothing any more while its connection stays: its calls go elsewhere, and nobody else's wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from gateway.exchange import Exchange
from gateway.fleet import Fleet
from gateway.links.link import WorkerLink
from gateway.links.silence import LOOK_S
from gateway.links.types import LinkSettings, Method
from gateway.metrics import GatewayMetrics
from gateway.others import OtherWorkers
from gateway.routing import Router, RoutingSettings
from gateway.types import FleetNews
from placement.routing.retry_budget import RetryBudget
from placement.types import Request, Strategy, Worker
from runtime.clock import SystemClock
from runtime.identity import Authority, Role
from runtime.ids import ModelName, WorkerId
from runtime.serving import Listen, serving
from tests.gateway.fakes import FakeSource, copy_of, worker_of
from tests.gateway.routed import CALL
from tests.integration.test_execute_stream import Engine
from tests.support.forwarder import Forwarder, forwarder_to
from tests.support.waiting import eventually
from worker.execute.execution import SERVICE, Execution

QUICK = LinkSettings(silent_after_s=4 * LOOK_S, lost_after_s=6 * LOOK_S, connect_timeout_s=1.0)
"""Quicker than in earnest, and still twice as slow as the slowest beat of a worker."""
NOBODY_LISTENS = "127.0.0.1:9"
GATED, ECHO = Request(ModelName("gate")), Request(ModelName("echo"))


@dataclass
class Host:
    engine: Engine
    hop: Forwarder
    link: WorkerLink

    @property
    def worker_id(self) -> str:
        return self.link.worker_id


@dataclass
class Hosts:
    router: Router
    fleet: Fleet
    hosts: list[Host]
    registry: CollectorRegistry

    def holding(self) -> list[Host]:
        """Those with a call of ours open."""
        return [host for host in self.hosts if host.link.in_flight]


@asynccontextmanager
async def hosted(folder: Path, count: int, *more: Worker, budget: RetryBudget | None = None) -> AsyncIterator[Hosts]:
    """So many workers, each behind a hop that can fall silent; and others that are told of besides."""
    authority, registry = Authority.open(folder), CollectorRegistry()
    gateway, metrics = authority.enrol(folder / "gateway", Role.GATEWAY), GatewayMetrics(registry)

    def open_link(worker: Worker) -> WorkerLink:
        others = OtherWorkers(fleet, metrics, worker.worker_id)
        return WorkerLink(worker.address, gateway, worker.worker_id, settings=QUICK, others=others)

    fleet = Fleet(FakeSource(), open_link, SystemClock())
    router = Router(fleet, metrics, RoutingSettings(Strategy.ROUND_ROBIN), budget)
    async with AsyncExitStack() as stack:
        found: list[tuple[Engine, Forwarder, Worker]] = []
        for number in range(count):
            identity, engine = authority.enrol(folder / f"worker-{number}", Role.WORKER), Engine()
            execution = Execution(engine, WorkerId(identity.node_id), asyncio.Event())
            listen = [Listen("127.0.0.1", 0, identity)]
            running = await stack.enter_async_context(serving(listen, [execution.register], [SERVICE], drain_grace_s=0.1))
            hop = await stack.enter_async_context(forwarder_to(running.ports[0]))
            copies = [copy_of(model) for model in ("gate", "echo", "many")]
            found.append((engine, hop, worker_of(identity.node_id, *copies, address=hop.endpoint, max_in_flight=100)))
        following = asyncio.create_task(fleet.run())
        fleet.apply(FleetNews(True, (*(worker for _, _, worker in found), *more)))
        hosts = []
        for engine, hop, worker in found:
            link = fleet.links[worker.worker_id]
            assert isinstance(link, WorkerLink)
            assert await link.wait_connected(10)
            hosts.append(Host(engine, hop, link))
        try:
            yield Hosts(router, fleet, hosts, registry)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def test_what_a_silent_worker_owes_is_answered_by_another(tmp_path: Path) -> None:
    async with hosted(tmp_path, 2, budget=RetryBudget(0.0, 0.0)) as mesh, asyncio.timeout(60):
        exchange = Exchange("test")
        calls = [asyncio.create_task(mesh.router.infer(GATED, b"x", CALL, exchange)) for _ in range(2)]
        await eventually(lambda: all(host.engine.running for host in mesh.hosts))
        silent, other = mesh.hosts
        silent.hop.silence()
        await eventually(lambda: other.engine.running == 2)  # though there is no budget for retries
        assert silent.link.in_flight == 0
        other.engine.gate.set()
        assert await asyncio.gather(*calls) == [b"x", b"x"]
        # It is connected to anew once it answers, and told that nobody waits for what it had.
        silent.hop.resume()
        await eventually(lambda: silent.engine.running == 0 and silent.link.ready)
        assert mesh.registry.get_sample_value("penstock_gateway_silences_total") == 1


async def test_who_falls_silent_is_passed_over_before_it_is_given_up(tmp_path: Path) -> None:
    async with hosted(tmp_path, 2) as mesh, asyncio.timeout(60):
        call = asyncio.create_task(mesh.router.infer(GATED, b"x", CALL))
        await eventually(lambda: bool(mesh.holding()))
        (silent,) = mesh.holding()
        silent.hop.silence()
        await eventually(lambda: silent.link.is_silent or not silent.link.in_flight)
        for _ in range(8):
            exchange = Exchange("test")
            assert await mesh.router.infer(ECHO, b"y", CALL, exchange) == b"y"
            assert (exchange.attempts, exchange.worker_id == silent.worker_id) == (1, False)
        for host in mesh.hosts:
            host.engine.gate.set()
        assert await call == b"x"


async def test_the_only_worker_is_waited_for(tmp_path: Path) -> None:
    async with hosted(tmp_path, 1) as mesh, asyncio.timeout(60):
        (only,) = mesh.hosts
        call = asyncio.create_task(mesh.router.infer(GATED, b"x", CALL))
        await eventually(lambda: bool(only.engine.running))
        only.hop.silence()
        await asyncio.sleep(2 * QUICK.lost_after_s)
        assert only.link.is_silent
        assert not call.done()
        only.hop.resume()
        only.engine.gate.set()
        assert await call == b"x"


async def test_where_all_fall_silent_it_is_the_network_and_nobody_is_given_up(tmp_path: Path) -> None:
    async with hosted(tmp_path, 2) as mesh, asyncio.timeout(60):
        calls = [asyncio.create_task(mesh.router.infer(GATED, b"x", CALL)) for _ in range(2)]
        await eventually(lambda: all(host.engine.running for host in mesh.hosts))
        for host in mesh.hosts:
            host.hop.silence()
        await asyncio.sleep(2 * QUICK.lost_after_s)
        assert all(host.link.in_flight == 1 for host in mesh.hosts)
        for host in mesh.hosts:
            host.hop.resume()
            host.engine.gate.set()
        assert await asyncio.gather(*calls) == [b"x", b"x"]


async def test_a_worker_that_is_at_work_for_long_is_not_silent(tmp_path: Path) -> None:
    async with hosted(tmp_path, 2) as mesh, asyncio.timeout(60):
        call = asyncio.create_task(mesh.router.infer(GATED, b"x", CALL))
        await eventually(lambda: bool(mesh.holding()))
        (busy,) = mesh.holding()
        await asyncio.sleep(2 * QUICK.lost_after_s)
        assert (busy.link.in_flight, busy.link.is_silent) == (1, False)
        busy.engine.gate.set()
        assert await call == b"x"


async def test_silent_and_unreachable_workers_hold_nobody_up(tmp_path: Path) -> None:
    """As vllm production-stack#749 had it: everybody waited for the one. Here all others are answered while it is silent."""
    dead = worker_of("dead", *(copy_of(model) for model in ("gate", "echo", "many")), address=NOBODY_LISTENS)
    async with hosted(tmp_path, 3, dead) as mesh, asyncio.timeout(60):
        silent = mesh.hosts[0]
        silent.hop.silence()
        exchanges = [Exchange("test") for _ in range(120)]
        calls = [asyncio.create_task(mesh.router.infer(ECHO, b"x", CALL, exchange)) for exchange in exchanges]
        await asyncio.sleep(0)
        stuck = [call for call, exchange in zip(calls, exchanges, strict=True) if exchange.worker_id == silent.worker_id]
        others = [call for call in calls if call not in stuck]
        assert stuck
        assert others
        await asyncio.wait(others)
        assert not any(call.done() for call in stuck)
        assert await asyncio.gather(*calls) == [b"x"] * 120
        moved = [exchange for exchange in exchanges if exchange.attempts > 1]
        assert len(moved) == len(stuck)
        # By now nobody is sent there at all.
        after = [Exchange("test") for _ in range(30)]
        assert await asyncio.gather(*(mesh.router.infer(ECHO, b"y", CALL, each) for each in after)) == [b"y"] * 30
        assert {each.attempts for each in after} == {1}


async def test_a_reader_that_stops_reading_holds_up_nobody_else_on_its_stream(tmp_path: Path) -> None:
    async with hosted(tmp_path, 1) as mesh, asyncio.timeout(60):
        (only,) = mesh.hosts
        many = Request(ModelName("many"))
        stopped = mesh.router.stream(Method.GENERATE, many, b"400", CALL)
        assert await anext(stopped) == b"0"
        await eventually(lambda: only.engine.made > QUICK.credit)
        made = only.engine.made
        assert await mesh.router.infer(ECHO, b"y" * 1_000_000, CALL) == b"y" * 1_000_000
        assert len([answer async for answer in mesh.router.stream(Method.GENERATE, many, b"300", CALL)]) == 300
        assert only.engine.made == made + 300
        assert [answer async for answer in stopped] == [str(n).encode() for n in range(1, 400)]


@pytest.mark.parametrize("method", [Method.INFER, Method.GENERATE])
async def test_a_caller_that_goes_frees_the_place_at_the_worker(tmp_path: Path, method: Method) -> None:
    """From the router to the engine: nothing on the way waits for anything but the network."""
    async with hosted(tmp_path, 1) as mesh, asyncio.timeout(60):
        (only,) = mesh.hosts

        async def ask() -> None:
            if method is Method.INFER:
                await mesh.router.infer(GATED, b"x", CALL)
            else:
                async for _ in mesh.router.stream(method, GATED, b"1", CALL):
                    pass

        asking = asyncio.create_task(ask())
        await only.engine.entered.wait()
        asking.cancel()
        await only.engine.cancelled.wait()
        await eventually(lambda: only.engine.running == 0)
        assert only.link.in_flight == 0
