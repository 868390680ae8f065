"""Explain and the routing policy over real gRPC with mTLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
import pytest
from penstock.scheduler.v1 import scheduler_pb2 as pb
from penstock.scheduler.v1 import scheduler_pb2_grpc

from placement.types import CandidateKey, CopyState, Load
from placement.view import FleetView
from runtime.channel import inner_channel
from runtime.errors import Code, PenstockError
from runtime.identity import Role
from runtime.ids import WorkerId
from runtime.memory_store import MemoryStore
from runtime.serving import Listen, serving
from runtime.status import error_of
from scheduler.loop import Scheduler
from scheduler.placements import Placements
from scheduler.routing.explaining import Explainer
from scheduler.routing.servicer import RoutingServicer
from scheduler.routing.store import RoutingPolicies
from scheduler.servicer import SERVICES, FleetServicer, Rooms
from tests.placement.fleets import copy, worker
from tests.scheduler.mesh import HERE, Mesh
from tests.support.manual_clock import ManualClock


@dataclass(slots=True)
class Seen:
    """A fleet, and what gateways told of it."""

    view: FleetView
    told: dict[WorkerId, Load] = field(default_factory=dict)
    passed_over: set[WorkerId] = field(default_factory=set)

    def loads(self) -> dict[WorkerId, Load]:
        return self.told

    def avoided(self) -> set[WorkerId]:
        return self.passed_over


@dataclass(slots=True)
class Service:
    mesh: Mesh
    seen: Seen
    port: int

    async def call(self, method: str, request: Any, role: Role = Role.OPERATOR) -> Any:
        node = self.mesh.node(f"the {role.value}", role)
        async with inner_channel(f"127.0.0.1:{self.port}", node, Role.SCHEDULER) as channel:
            return await getattr(scheduler_pb2_grpc.FleetServiceStub(channel), method)(request, timeout=20)

    async def refusal(self, method: str, request: Any, role: Role = Role.OPERATOR) -> PenstockError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, request, role)
        return error_of(caught.value)


@pytest.fixture
async def service(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Service]:
    mesh = Mesh(tmp_path, clock)
    view = FleetView().with_changes(
        [
            worker("a", copy(), capacity=4),
            worker("b", copy(), capacity=4),
            worker("c", copy(), capacity=4),
            worker("d", copy(CopyState.LOADING)),
            worker("e", copy(), region="there"),
        ]
    )
    seen = Seen(view)

    def prospect(key: CandidateKey, abroad: bool) -> str:
        return f"{key.model} is to come {'anywhere' if abroad else key.region}"

    async with MemoryStore(clock=clock) as store:
        scheduler, policies = Scheduler(store, mesh.reader(), clock, Random(1)), RoutingPolicies(store, clock)
        explainer = Explainer(seen, seen, lambda: policies.current, HERE, Random(2), prospect=prospect)
        rooms = Rooms(routing=RoutingServicer(policies, explainer))
        servicer = FleetServicer(scheduler, Placements(store, scheduler.control, HERE), rooms)
        register = partial(scheduler_pb2_grpc.add_FleetServiceServicer_to_server, servicer)
        listen = Listen("127.0.0.1", 0, mesh.node("scheduler", Role.SCHEDULER))
        async with (
            serving([listen], [register], SERVICES, drain_grace_s=0.1) as running,
            policies.running(),
            scheduler.running(),
        ):
            await clock.advance(0.1)
            yield Service(mesh, seen, running.ports[0])


async def test_an_explanation_tells_of_every_copy(service: Service) -> None:
    seen = service.seen
    seen.told = {
        WorkerId("a"): Load(foreign_in_flight=4),
        WorkerId("b"): Load(foreign_in_flight=1, queued_rows=1, latency_ewma_ms=20.0),
    }
    seen.passed_over = {WorkerId("c")}
    told = await service.call("Explain", pb.ExplainRequest(model="digits"), Role.GATEWAY)
    assert (told.worker_id, told.version, told.why, told.strategy) == ("b", "1", "best score", "affinity")
    assert {each.worker_id: each.excluded_by for each in told.candidates} == {
        "b": "",
        "a": "room: holds 4 of 4 requests",
        "c": "passed over: its breaker is open for 5.0 s more",
        "d": "ready: LOADING",
        "e": "region: the request stays in region 'here'",
    }
    best = told.candidates[0]
    assert (best.worker_id, best.verdict) == ("b", "best score")
    assert {part.name: part.value for part in best.parts}["occupancy"] == 0.5
    assert best.score == sum(part.weight * part.value for part in best.parts)


async def test_a_refusal_is_explained_too(service: Service) -> None:
    told = await service.call("Explain", pb.ExplainRequest(model="absent"))
    assert told.worker_id == ""
    assert told.refusal == "UNKNOWN_MODEL: no worker holds a copy of model 'absent'; absent is to come here"


async def test_a_policy_is_set_read_and_followed(service: Service) -> None:
    rule = pb.RoutingRule(
        name="acme abroad",
        tenants=["acme"],
        strategy="least-loaded",
        shadow_strategy="cost",
        deny=[pb.WorkerSelector(worker_ids=["a"])],
    )
    request = pb.SetRoutingPolicyRequest(routing_policy=pb.RoutingPolicy(rules=[rule]), expected_generation=0)
    made = (await service.call("SetRoutingPolicy", request)).routing_policy
    assert made.generation == 1
    read = (await service.call("GetRoutingPolicy", pb.GetRoutingPolicyRequest(), Role.GATEWAY)).routing_policy
    assert read == made
    theirs = await service.call("Explain", pb.ExplainRequest(model="digits", tenant="acme"))
    assert (theirs.strategy, list(theirs.rules), theirs.worker_id) == ("least-loaded", ["acme abroad"], "b")
    assert (theirs.shadow_strategy, theirs.shadow_worker_id) == ("cost", "b")
    others = await service.call("Explain", pb.ExplainRequest(model="digits", tenant="other", strategy="round-robin"))
    assert (others.strategy, list(others.rules), others.worker_id) == ("round-robin", [], "a")
    late = await service.refusal("SetRoutingPolicy", request)
    assert late.code is Code.ABORTED
    assert "generation 1, not 0" in late.message


async def test_what_is_wrong_is_said(service: Service) -> None:
    wrong = pb.SetRoutingPolicyRequest(routing_policy=pb.RoutingPolicy(rules=[pb.RoutingRule(strategy="fastest")]))
    assert "rule 1: 'fastest' is no strategy" in (await service.refusal("SetRoutingPolicy", wrong)).message
    assert (await service.refusal("Explain", pb.ExplainRequest())).code is Code.INVALID_ARGUMENT


async def test_gateways_may_ask_but_not_set(service: Service) -> None:
    refused = await service.refusal("SetRoutingPolicy", pb.SetRoutingPolicyRequest(), Role.GATEWAY)
    assert refused.reason == "ROLE_REQUIRED"
    assert (await service.refusal("Explain", pb.ExplainRequest(model="digits"), Role.WORKER)).reason == "ROLE_REQUIRED"


async def test_a_scheduler_that_has_not_seen_etcd_knows_of_no_policy(tmp_path: Path, clock: ManualClock) -> None:
    async with MemoryStore(clock=clock) as store:
        servicer = RoutingServicer(RoutingPolicies(store, clock))
        with pytest.raises(PenstockError, match="has not reached etcd"):
            await servicer.GetRoutingPolicy(pb.GetRoutingPolicyRequest(), None)  # type: ignore[arg-type]
