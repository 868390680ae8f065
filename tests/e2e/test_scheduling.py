"""A whole mesh in which demand and memory decide what is loaded where, and rules decide which worker is asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import httpx
import openai
import pytest
from inference import grpc_service_pb2 as kserve
from openai.types.chat import ChatCompletionMessageParam

from runtime.identity import load_identity
from tests.support.adding import adding
from tests.support.commands import done, refused, until_shown
from tests.support.fleet_calls import READY, Operator, metric, operator_of
from tests.support.kserve_calls import Gateway, gateway_of
from tests.support.mesh import RunningMesh, running_mesh
from tests.support.slow_calls import SlowCalls, slow_calls
from tests.support.slow_model import settings_for, slow_model, slow_words, trust_operator
from tests.support.steady_load import digit_request

PLACES = 4
"""At each worker."""

IDLE_S = 3
TALK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is 12 plus 30?"}]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """Two workers, and models that nobody holds until they are wished for."""
    folder = tmp_path_factory.mktemp("scheduling")
    settings = {**settings_for(folder), "PENSTOCK_MAX_IN_FLIGHT": str(PLACES)}
    with running_mesh(folder / "data", settings=settings) as running:
        trust_operator(running, folder)
        for model in (slow_model(folder / "slow"), slow_words(folder / "words")):
            pushed = running.penstock("models", "push", str(model), "--copies", "0")
            assert pushed.returncode == 0, pushed.stderr
        yield running


@pytest.fixture
async def operator(mesh: RunningMesh) -> AsyncIterator[Operator]:
    async with operator_of(mesh) as made:
        yield made


@pytest.fixture
async def calls(mesh: RunningMesh) -> AsyncIterator[SlowCalls]:
    async with slow_calls(mesh, {"default": mesh.api_key}) as made:
        yield made


@pytest.fixture
async def gateway(mesh: RunningMesh) -> AsyncIterator[Gateway]:
    async with gateway_of(mesh) as made:
        yield made


async def test_models_on_demand_come_with_their_first_request_go_when_idle_and_come_again(
    mesh: RunningMesh, operator: Operator, calls: SlowCalls
) -> None:
    said = await done(mesh, "models", "load", "slow", "--on-demand", "--max-copies", "2")
    assert "will be loaded when somebody asks for it, on up to 2 workers" in said
    models = ("slow", "slow-words", "sums")
    async with openai.AsyncOpenAI(api_key=mesh.api_key, base_url=f"{mesh.http_url}/v1", max_retries=0, timeout=20) as http:

        async def chat() -> str | None:
            return (await http.chat.completions.create(model="sums", messages=TALK, temperature=0)).choices[0].message.content

        async def vector() -> list[float]:
            return (await http.embeddings.create(model="slow-words", input="0.25")).data[0].embedding

        await operator.wish("sums", 0)
        await asyncio.gather(*(operator.until_ready(model, 0) for model in models))
        for model in models:
            await operator.wish(model, 0, 2, idle_s=IDLE_S)
        for _ in range(2):  # and again
            await asyncio.gather(*(operator.until_ready(model, 0, within_s=IDLE_S + 15) for model in models))
            answered, text, embedding = await asyncio.gather(calls.ask("default", timeout_s=15), chat(), vector())
            assert answered.well, answered
            assert text is not None
            assert "42" in text
            assert embedding == [0.25]
            for model in models:
                assert list((await operator.copies(model)).values()) == [READY], "one is enough"


async def test_a_busy_model_gets_a_second_copy_and_gives_it_up_when_it_is_idle(operator: Operator, calls: SlowCalls) -> None:
    await operator.wish("slow", 0, 2, idle_s=IDLE_S)
    asking = calls.send("default", 6 * PLACES, 0.3)
    await operator.until_ready("slow", 2)
    answered = await asyncio.gather(*asking)
    assert all(each.well for each in answered), calls.ended
    # Both of them work: more than one copy could do at a time.
    both = calls.send("default", 2 * PLACES, 0.5)
    assert all(each.well for each in await asyncio.gather(*both))
    await operator.until_ready("slow", 1, within_s=IDLE_S + 20)


async def test_where_memory_is_short_the_least_recently_used_gives_way_and_never_what_was_wished_for(
    mesh: RunningMesh, operator: Operator, gateway: Gateway, tmp_path: Path
) -> None:
    copy_bytes = min(worker.memory_budget_bytes for worker in (await operator.workers()).values()) * 6 // 10
    for name in ("floor", "first", "second"):
        folder = adding(tmp_path / name, name, 1)
        description = folder / "model.toml"
        description.write_text(f"memory_bytes = {copy_bytes}\n{description.read_text()}")
        await done(mesh, "models", "push", str(folder), "--copies", "0")
    await operator.wish("floor", 1, memory_bytes=copy_bytes)
    await operator.until_ready("floor", 1)
    for name in ("first", "second"):
        await operator.wish(name, 0, 1, memory_bytes=copy_bytes)
    await gateway.ask("first")
    held = {name: await operator.copies(name) for name in ("floor", "first", "second")}
    assert [len(copies) for copies in held.values()] == [1, 1, 0]
    assert set(held["floor"]) != set(held["first"])

    # The other one was asked for a moment ago: who comes waits for it to be unused for long enough, and is told so.
    asking = asyncio.create_task(gateway.ask("second", timeout_s=60))
    await until_shown(mesh, "fleet", "explain", "second", says="it does not fit on any worker beside what is there")
    index = await gateway.stub.RepositoryIndex(kserve.RepositoryIndexRequest(), metadata=gateway.metadata)
    states = {entry.name: entry.state for entry in index.models}
    assert [states[name] for name in held] == ["READY", "READY", "UNAVAILABLE"]
    assert (await asking).added == 1
    assert await operator.copies("first") == {}
    assert await operator.copies("second") == held["first"]
    assert await operator.copies("floor") == held["floor"]
    for name in held:
        await operator.wish(name, 0)


async def test_rules_move_requests_from_worker_to_worker(
    mesh: RunningMesh, operator: Operator, gateway: Gateway, tmp_path: Path
) -> None:
    one, two = sorted(await operator.workers())
    rules = Rules(mesh, tmp_path / "rules.toml")
    plain = await done(mesh, "fleet", "explain", "digits")
    assert re.search(rf"digits 1 → ({one}|{two}): ", plain)
    assert "strategy affinity, by no rule" in plain

    await rules.set(
        f'name = "away"\nmodels = ["digits"]\nshadow_strategy = "least-loaded"\ndeny = [{{worker_ids = ["{one}"]}}]'
    )
    assert await asked_of(gateway, operator) == {two}
    shown = await done(mesh, "fleet", "explain", "digits")
    assert f"digits 1 → {two}: " in shown
    assert "by away" in shown
    assert f"shadow least-loaded → {two}" in shown
    assert "policy: a rule lets this request not go there (away)" in shown
    assert await metric(mesh, "gateway", "penstock_gateway_shadow_decisions_total", shadow="least-loaded") >= 20
    assert f'deny = [{{ worker_ids = ["{one}"] }}]' in await done(mesh, "fleet", "policy", "show")

    await rules.set(f'name = "rather"\nmodels = ["digits"]\nstrategy = "least-loaded"\nprefer = [{{worker_ids = ["{one}"]}}]')
    assert await asked_of(gateway, operator) == {one}
    shown = await done(mesh, "fleet", "explain", "digits")
    assert "strategy least-loaded, by rather" in shown
    assert "preference: a rule prefers others, and they have room" in shown

    await rules.set('name = "turns"\nmodels = ["digits"]\nstrategy = "round-robin"')
    assert await asked_of(gateway, operator) == {one, two}
    assert "strategy round-robin, by turns" in await done(mesh, "fleet", "explain", "digits")

    await rules.set('name = "nobody"\nmodels = ["digits"]\ndeny = [{}]')
    code, why = await denied(gateway)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "penstock fleet explain digits" in why
    assert "digits → nobody: DENIED" in await done(mesh, "fleet", "explain", "digits")
    assert "at generation 4, not 1; read it and decide again" in await rules.refused("generation = 1")
    assert "'best' is no strategy; these are: affinity" in await rules.refused('[[rules]]\nname = "x"\nstrategy = "best"')
    await rules.clear()
    await gateway.stub.ModelInfer(digit_request(), metadata=gateway.metadata, timeout=20)


async def until_offered(mesh: RunningMesh, model: str) -> None:
    """The gateway has heard that it is loaded when somebody asks for it."""
    async with httpx.AsyncClient(timeout=10) as client, asyncio.timeout(30):
        while True:
            answer = await client.get(f"{mesh.http_url}/v1/models", headers={"Authorization": f"Bearer {mesh.api_key}"})
            if any(each["id"] == model for each in answer.json()["data"]):
                return
            await asyncio.sleep(0.05)


async def test_rules_and_leaders_reach_gateways_from_a_scheduler_that_began_anew(
    mesh: RunningMesh, operator: Operator, gateway: Gateway, calls: SlowCalls, tmp_path: Path
) -> None:
    one, two = sorted(await operator.workers())
    rules = Rules(mesh, tmp_path / "rules.toml")
    await rules.set(f'name = "before"\nmodels = ["digits"]\nallow = [{{worker_ids = ["{one}"]}}]')
    assert await asked_of(gateway, operator) == {one}
    await operator.wish("slow", 0)
    await operator.until_ready("slow", 0)
    await operator.wish("slow", 0, 1)
    await until_offered(mesh, "slow")
    os.kill(mesh.pid_of("scheduler"), signal.SIGKILL)
    assert await asked_of(gateway, operator, settle=False) == {one}, "the last rules known hold on"
    # Nobody holds it and nobody leads: it is loaded once somebody does again.
    cold = asyncio.create_task(calls.ask("default"))
    await until_shown(mesh, "fleet", "policy", "show", says="before")
    assert await asked_of(gateway, operator, settle=False) == {one}
    assert (await cold).well, calls.ended
    await rules.set(f'name = "after"\nmodels = ["digits"]\nallow = [{{worker_ids = ["{two}"]}}]')
    assert await asked_of(gateway, operator) == {two}
    # Its queue gives places out: the gateway found the leader of the new term.
    granted = calls.send("default", 3 * PLACES, 0.05)
    assert all(each.well for each in await asyncio.gather(*granted)), calls.ended
    assert await metric(mesh, "scheduler", "penstock_capacity_granted_total") > 0
    await rules.clear()


@dataclass(frozen=True, slots=True)
class Rules:
    """The mesh's, as an operator sets them with a file."""

    mesh: RunningMesh
    file: Path

    async def set(self, rule: str) -> None:
        """This one alone. Returns when it was set, which is before gateways heard of it."""
        self.file.write_text(f"[[rules]]\n{rule}\n")
        assert "1 rule in force" in await done(self.mesh, "fleet", "policy", "set", str(self.file))

    async def refused(self, text: str) -> str:
        self.file.write_text(f"{text}\n")
        return await refused(self.mesh, "fleet", "policy", "set", str(self.file))

    async def clear(self) -> None:
        self.file.write_text("")
        await done(self.mesh, "fleet", "policy", "set", str(self.file))


async def asked_of(gateway: Gateway, operator: Operator, *, settle: bool = True) -> set[str]:
    """Which workers answer twenty requests made one after the other; `settle`: after as many that may go by older rules."""
    mesh, names = operator.mesh, ("worker-1", "worker-2")
    nodes = {name: load_identity(mesh.data / "identities" / name).node_id for name in names}
    for _ in range(20 if settle else 0):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await gateway.stub.ModelInfer(digit_request(), metadata=gateway.metadata, timeout=20)
    before = {name: await metric(mesh, name, "nv_inference_request_success", model="digits") for name in names}
    for _ in range(20):
        await gateway.stub.ModelInfer(digit_request(), metadata=gateway.metadata, timeout=20)
    after = {name: await metric(mesh, name, "nv_inference_request_success", model="digits") for name in names}
    assert sum(after.values()) - sum(before.values()) == 20
    return {str(nodes[name]) for name in names if after[name] > before[name]}


async def denied(gateway: Gateway) -> tuple[grpc.StatusCode, str]:
    """How a request fails, once it does."""
    async with asyncio.timeout(10):
        while True:
            try:
                await gateway.stub.ModelInfer(digit_request(), metadata=gateway.metadata, timeout=20)
            except grpc.aio.AioRpcError as failure:
                return failure.code(), failure.details() or ""
