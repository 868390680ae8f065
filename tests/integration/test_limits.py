"""Limits over real gRPC with mTLS: gateways, two schedulers of which one leads, budgets kept in a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import grpc.aio
import pytest
from penstock.scheduler.v1 import limits_pb2 as pb
from penstock.scheduler.v1.limits_pb2_grpc import LimitServiceStub
from prometheus_client import CollectorRegistry

from gateway.admission import KeyFacts, RateLimited
from gateway.limits import sharing
from gateway.limits.limiter import Limiter
from gateway.limits.purse import Purse
from gateway.limits.sharing import Sharing
from gateway.limits.types import Limit
from gateway.metrics import GatewayMetrics
from gateway.peers import SchedulerClient
from placement.limits.book import Spending
from placement.limits.types import AllowanceId
from runtime.candidates import Term
from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.errors import Code, NotLeader
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import Role
from runtime.ids import KeyId, TenantId
from runtime.memory_store import MemoryStore
from runtime.serving import Listen, serving
from runtime.status import error_of
from scheduler.limits.room import LimitsRoom
from scheduler.limits.servicer import SERVICE, LimitsServicer
from scheduler.limits.spending import SPENDING_PREFIX, Records
from tests.scheduler.mesh import Mesh
from tests.support.etcd import running_etcd
from tests.support.waiting import eventually

PATIENCE_S = 30.0


@dataclass
class Scheduler:
    room: LimitsRoom
    address: str
    stack: AsyncExitStack

    async def leave(self) -> None:
        await self.stack.aclose()


@dataclass
class Place:
    """Where schedulers and gateways are started."""

    mesh: Mesh
    store: MemoryStore
    stack: AsyncExitStack

    async def scheduler(self, name: str) -> Scheduler:
        clock, stack = SystemClock(), AsyncExitStack()
        identity = self.mesh.node(name, Role.SCHEDULER)
        room = LimitsRoom(self.store, clock, Random(1), identity.node_id)
        listen = Listen("127.0.0.1", 0, identity)
        running = await stack.enter_async_context(
            serving([listen], [LimitsServicer(room).register], [SERVICE], drain_grace_s=0.1)
        )
        address = f"127.0.0.1:{running.ports[0]}"
        await stack.enter_async_context(room.running(address))
        self.stack.push_async_callback(stack.aclose)
        await eventually(lambda: room.book is not None or bool(room.leader_address), patience_s=PATIENCE_S)
        return Scheduler(room, address, stack)

    @asynccontextmanager
    async def gateway(self, name: str, *known: Scheduler) -> AsyncIterator[Limiter]:
        identity, clock = self.mesh.node(name, Role.GATEWAY), SystemClock()

        def opened(address: str) -> SchedulerClient:
            return SchedulerClient(address, inner_channel(address, identity, Role.SCHEDULER))

        limiter = Limiter(Purse(), clock, GatewayMetrics(CollectorRegistry()), wait_s=PATIENCE_S)
        clients = [opened(each.address) for each in known]
        task = asyncio.create_task(Sharing(limiter, clients, opened, clock, name).run())
        try:
            yield limiter
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for client in clients:
                await client.channel.close()


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(sharing, "SILENT_S", PATIENCE_S)  # a slow machine is no leader that is away
    async with MemoryStore() as store, AsyncExitStack() as stack:
        yield Place(Mesh(tmp_path, SystemClock()), store, stack)


def key(*limits: Limit) -> KeyFacts:
    return KeyFacts(KeyId("k"), TenantId("t"), limits=limits)


async def admitted(limiter: Limiter, facts: KeyFacts, requests: int) -> int:
    """How many of so many at once are let in, and end at once."""

    async def one() -> bool:
        try:
            ticket = await limiter.admit(facts, "m", 0)
        except RateLimited:
            return False
        assert ticket is not None
        ticket.close()
        return True

    return sum(await asyncio.gather(*(one() for _ in range(requests))))


async def until_sure(*limiters: Limiter) -> None:
    await eventually(lambda: all(each.sure for each in limiters), patience_s=PATIENCE_S)


async def test_three_gateways_spend_one_days_budget_to_the_unit(place: Place) -> None:
    leader, stands_by = await place.scheduler("one"), await place.scheduler("two")
    facts = key(Limit("l", requests_per_day=40))
    async with AsyncExitStack() as stack:
        # The second and third know only who does not lead, and are told who does.
        limiters = [
            await stack.enter_async_context(place.gateway(f"g{number}", stands_by if number else leader)) for number in range(3)
        ]
        spent = sum(await asyncio.gather(*(admitted(each, facts, 10) for each in limiters)))
        async with asyncio.timeout(PATIENCE_S):
            while spent < 40:  # what one still has in hand comes back to the others
                await asyncio.sleep(0.25)
                spent += sum([await admitted(each, facts, 5) for each in limiters])
        await asyncio.sleep(0.5)
        spent += sum([await admitted(each, facts, 30) for each in limiters])
        assert spent == 40
        with pytest.raises(RateLimited) as refused:
            await limiters[0].admit(facts, "m", 0)
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s > 1
        assert len(leader.room) == 3
        assert len(stands_by.room) == 0


async def test_who_leads_next_goes_on_where_the_last_one_was(place: Place) -> None:
    leader, stands_by = await place.scheduler("one"), await place.scheduler("two")
    facts = key(Limit("l", requests_per_day=1_000))
    async with place.gateway("g", leader, stands_by) as limiter:
        assert await admitted(limiter, facts, 300) == 300
        await leader.leave()
        await eventually(lambda: stands_by.room.book is not None, patience_s=PATIENCE_S)
        await until_sure(limiter)
        more = 0
        for _ in range(4):
            more += await admitted(limiter, facts, 300)
            await asyncio.sleep(0.1)
        assert 650 <= more <= 700, "not one too many; at most a hundredth was lost each time"
        assert len((await place.store.range(SPENDING_PREFIX)).items) == 1


async def test_no_more_are_under_way_than_may_be_and_a_gateway_that_goes_gives_its_permits_back(place: Place) -> None:
    leader = await place.scheduler("one")
    facts = key(Limit("l", concurrent_requests=6))

    async def let_in(limiter: Limiter) -> None:
        """Sooner or later: who hurries holds some ahead for a moment."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(RateLimited):
                    assert await limiter.admit(facts, "m", 0) is not None
                    return
                await asyncio.sleep(0.05)

    async with place.gateway("stays", leader) as stays:
        async with place.gateway("goes", leader) as goes:
            for limiter in (goes, goes, goes, goes, stays, stays):
                await let_in(limiter)
            for limiter in (goes, stays):
                with pytest.raises(RateLimited):
                    await limiter.admit(facts, "m", 0)
        for _ in range(4):
            await let_in(stays)
        with pytest.raises(RateLimited):
            await stays.admit(facts, "m", 0)


async def said(*messages: pb.ShareRequest) -> AsyncIterator[pb.ShareRequest]:
    for message in messages:
        yield message


_NO_NUMBER = pb.AllowanceTerms(kind=pb.ALLOWANCE_KIND_TOKENS, units=float("nan"))
_WELL = pb.AllowanceTerms(kind=pb.ALLOWANCE_KIND_REQUESTS, units=5)


@pytest.mark.parametrize(
    ("role", "message", "code", "sentence"),
    [
        (Role.OPERATOR, pb.ShareRequest(process="p"), Code.PERMISSION_DENIED, "gateway"),
        (Role.WORKER, pb.ShareRequest(process="p"), Code.PERMISSION_DENIED, "gateway"),
        (Role.GATEWAY, pb.ShareRequest(), Code.INVALID_ARGUMENT, "'process' is a word"),
        (Role.GATEWAY, pb.ShareRequest(process="p", asks=[pb.AllowanceAsk(terms=_WELL)]), Code.INVALID_ARGUMENT, "a name of 0"),
        (
            Role.GATEWAY,
            pb.ShareRequest(process="p", asks=[pb.AllowanceAsk(allowance="a", terms=pb.AllowanceTerms(kind=99, units=1))]),  # type: ignore[arg-type]
            Code.INVALID_ARGUMENT,
            "kind 99",
        ),
        (
            Role.GATEWAY,
            pb.ShareRequest(
                process="p",
                asks=[pb.AllowanceAsk(allowance="a", terms=_NO_NUMBER)],
            ),
            Code.INVALID_ARGUMENT,
            "nan units",
        ),
        (
            Role.GATEWAY,
            pb.ShareRequest(process="p", asks=[pb.AllowanceAsk(allowance="a")] * 2_001),
            Code.INVALID_ARGUMENT,
            "2001 asks are too many",
        ),
    ],
)
async def test_what_is_wrong_is_refused_with_a_sentence(
    place: Place, role: Role, message: pb.ShareRequest, code: Code, sentence: str
) -> None:
    leader = await place.scheduler("one")
    async with inner_channel(leader.address, place.mesh.node(f"the {role.value}", role), Role.SCHEDULER) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in LimitServiceStub(channel).Share(said(message)):
                pass
    refusal = error_of(failed.value)
    assert refusal.code is code
    assert sentence in refusal.message
    assert len(leader.room) == 0


async def test_budgets_are_kept_in_etcd_by_who_leads_and_nobody_else() -> None:
    with running_etcd() as server:
        async with EtcdStore(EtcdSettings.at(server.endpoint)) as store:
            revision = await store.put("/penstock/election/mesh:limits/1", b"")
            term, other = Term("mesh:limits", "/penstock/election/mesh:limits/1", revision), Term("mesh:limits", "/absent", 7)
            records, spent = Records(store), [Spending(AllowanceId(f"l/{number}"), 20_000, number) for number in range(250)]
            assert await records.read() == {}
            assert await records.write(term, spent) == spent
            with pytest.raises(NotLeader):
                await records.write(other, [Spending(AllowanceId("l/1"), 20_000, 999)])
            assert await Records(store).read() == {each.allowance: each for each in spent}
            await records.write(term, [Spending(AllowanceId("l/1"), 20_002, 5)])
            assert await records.prune(term, 20_002) == 249
            assert await Records(store).read() == {AllowanceId("l/1"): Spending(AllowanceId("l/1"), 20_002, 5)}
