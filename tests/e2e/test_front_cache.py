"""Answers that gateways give again, over a whole mesh: said at every door, counted, never another tenant's or version's."""

from __future__ import annotations

import shutil
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from inference import grpc_service_pb2 as kserve

from tests.support.adding import adding
from tests.support.commands import done
from tests.support.fleet_calls import metric
from tests.support.kserve_calls import Answer, Gateway, gateway_of
from tests.support.mesh import ROOT, RunningMesh, running_mesh

HEADER = "x-penstock-cache"
CHAT = {"model": "remembered", "messages": [{"role": "user", "content": "12+34"}], "temperature": 0}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("cache")
    with running_mesh(folder / "data", "--workers", "1") as running:
        models = (declared(adding(folder / "one", "added", 1)), text_model(folder / "text"))
        for model in models:
            pushed = running.penstock("models", "push", str(model), "--shared-with", "*", "--copies", "1")
            assert pushed.returncode == 0, pushed.stderr
        yield running


def declared(folder: Path) -> Path:
    """The model says that the same request gets the same answer."""
    description = folder / "model.toml"
    description.write_text(f"response_cache = true\n{description.read_text()}")
    return folder


def text_model(folder: Path) -> Path:
    shutil.copytree(ROOT / "cli" / "demo" / "sums", folder)
    description = folder / "model.toml"
    description.write_text(description.read_text().replace('name = "sums"', 'name = "remembered"'))
    return declared(folder)


@dataclass(frozen=True, slots=True)
class Asking:
    """A key at both doors."""

    gateway: Gateway
    http: httpx.AsyncClient

    async def grpc(self, value: float, model: str = "added") -> tuple[str, float]:
        """What the header says, and the answer."""
        request = kserve.ModelInferRequest(model_name=model, id=f"number {value}")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
        request.raw_input_contents.append(struct.pack("<f", value))
        call = self.gateway.stub.ModelInfer(request, metadata=self.gateway.metadata, timeout=30)
        answer, headers = await call, dict(await call.initial_metadata())
        assert answer.id == request.id
        return str(headers.get(HEADER)), struct.unpack("<f", answer.raw_output_contents[0])[0]

    async def rest(self, value: float) -> tuple[str | None, float]:
        inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}]
        answer = await self._posted("/v2/models/added/infer", {"inputs": inputs})
        return answer.headers.get(HEADER), answer.json()["outputs"][0]["data"][0]

    async def chat(self, **more: object) -> tuple[str | None, str]:
        answer = await self._posted("/v1/chat/completions", {**CHAT, **more})
        return answer.headers.get(HEADER), answer.text

    async def _posted(self, path: str, body: object) -> httpx.Response:
        answer = await self.http.post(path, json=body, headers=dict(self.gateway.metadata))
        assert answer.status_code == 200, answer.text
        return answer

    def of(self, secret: str) -> Asking:
        return Asking(self.gateway.with_key(secret), self.http)


@pytest.fixture
async def asking(mesh: RunningMesh) -> AsyncIterator[Asking]:
    async with gateway_of(mesh) as gateway, httpx.AsyncClient(base_url=mesh.http_url, timeout=30) as http:
        yield Asking(gateway, http)


async def test_tensors_are_given_again_at_both_doors(mesh: RunningMesh, asking: Asking) -> None:
    before = await metric(mesh, "gateway", "penstock_gateway_cache_requests_total", model="added", found="yes")
    assert await asking.grpc(10.0) == ("miss", 11.0)
    assert await asking.grpc(10.0) == ("hit", 11.0)
    assert await asking.grpc(12.0) == ("miss", 13.0)
    assert (await asking.rest(20.0))[1] == 21.0
    assert await asking.rest(20.0) == ("hit", 21.0)
    statistics = kserve.ModelStatisticsRequest(name="added")
    told = await asking.gateway.stub.ModelStatistics(statistics, metadata=asking.gateway.metadata, timeout=10)
    (counted,) = told.model_stats
    assert counted.inference_stats.cache_hit.count == 2
    assert counted.inference_stats.cache_miss.count >= 3
    after = await metric(mesh, "gateway", "penstock_gateway_cache_requests_total", model="added", found="yes")
    assert after - before == 2


async def test_text_is_given_again_whole_and_in_events(asking: Asking) -> None:
    first, again = await asking.chat(), await asking.chat()
    assert (first[0], again[0]) == ("miss", "hit")
    assert '"12 + 34 = 46"' in again[1]
    streamed, streamed_again = await asking.chat(stream=True), await asking.chat(stream=True)
    assert (streamed[0], streamed_again[0]) == ("miss", "hit"), "events are asked for in another way than one answer"
    assert all(each.rstrip().endswith("data: [DONE]") for each in (streamed[1], streamed_again[1]))
    hot = [await asking.chat(temperature=1.0) for _ in range(2)]
    assert "hit" not in {each[0] for each in hot}, "what chance has a part in is not given again"


async def test_another_tenant_never_hits_and_models_that_say_nothing_are_not_looked_for(
    mesh: RunningMesh, asking: Asking
) -> None:
    secret = (await done(mesh, "keys", "create", "stranger", "--tenant", "stranger")).strip()
    assert await asking.grpc(30.0) == ("miss", 31.0)
    assert await asking.of(secret).grpc(30.0) == ("miss", 31.0)
    assert await asking.of(secret).grpc(30.0) == ("hit", 31.0)
    assert (await asking.chat(model="sums"))[0] is None


async def test_a_new_version_answers_itself(mesh: RunningMesh, asking: Asking, tmp_path: Path) -> None:
    assert await asking.grpc(40.0) == ("miss", 41.0)
    assert await asking.grpc(40.0) == ("hit", 41.0)
    await done(mesh, "models", "push", str(declared(adding(tmp_path / "two", "added", 2))), "--copies", "1")
    await asking.gateway.until_only("added", Answer(2.0, "2"))
    assert await asking.grpc(40.0) == ("miss", 42.0)
    assert await asking.grpc(40.0) == ("hit", 42.0)
