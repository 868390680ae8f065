"""A worker dies or falls silent while it generates for many: every text comes out as it would have."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import grpc.aio
import httpx
import pytest
from inference import grpc_service_pb2, grpc_service_pb2_grpc

from tests.support.mesh import RunningMesh, running_mesh
from tests.support.waiting import eventually

QUESTION = "What is 12 plus 30?"
CALLERS = 16
BEGUN = 40
"""Answers of all of them together after which the worker goes: some texts have begun, most have not ended."""
SILENCE_S = 3.0
ROUNDS = 12

Texts = Callable[["Reading", int], AsyncIterator[str]]


@pytest.fixture(scope="module")
def own_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("migration") / "data") as mesh:
        yield mesh


@dataclass
class Reading:
    """What many callers have read so far."""

    mesh: RunningMesh
    seen: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    longest_wait_s: float = 0.0

    async def whole(self, texts: Texts, seed: int) -> str:
        parts, loop = [], asyncio.get_running_loop()
        since_s = loop.time()
        async for part in texts(self, seed):
            self.longest_wait_s = max(self.longest_wait_s, loop.time() - since_s)
            since_s = loop.time()
            parts.append(part)
            self.seen += 1
            if self.seen >= BEGUN:
                self.begun.set()
        return "".join(parts)


async def openai_texts(reading: Reading, seed: int) -> AsyncIterator[str]:
    """Over HTTP through Envoy, at most as hot as OpenAI allows."""
    body = {
        "model": "sums",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 2.0,
        "seed": seed,
        "stream": True,
    }
    headers = {"authorization": f"Bearer {reading.mesh.api_key}"}
    url = f"{reading.mesh.http_url}/v1/chat/completions"
    async with httpx.AsyncClient(timeout=30) as client, client.stream("POST", url, json=body, headers=headers) as answer:
        assert answer.status_code == 200
        finished = False
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                finished = finished or choice["finish_reason"] is not None
                yield choice["delta"].get("content") or ""
        assert finished


async def kserve_texts(reading: Reading, seed: int) -> AsyncIterator[str]:
    request = grpc_service_pb2.ModelInferRequest(model_name="sums")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(QUESTION.encode())
    request.parameters["temperature"].double_param = 3.0
    request.parameters["seed"].int64_param = seed
    metadata = (("authorization", f"Bearer {reading.mesh.api_key}"),)
    async with grpc.aio.insecure_channel(reading.mesh.grpc_address) as channel:
        call = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(metadata=metadata, timeout=30)
        await call.write(request)
        await call.done_writing()
        async for answer in call:
            assert not answer.error_message, answer.error_message
            for raw in answer.infer_response.raw_output_contents:
                yield raw[4:].decode()


SEEDS: dict[Texts, tuple[int, ...]] = {openai_texts: (29, 21, 12, 25), kserve_texts: (4, 10, 3, 7)}
"""By which the demo model says much."""


@pytest.mark.parametrize("texts", SEEDS, ids=["OpenAI over HTTP", "KServe over gRPC"])
async def test_killed_while_it_generates(own_mesh: RunningMesh, texts: Texts) -> None:
    await _migrated(own_mesh, texts, signal.SIGKILL)


async def test_silent_while_it_generates(own_mesh: RunningMesh) -> None:
    """It keeps its connections, and its lease lasts for a quarter of a minute; its generations go on after seconds."""
    reading = await _migrated(own_mesh, kserve_texts, signal.SIGSTOP)
    assert reading.longest_wait_s > SILENCE_S / 2


async def _migrated(mesh: RunningMesh, texts: Texts, what: signal.Signals) -> Reading:
    """The two workers in turn until one had a generation under way when it happened: which has is for the policy to say."""
    expected, before = await _unbroken(mesh, texts), _migrations(mesh)
    for number in range(ROUNDS):
        await eventually(lambda: _all_serve(mesh), patience_s=40)
        victim, reading = mesh.pid_of(f"worker-{1 + number % 2}"), Reading(mesh)
        try:
            made = await _read_while(reading, texts, partial(os.kill, victim, what))
        finally:
            if what is signal.SIGSTOP:
                os.kill(victim, signal.SIGCONT)
        assert made == expected
        if _migrations(mesh) > before:
            return reading
    raise AssertionError("no generation was under way at any of the workers that went")


async def _read_while(reading: Reading, texts: Texts, happens: Callable[[], None]) -> list[str]:
    async with asyncio.TaskGroup() as group:
        seeds = SEEDS[texts] * (CALLERS // len(SEEDS[texts]))
        tasks = [group.create_task(reading.whole(texts, seed)) for seed in seeds]
        await reading.begun.wait()
        happens()
    return [task.result() for task in tasks]


async def _unbroken(mesh: RunningMesh, texts: Texts) -> list[str]:
    once = [await Reading(mesh).whole(texts, seed) for seed in SEEDS[texts]]
    assert sum(map(len, once)) > BEGUN
    return once * (CALLERS // len(once))


def _migrations(mesh: RunningMesh) -> float:
    port = json.loads((mesh.data / "run" / "gateway.json").read_text())["metrics_port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("penstock_gateway_migrations_total{") and '"yes"' in line
    )


def _all_serve(mesh: RunningMesh) -> bool:
    shown = mesh.penstock("fleet").stdout
    return shown.count("sums 1: READY") == 2 and "no answer" not in shown
