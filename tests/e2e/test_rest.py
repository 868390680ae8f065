"""The Open Inference Protocol over HTTP, through Envoy: Triton's own client by changing the port, and any other."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.mesh import RunningMesh

SCENARIOS = Path(__file__).with_name("triton_http_scenarios.py")
MISSING = [name for name in ("tritonclient", "gevent", "geventhttpclient") if importlib.util.find_spec(name) is None]
HEADER = "inference-header-content-length"
PIXELS = np.random.default_rng(5).random((2, 1, 8, 8), dtype=np.float32)


def _names() -> list[str]:
    """Read from the text: importing the program would load Triton's client here."""
    body = next(node for node in ast.parse(SCENARIOS.read_text()).body if isinstance(node, ast.ClassDef)).body
    names = [each.name for each in body if isinstance(each, ast.FunctionDef)]
    return [f"http.{name}" for name in names if not name.startswith("_")]


@pytest.fixture(scope="module")
def outcomes(mesh: RunningMesh) -> dict[str, str]:
    address = mesh.http_url.partition("://")[2]
    command = [sys.executable, str(SCENARIOS), address, mesh.api_key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.parametrize("scenario", _names())
def test_scenario(outcomes: dict[str, str], scenario: str) -> None:
    assert outcomes[scenario] == "ok", outcomes[scenario]


@pytest.fixture(params=["http/1.1", "h2c"])
async def client(request: pytest.FixtureRequest, mesh: RunningMesh) -> AsyncIterator[httpx.AsyncClient]:
    h2c = request.param == "h2c"
    headers = {"authorization": f"Bearer {mesh.api_key}"}
    async with httpx.AsyncClient(base_url=mesh.http_url, headers=headers, http1=not h2c, http2=h2c, timeout=60) as made:
        yield made


def _image(**more: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [2, 1, 8, 8], "datatype": "FP32", **more}


async def test_nested_json_and_bare_bytes_mean_the_same(client: httpx.AsyncClient) -> None:
    nested = await client.post("/v2/models/digits/infer", json={"inputs": [_image(data=PIXELS.tolist())]})
    assert nested.status_code == 200, nested.text
    output = nested.json()["outputs"][0]
    bare = await client.post("/v2/models/digits/infer", content=PIXELS.tobytes(), headers={HEADER: "0"})
    assert bare.status_code == 200, bare.text
    length = int(bare.headers[HEADER])
    described = json.loads(bare.content[:length])["outputs"][0]
    assert described["shape"] == output["shape"] == [2, 10]
    np.testing.assert_allclose(np.frombuffer(bare.content[length:], "<f4"), output["data"], rtol=1e-5)


async def test_a_large_body_arrives_whole_and_is_judged_by_the_worker(
    client: httpx.AsyncClient, request: pytest.FixtureRequest
) -> None:
    mib = (
        6 if request.node.callspec.params["client"] == "h2c" else 60
    )  # this client's HTTP/2 copies what is left with each frame
    raw = bytes(mib * 1024 * 1024)
    text = json.dumps({"inputs": [_image(parameters={"binary_data_size": len(raw)})]}).encode()
    answer = await client.post("/v2/models/digits/infer", content=text + raw, headers={HEADER: str(len(text))})
    assert (answer.status_code, f"{len(raw)} bytes" in answer.json()["error"]) == (400, True), answer.text


async def test_generation_whole_and_as_events(client: httpx.AsyncClient) -> None:
    asked = {"text_input": "12+34", "parameters": {"temperature": 0, "stream": False}}
    whole = await client.post("/v2/models/sums/generate", json=asked)
    assert whole.status_code == 200, whole.text
    assert whole.json()["text_output"] == "12 + 34 = 46"
    assert (whole.json()["model_name"], whole.json()["finish_reason"]) == ("sums", "stop")
    async with client.stream("POST", "/v2/models/sums/generate_stream", json={"text_input": "12+34"}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        events = [json.loads(line.removeprefix("data: ")) async for line in answer.aiter_lines() if line]
    texts = [event["text_output"] for event in events]
    assert len(texts) > 1
    assert "".join(texts) == "12 + 34 = 46"


async def test_a_tensor_model_generates_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v2/models/digits/generate", json={"text_input": "x"})
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


async def test_reserved_parameters_reach_the_worker_that_refuses_them(client: httpx.AsyncClient) -> None:
    asked = {"inputs": [_image(data=PIXELS.ravel().tolist())], "parameters": {"triton_unheard_of": 1}}
    answer = await client.post("/v2/models/digits/infer", json=asked)
    assert (answer.status_code, "triton_unheard_of" in answer.json()["error"]) == (400, True)


async def test_errors_name_the_request_and_no_inner_header(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v2/models/nothing", headers={"x-request-id": "order-7"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (404, "order-7")
    assert answer.json() == {"error": "Request for unknown model: 'nothing' is not found"}
    assert not [name for name in answer.headers if name.startswith(("grpc-", "x-penstock-http", "x-envoy-"))]


async def test_a_bomb_is_refused(client: httpx.AsyncClient) -> None:
    machine = zlib.compressobj(9)
    block = bytes(1024 * 1024)
    packed = b"".join(machine.compress(block) for _ in range(256)) + machine.flush()
    answer = await client.post("/v2/models/digits/infer", content=packed, headers={"content-encoding": "deflate"})
    assert (answer.status_code, "unpacks to more" in answer.json()["error"]) == (413, True)
