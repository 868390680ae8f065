"""One tenant tries what another has, in a whole mesh: by every name, at every door. It is answered as if nothing were there."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from inference import grpc_service_pb2 as kserve
from inference import grpc_service_pb2_grpc

from tests.support.adding import adding
from tests.support.commands import done
from tests.support.mesh import RunningMesh, running_mesh

pytestmark = pytest.mark.asyncio(loop_scope="module")

THEIRS, ABSENT = "treasure", "nosuches"
"""A model of the first tenant, and none of anybody; names of one length."""

NAMES = ("", ":1", ":2", ":stable", "@1", "@stable")
VERSIONS = ("", "1", "2", "7", "stable")
DAY = 100_000


@dataclass(slots=True)
class Tenants:
    mesh: RunningMesh
    http: httpx.AsyncClient
    stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub
    keys: Mapping[str, str]

    def metadata(self, who: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.keys[who]}"),)

    async def call(self, who: str, rpc: str, request: Message) -> tuple[str, str]:
        """The code, and what was said, or answered."""
        try:
            answer = await getattr(self.stub, rpc)(request, metadata=self.metadata(who), timeout=30)
        except grpc.aio.AioRpcError as failure:
            return failure.code().name, failure.details() or ""
        return "OK", str(answer)

    async def web(self, who: str, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self.http.request(method, path, json=body, headers=dict(self.metadata(who)))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("tenants") / "data", "--workers", "1", "--no-demo") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenants(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tenants]:
    folder = tmp_path_factory.mktemp("models")
    await done(mesh, "models", "push", str(_kept(folder / "one", THEIRS, 1)), "--copies", "1", "--alias", "stable")
    await done(mesh, "models", "push", str(_kept(folder / "two", THEIRS, 2)), "--copies", "1")
    await done(mesh, "models", "push", str(_kept(folder / "common", "common", 3)), "--copies", "1")
    await done(mesh, "models", "share", "common", "--with", "*")
    await done(mesh, "limits", "set", "--each-tenant", "--requests-per-day", str(DAY))
    keys = {"theirs": mesh.api_key}
    for role in ("owner", "caller"):
        keys[role] = (await done(mesh, "keys", "create", role, "--tenant", "globex", "--role", role)).strip()
    async with (
        grpc.aio.insecure_channel(mesh.grpc_address) as channel,
        httpx.AsyncClient(base_url=mesh.http_url, timeout=60) as http,
    ):
        yield Tenants(mesh, http, grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel), keys)


def _kept(folder: Path, name: str, amount: int) -> Path:
    """A model whose answers are kept."""
    adding(folder, name, amount)
    description = folder / "model.toml"
    description.write_text(description.read_text().replace('task = "tensor"', 'task = "tensor"\nresponse_cache = true'))
    return folder


def infer(model: str, version: str = "", value: float = 1.0) -> kserve.ModelInferRequest:
    request = kserve.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<f", value))
    return request


def asked(model: str) -> dict[str, Message]:
    """Every RPC that takes the name of a model."""
    found: dict[str, Message] = {f"ModelInfer {version}": infer(model, version) for version in VERSIONS}
    found |= {f"ModelInfer as {name}": infer(model + name) for name in NAMES}
    for version in VERSIONS:
        found |= {
            f"ModelReady {version}": kserve.ModelReadyRequest(name=model, version=version),
            f"ModelMetadata {version}": kserve.ModelMetadataRequest(name=model, version=version),
            f"ModelConfig {version}": kserve.ModelConfigRequest(name=model, version=version),
            f"ModelStatistics {version}": kserve.ModelStatisticsRequest(name=model, version=version),
        }
    found["TraceSetting"] = kserve.TraceSettingRequest(model_name=model)
    found["RepositoryModelLoad"] = kserve.RepositoryModelLoadRequest(model_name=model)
    found["RepositoryModelUnload"] = kserve.RepositoryModelUnloadRequest(model_name=model)
    return found


PATHS = (
    ("GET", "/v1/models/{}"),
    ("GET", "/v1/models/{}:1"),
    ("GET", "/v1/models/{}@stable"),
    ("GET", "/v2/models/{}"),
    ("GET", "/v2/models/{}/ready"),
    ("GET", "/v2/models/{}/config"),
    ("GET", "/v2/models/{}/stats"),
    ("GET", "/v2/models/{}/versions/1"),
    ("GET", "/v2/models/{}/versions/stable/ready"),
    ("GET", "/v2/models/{}/versions/2/config"),
    ("GET", "/v2/models/{}/versions/2/stats"),
    ("GET", "/v2/models/{}/trace/setting"),
    ("POST", "/v2/models/{}/infer"),
    ("POST", "/v2/models/{}/versions/1/infer"),
    ("POST", "/v2/models/{}/generate"),
    ("POST", "/v2/repository/models/{}/load"),
    ("POST", "/v2/repository/models/{}/unload"),
)
REST_BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}], "text_input": "x"}


async def test_the_owner_finds_it_all(tenants: Tenants) -> None:
    """Else nothing here would tell anything."""
    for version in ("", "1", "2", "stable"):
        assert (await tenants.call("theirs", "ModelInfer", infer(THEIRS, version)))[0] == "OK", version
    assert (await tenants.web("theirs", "GET", f"/v2/models/{THEIRS}/config")).status_code == 200
    assert THEIRS in (await tenants.web("theirs", "GET", "/v1/models")).text


@pytest.mark.parametrize("who", ["owner", "caller"])
async def test_a_model_of_another_is_not_there_over_grpc(tenants: Tenants, who: str) -> None:
    absent = asked(ABSENT)
    for name, request in asked(THEIRS).items():
        code, said = await tenants.call(who, name.partition(" ")[0], request)
        expected = await tenants.call(who, name.partition(" ")[0], absent[name])
        assert (code, said.replace(THEIRS, "it")) == (expected[0], expected[1].replace(ABSENT, "it")), name
        assert code in ("OK", "NOT_FOUND", "PERMISSION_DENIED", "INVALID_ARGUMENT", "UNIMPLEMENTED"), (name, said)
        assert code != "OK" or name.startswith("ModelReady"), name


@pytest.mark.parametrize("who", ["owner", "caller"])
async def test_a_model_of_another_is_not_there_over_http(tenants: Tenants, who: str) -> None:
    volatile = {"date", "x-request-id", "openai-processing-ms", "x-penstock-overhead-ms"}
    for method, path in PATHS:
        shown = []
        for model in (THEIRS, ABSENT):
            body = None if method == "GET" or "/repository/" in path else REST_BODY
            answer = await tenants.web(who, method, path.format(model), body)
            limits = {name for name in answer.headers if name.startswith("x-ratelimit")}
            headers = {name: value for name, value in answer.headers.items() if name not in volatile | limits}
            shown.append((answer.status_code, answer.text.replace(model, "it"), headers))
        assert shown[0] == shown[1], path
        assert shown[0][0] in (400, 403, 404), (path, shown)


@pytest.mark.parametrize("name", [f"{THEIRS}{suffix}" for suffix in NAMES] + ["auto", f"auto:{THEIRS}"])
async def test_no_name_in_a_chat_leads_there(tenants: Tenants, name: str) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
    ):
        for more in ({}, {"models": [THEIRS], "fallbacks": [THEIRS], "route": "fallback"}):
            answer = await tenants.web("owner", "POST", path, {"model": name, **body, **more})
            absent = await tenants.web("owner", "POST", path, {"model": name.replace(THEIRS, ABSENT), **body, **more})
            assert 400 <= answer.status_code < 500, answer.text
            assert (answer.status_code, answer.text.replace(THEIRS, "it")) == (
                absent.status_code,
                absent.text.replace(ABSENT, "it").replace(THEIRS, "it"),
            )


async def test_lists_and_statistics_name_nothing_of_another(tenants: Tenants) -> None:
    for who in ("owner", "caller"):
        shown = [
            (await tenants.web(who, "GET", path)).text
            for path in ("/v1/models", "/v2/models/stats", "/v2", "/v1/files", "/v1/batches", "/v2/trace/setting")
        ]
        shown.append((await tenants.web(who, "POST", "/v2/repository/index", {})).text)
        shown.append((await tenants.call(who, "RepositoryIndex", kserve.RepositoryIndexRequest()))[1])
        shown.append((await tenants.call(who, "ModelStatistics", kserve.ModelStatisticsRequest()))[1])
        assert not any(THEIRS in each for each in shown), shown
        assert any("common" in each for each in shown)


async def test_an_answer_that_another_was_given_is_not_found_again(tenants: Tenants) -> None:
    """Whether somebody asked the same before is told to nobody but those who share a tenant."""

    async def found(who: str, value: float) -> str:
        call = tenants.stub.ModelInfer(infer("common", value=value), metadata=tenants.metadata(who), timeout=30)
        await call
        return str(dict(await call.initial_metadata() or ()).get("x-penstock-cache", ""))

    assert [await found("theirs", 41.0) for _ in range(2)] == ["miss", "hit"]
    assert [await found("caller", 41.0) for _ in range(2)] == ["miss", "hit"], "its own is, and its own alone"
    assert await found("owner", 41.0) == "hit", "who is of the same tenant"
    assert await found("theirs", 42.0) == "miss"


async def test_what_another_has_left_is_not_told(tenants: Tenants) -> None:
    async def left(who: str) -> int:
        answer = await tenants.web(who, "GET", "/v1/models")
        return int(answer.headers["x-ratelimit-remaining-requests"])

    before = await left("caller")
    for value in range(10):
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [float(value)]}]}
        assert (await tenants.web("theirs", "POST", f"/v2/models/{THEIRS}/infer", body)).status_code == 200
    assert await left("caller") == before - 1


async def test_after_all_that_the_owner_is_served(tenants: Tenants) -> None:
    code, said = await tenants.call("theirs", "ModelReady", kserve.ModelReadyRequest(name=THEIRS))
    assert (code, "ready: true" in said) == ("OK", True), "nobody has unloaded it"
    assert json.loads((await tenants.web("theirs", "GET", f"/v2/models/{THEIRS}")).text)["name"] == THEIRS
