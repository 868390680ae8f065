"""Rules that name others, over a whole mesh: fallbacks, "auto", versions that stick, a second worker where one is slow."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.adding import adding
from tests.support.commands import done
from tests.support.doors import REQUEST_S, doors_of
from tests.support.fleet_calls import metric, operator_of
from tests.support.kserve_calls import Answer, Gateway, gateway_of
from tests.support.mesh import RunningMesh, running_mesh
from tests.support.upstream_server import UpstreamServer, openai_answer, upstream_thread

POLICY = """
[[rules]]
name = "tensors"
models = ["first"]
fallbacks = ["second"]

[[rules]]
name = "text"
models = ["sums"]
fallbacks = ["echo"]

[[rules]]
name = "upstream"
models = ["echo"]
fallbacks = ["sums"]
fallback_on = ["overload", "failure"]

[[rules]]
name = "auto"
auto_models = ["echo", "sums"]

[[rules]]
name = "canary"
models = ["canaried"]
sticky_versions = true

[[rules]]
name = "hedged"
models = ["digits"]
hedge_quantile = 0.95
"""
UPSTREAM = """
name = "echo"
engine = "upstream"
task = "chat"
capabilities = ["tools"]
cost_per_million_tokens = 5.0
[[inputs]]
name = "text_input"
datatype = "BYTES"
shape = [1]
[[outputs]]
name = "text_output"
datatype = "BYTES"
shape = [1]
"""
PATIENCE_S = 60.0
KEYS = 12
TOOLS = [{"type": "function", "function": {"name": "echo", "parameters": {}}}]


@dataclass(frozen=True, slots=True)
class Chat:
    status: int
    model: str
    """By the header; empty: the one that was asked for."""
    body: dict[str, object]
    text: str


@dataclass(frozen=True, slots=True)
class Ruled:
    mesh: RunningMesh
    upstream: UpstreamServer

    async def chat(self, model: str, text: str, **more: object) -> Chat:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **more}
        headers = {"authorization": f"Bearer {self.mesh.api_key}"}
        async with httpx.AsyncClient(base_url=self.mesh.http_url, timeout=REQUEST_S) as client:
            answer = await client.post("/v1/chat/completions", json=body, headers=headers)
        told = {} if more.get("stream") else answer.json()
        return Chat(answer.status_code, answer.headers.get("x-penstock-model", ""), told, answer.text)


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ruled]:
    folder = tmp_path_factory.mktemp("ruled")
    (folder / "policy.toml").write_text(POLICY)
    settings = {"PENSTOCK_UPSTREAM_HOSTS": '["127.0.0.1"]'}
    with upstream_thread(openai_answer) as upstream, running_mesh(folder / "data", settings=settings) as mesh:
        models = [
            adding(folder / "first", "first", 1),
            adding(folder / "second", "second", 2),
            pushed_upstream(folder, upstream),
        ]
        words: list[tuple[str, ...]] = [("models", "push", str(model), "--shared-with", "*") for model in models]
        canaried = [adding(folder / f"canaried-{number}", "canaried", number) for number in (1, 2)]
        words += [
            ("models", "push", str(canaried[0]), "--alias", "stable", "--shared-with", "*"),
            ("models", "push", str(canaried[1]), "--alias", "canary=50", "--shared-with", "*"),
            ("fleet", "policy", "set", str(folder / "policy.toml")),
        ]
        for each in words:
            asked = mesh.penstock(*each)
            assert asked.returncode == 0, asked.stderr
        yield Ruled(mesh, upstream)


def pushed_upstream(folder: Path, upstream: UpstreamServer) -> Path:
    made = folder / "echo"
    made.mkdir()
    (made / "model.toml").write_text(UPSTREAM)
    (made / "upstream.toml").write_text(f'api = "openai"\nbase_url = "{upstream.url}/v1"\nmodel = "echo"\n')
    return made


@pytest.fixture
async def in_force(ruled: Ruled) -> Ruled:
    """Once the gateway has heard of the rules."""
    async with asyncio.timeout(PATIENCE_S):
        while (await ruled.chat("auto", "12+34")).status != 200:
            await asyncio.sleep(0.1)
    return ruled


async def test_what_one_model_refuses_another_one_answers(in_force: Ruled) -> None:
    assert (await in_force.chat("echo", "one two")).model == ""
    full = await in_force.chat("echo", "refuse")
    assert (full.status, full.model, full.body["model"]) == (200, "sums", "sums")
    events = await in_force.chat("echo", "refuse", stream=True)
    assert (events.status, events.model) == (200, "sums")
    assert '"model": "sums"' in events.text or '"model":"sums"' in events.text
    long = "1 " * 600
    answered = await in_force.chat("sums", long)
    assert (answered.status, answered.model, answered.body["model"]) == (200, "echo", "echo"), "more than its context has"
    assert await metric(in_force.mesh, "gateway", "penstock_gateway_fallbacks_total", model="sums", to="echo") >= 1


async def test_a_model_that_is_gone_is_stood_in_for_at_every_door(in_force: Ruled) -> None:
    mesh = in_force.mesh
    inputs = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}
    async with gateway_of(mesh) as gateway, operator_of(mesh) as operator, doors_of(mesh, mesh.api_key) as doors:
        assert (await gateway.ask("first")).added == 1.0
        await done(mesh, "models", "unload", "first")
        await operator.until_ready("first", 0)
        assert (await gateway.ask("first")).added == 2.0
        answer = await doors.asked("/v2/models/first/infer", inputs)
        assert '"model_name":"second"' in answer.text, answer
        assert '"data":[3.0]' in answer.text
        await done(mesh, "models", "load", "first", "--copies", "2")
        await eventually_added(gateway, "first", 1.0)


async def test_auto_chooses_by_what_is_asked(in_force: Ruled) -> None:
    plain = await in_force.chat("auto", "12+34")
    assert (plain.status, plain.model, plain.body["model"]) == (200, "echo", "echo"), "the only one that says what it costs"
    tools = await in_force.chat("auto", "two words", tools=TOOLS)
    assert (tools.status, tools.model) == (200, "echo")
    logprobs = await in_force.chat("auto", "12+34", logprobs=True)
    assert (logprobs.status, logprobs.model) == (200, "sums"), "the other one cannot tell them"
    neither = await in_force.chat("auto", "12+34", logprobs=True, tools=TOOLS)
    assert neither.status == 404
    assert "'auto' finds no model for" in neither.text


async def test_a_key_keeps_to_one_version_of_a_canary(in_force: Ruled) -> None:
    mesh = in_force.mesh
    secrets = [(await done(mesh, "keys", "create", f"key-{number}")).strip() for number in range(KEYS)]
    async with gateway_of(mesh) as gateway:
        seen = {secret: Counter([await gateway.with_key(secret).ask("canaried") for _ in range(8)]) for secret in secrets}
    assert all(len(answers) == 1 for answers in seen.values()), seen
    assert {answer for answers in seen.values() for answer in answers} <= {Answer(1.0, "1"), Answer(2.0, "2")}
    assert len({answer for answers in seen.values() for answer in answers}) == 2, "by chance all the same: once in 2,000 times"


async def test_a_second_worker_answers_where_the_first_is_slow(in_force: Ruled) -> None:
    mesh = in_force.mesh
    async with operator_of(mesh) as operator, doors_of(mesh, mesh.api_key) as doors:
        await operator.until_ready("digits", 2, within_s=PATIENCE_S)
        assert {(await doors.grpc()).outcome for _ in range(150)} == {"ok"}
        before = await metric(mesh, "gateway", "penstock_gateway_hedges_total", outcome="won")
        for number in (1, 2):  # whom requests go to is for the policy to say
            victim = mesh.pid_of(f"worker-{number}")
            os.kill(victim, signal.SIGSTOP)
            try:
                assert {(await doors.grpc()).outcome for _ in range(10)} == {"ok"}
            finally:
                os.kill(victim, signal.SIGCONT)
        assert await metric(mesh, "gateway", "penstock_gateway_hedges_total", outcome="won") > before


async def test_a_worker_that_dies_fails_nobody(in_force: Ruled) -> None:
    """The last of these tests: what it held is not back at once."""
    mesh = in_force.mesh
    async with gateway_of(mesh) as gateway, operator_of(mesh) as operator:
        await asyncio.gather(*(operator.until_ready(model, 2, within_s=PATIENCE_S) for model in ("first", "second")))
        asking = [asyncio.create_task(asked_often(gateway)) for _ in range(4)]
        await asyncio.sleep(0.2)
        os.kill(mesh.pid_of("worker-1"), signal.SIGKILL)
        added = set[float]().union(*await asyncio.gather(*asking))
        assert added <= {1.0, 2.0}


async def asked_often(gateway: Gateway) -> set[float]:
    return {(await gateway.ask("first", timeout_s=REQUEST_S)).added for _ in range(200)}


async def eventually_added(gateway: Gateway, model: str, amount: float) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await gateway.ask(model, timeout_s=REQUEST_S)).added != amount:
            await asyncio.sleep(0.1)
