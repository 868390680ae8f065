"""Bad input at every door: the right code, a sentence that says what to do, no trace, no hang, and the server lives on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.test_failover import digit_request
from tests.support.mesh import RunningMesh

INFER = "/inference.GRPCInferenceService/ModelInfer"


def _said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def _answers(mesh: RunningMesh) -> bool:
    async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER, None, None)
        metadata = (("authorization", f"Bearer {mesh.api_key}"),)
        return bool(await call(digit_request().SerializeToString(), metadata=metadata, timeout=10))


@pytest.mark.parametrize("payload", [b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x06digits\x3a", os.urandom(1000)])
async def test_garbage_as_a_request_is_an_invalid_argument(mesh: RunningMesh, payload: bytes) -> None:
    async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER, None, None)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call(payload, metadata=(("authorization", f"Bearer {mesh.api_key}"),), timeout=10)
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT, failure.value.details()
        assert "Traceback" not in str(failure.value.details())
    assert await _answers(mesh)


@pytest.mark.parametrize("door", ["grpc", "http"])
@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/9.9\r\n\r\n", os.urandom(4096), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(512)]
)
async def test_noise_on_the_port_harms_nobody(mesh: RunningMesh, door: str, noise: bytes) -> None:
    address = mesh.grpc_address if door == "grpc" else mesh.http_url.removeprefix("http://")
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(noise)
    await writer.drain()
    writer.write_eof()
    with contextlib.suppress(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert await _answers(mesh)


async def test_a_call_of_no_known_method_is_unimplemented(mesh: RunningMesh) -> None:
    async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/no.Such/Method", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call(b"", timeout=5)
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_inner_services_are_not_offered_to_applications(mesh: RunningMesh) -> None:
    async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
        for method in ("/penstock.worker.v1.WorkerService/Status", "/penstock.registry.v1.AccountService/ListKeys"):
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method, None, None)
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await call(b"", metadata=(("authorization", f"Bearer {mesh.api_key}"),), timeout=5)
            assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        ({"content": b"{not json"}, 400, "JSON"),
        ({"json": {"messages": []}}, 400, "model"),
        ({"json": {"model": "nothing", "messages": [_said("1+1")]}}, 404, "nothing"),
        ({"json": {"model": "digits", "messages": [_said("1+1")]}}, 400, "digits"),
        ({"json": {"model": "sums", "messages": "12+34"}}, 400, "messages"),
        (
            {"json": {"model": "sums", "messages": [_said("1+1")], "temperature": "hot"}},
            400,
            "temperature",
        ),
        ({"json": {"model": "sums", "messages": [{"role": "user", "content": "1 + 1 " * 400}]}}, 400, "context"),
    ],
)
def test_bad_json_gets_openai_errors(mesh: RunningMesh, request_: dict[str, object], status: int, says: str) -> None:
    headers = {"authorization": f"Bearer {mesh.api_key}"}
    answer = httpx.post(f"{mesh.http_url}/v1/chat/completions", headers=headers, timeout=20, **request_)  # type: ignore[arg-type]
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert says in error["message"]
    assert {"message", "type", "param", "code"} <= set(error)


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic eDp5"}])
def test_http_without_a_good_key_is_401(mesh: RunningMesh, headers: dict[str, str]) -> None:
    body = {"model": "sums", "messages": [_said("1+1")]}
    answer = httpx.post(f"{mesh.http_url}/v1/chat/completions", headers=headers, json=body, timeout=20)
    assert answer.status_code == 401, answer.text
    assert "key" in answer.json()["error"]["message"]


def test_an_unknown_path_is_404_with_an_openai_body(mesh: RunningMesh) -> None:
    answer = httpx.get(f"{mesh.http_url}/v1/nothing", timeout=20)
    assert answer.status_code == 404
    assert "message" in answer.json()["error"]


async def test_health_is_open_to_everyone(mesh: RunningMesh) -> None:
    async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_and_describes_services(mesh: RunningMesh) -> None:
    """As grpcurl does; buf's curl is the same client in a package."""
    buf = shutil.which("buf") or str(Path(sys.executable).with_name("buf"))
    url = f"http://{mesh.grpc_address}"
    listed = subprocess.run(
        [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--list-services", url],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    services = set(listed.stdout.split())
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services
    called = subprocess.run(
        [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", f"{url}/inference.GRPCInferenceService/ServerLive"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(called.stdout) == {"live": True}
