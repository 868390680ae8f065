"""ModelService over mTLS: who may call what by its certificate, refusals on the wire and in the trail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from penstock.registry.v1 import models_pb2, models_pb2_grpc

from registry.access.door import NodeDoor
from registry.access.types import ScopeRequired
from registry.audit.audited import audited
from registry.audit.bounded import BoundedTrail
from registry.models.servicer import SERVICE, ModelServicer
from registry.models.types import AliasChanged
from registry.seals import RowAltered
from runtime.errors import PenstockError
from runtime.identity import NodeIdentity, Role
from runtime.manifests import sign_manifest
from tests.registry.harness import Ground, Served, refusal, served
from tests.registry.models.rig import ROOT, WEIGHTS, Desk, manifest

Call = Callable[[models_pb2_grpc.ModelServiceStub], Awaitable[object]]
WRITES: dict[str, Call] = {
    "create": lambda stub: stub.CreateModel(models_pb2.CreateModelRequest(model="x", tenant="acme")),
    "share": lambda stub: stub.ShareModel(models_pb2.ShareModelRequest(model="digits")),
    "publish": lambda stub: stub.PublishVersion(
        models_pb2.PublishVersionRequest(manifest=sign_manifest(ROOT, manifest(version="2")))
    ),
    "withdraw": lambda stub: stub.WithdrawVersion(models_pb2.WithdrawVersionRequest(model="digits", version="1")),
    "move": lambda stub: stub.MoveAlias(models_pb2.MoveAliasRequest(model="digits", alias="canary", version="1")),
    "promote": lambda stub: stub.PromoteAlias(models_pb2.PromoteAliasRequest(model="digits", alias="canary")),
    "roll back": lambda stub: stub.RollBackAlias(models_pb2.RollBackAliasRequest(model="digits", alias="stable")),
    "remove": lambda stub: stub.RemoveAlias(models_pb2.RemoveAliasRequest(model="digits", alias="stable")),
}
READS: dict[str, Call] = {
    "list": lambda stub: stub.ListModels(models_pb2.ListModelsRequest()),
    "get": lambda stub: stub.GetVersion(models_pb2.GetVersionRequest(model="digits")),
    "moves": lambda stub: stub.ListAliasMoves(models_pb2.ListAliasMovesRequest(model="digits")),
    "signers": lambda stub: stub.ListSigners(models_pb2.ListSignersRequest()),
}
SETTLE: Call = lambda stub: stub.SettleAlias(models_pb2.SettleAliasRequest(model="digits", alias="x", generation=1))  # noqa: E731
REVOKE: Call = lambda stub: stub.RevokeSigner(models_pb2.RevokeSignerRequest(signer_id="0" * 20))  # noqa: E731


@pytest.fixture
async def server(sqlite_ground: Ground, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Served]:
    desk = Desk(sqlite_ground)
    await desk.create()
    await desk.store(WEIGHTS, "acme")
    await desk.publish(1)
    bounded = BoundedTrail(sqlite_ground.trail, sqlite_ground.clock)
    servicer = ModelServicer(
        door=NodeDoor(),
        database=sqlite_ground.database,
        seals=sqlite_ground.seals,
        trail=sqlite_ground.trail,
        bounded=bounded,
        roots=lambda: frozenset({bytes(ROOT.verify_key)}),
        clock=sqlite_ground.clock,
    )
    async with served([audited(servicer.register, bounded)], identities, [SERVICE]) as running:
        yield running


async def stub_of(server: Served, role: Role) -> models_pb2_grpc.ModelServiceStub:
    return models_pb2_grpc.ModelServiceStub(await server.channel(role))


async def refused(server: Served, role: Role, call: Call) -> PenstockError:
    return await refusal(call(await stub_of(server, role)))


async def test_readers_read_and_others_do_not(server: Served) -> None:
    for call in READS.values():
        for role in (Role.OPERATOR, Role.GATEWAY, Role.SCHEDULER, Role.WORKER):
            await call(await stub_of(server, role))
        for role in (Role.REGISTRY, Role.ENVOY):
            assert isinstance(await refused(server, role, call), ScopeRequired)


@pytest.mark.parametrize("name", sorted(WRITES))
async def test_who_may_not_change_models_is_refused_and_noted(server: Served, sqlite_ground: Ground, name: str) -> None:
    for role in (Role.SCHEDULER, Role.WORKER, Role.REGISTRY, Role.ENVOY):
        assert isinstance(await refused(server, role, WRITES[name]), ScopeRequired)
    outcomes = [outcome for _, _, outcome in await sqlite_ground.actions()]
    assert outcomes == ["done", "done"] + ["refused"] * 4
    assert await sqlite_ground.count("aliases") == 0


async def test_settling_is_the_schedulers_and_signers_the_operators(server: Served) -> None:
    for role in (Role.GATEWAY, Role.WORKER, Role.ENVOY):
        for call in (SETTLE, REVOKE):
            assert isinstance(await refused(server, role, call), ScopeRequired)
    assert isinstance(await refused(server, Role.SCHEDULER, REVOKE), ScopeRequired)
    assert isinstance(await refused(server, Role.SCHEDULER, SETTLE), AliasChanged)


async def test_a_life_of_a_model_on_the_wire(server: Served) -> None:
    stub, scheduler = await stub_of(server, Role.OPERATOR), await stub_of(server, Role.SCHEDULER)
    await WRITES["publish"](stub)
    await stub.MoveAlias(models_pb2.MoveAliasRequest(model="digits", alias="stable", version="1", immediate=True))
    move = models_pb2.MoveAliasRequest(model="digits", alias="canary", version="2", weight=10, expected_version="")
    waiting = (await stub.MoveAlias(move)).alias
    assert isinstance(await refusal(stub.MoveAlias(move)), AliasChanged)
    settle = models_pb2.SettleAliasRequest(model="digits", alias="canary", generation=waiting.generation)
    await scheduler.SettleAlias(settle)
    await stub.PromoteAlias(models_pb2.PromoteAliasRequest(model="digits", alias="canary", immediate=True))
    await stub.WithdrawVersion(models_pb2.WithdrawVersionRequest(model="digits", version="2", reason="it lies"))
    (model,) = (await stub.ListModels(models_pb2.ListModelsRequest())).models
    assert [(alias.alias, alias.version) for alias in model.aliases] == [("stable", "1")]
    moves = (await stub.ListAliasMoves(models_pb2.ListAliasMovesRequest(model="digits", alias="stable"))).moves
    assert [(move.from_version, move.to_version) for move in moves] == [("2", "1"), ("1", "2"), ("", "1")]


async def test_an_altered_row_is_noted_as_tampering(server: Served, sqlite_ground: Ground) -> None:
    await sqlite_ground.execute("UPDATE versions SET engine = 'llm'")
    assert isinstance(await refused(server, Role.WORKER, READS["get"]), RowAltered)
    (action, _, outcome) = (await sqlite_ground.actions())[-1]
    assert (action, outcome) == ("tampering", "failed")


async def test_one_altered_row_keeps_nobody_from_the_list(server: Served, sqlite_ground: Ground) -> None:
    stub = await stub_of(server, Role.OPERATOR)
    await stub.CreateModel(models_pb2.CreateModelRequest(model="sound", tenant="acme"))
    for statement, left in (
        ("UPDATE versions SET engine = 'llm'", {"digits": 0, "sound": 0}),
        ("UPDATE models SET description = 'another' WHERE model = 'digits'", {"sound": 0}),
    ):
        await sqlite_ground.execute(statement)
        answer = await stub.ListModels(models_pb2.ListModelsRequest())
        assert {model.model: len(model.versions) for model in answer.models} == left
        (action, _, outcome) = (await sqlite_ground.actions())[-1]
        assert (action, outcome) == ("tampering", "failed")
