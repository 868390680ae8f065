"""Sealed calls through a real mesh: real processes, etcd, Envoy, demo models. What passes the gateway, and every log, is read.

TLS alone would hide the payload from who listens. That gateway and scheduler themselves never have it is shown where their
messages can be seen, in tests/integration/test_sealed_mesh.py; here their port is spoken to in plaintext, over a wiretap.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import numpy as np
import pytest
from google.protobuf import json_format
from inference import grpc_service_pb2, grpc_service_pb2_grpc
from penstock.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from penstock.worker.v1 import worker_pb2

from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.identity import Authority
from runtime.sealed_client import SealedClient
from runtime.sealing import verified_place
from tests.support.commands import done, ran, refused
from tests.support.mesh import ROOT, RunningMesh, environment, running_mesh
from tests.support.wiretap import Wiretap, wiretap_to

QUESTION = "4711+2903"
PIXELS = np.frombuffer(b"MARKER-7" * 32, dtype=np.float32).reshape(1, 1, 8, 8)


@asynccontextmanager
async def sealed_client(mesh: RunningMesh) -> AsyncIterator[tuple[SealedClient, Wiretap]]:
    """A client whose way to the gateway is listened to."""
    authority = (mesh.data / "ca" / "ca.pem").read_bytes()
    async with wiretap_to(int(mesh.grpc_address.rpartition(":")[2])) as wiretap:
        async with grpc.aio.insecure_channel(wiretap.endpoint) as channel:
            yield SealedClient(channel, mesh.api_key, authority), wiretap


def digits(content: Any = PIXELS) -> grpc_service_pb2.ModelInferRequest:
    request = grpc_service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[content.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=content.shape)
    return request


def key_of(mesh: RunningMesh) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {mesh.api_key}"),)


def logged(mesh: RunningMesh) -> bytes:
    return b"\0".join(file.read_bytes() for file in (mesh.data / "logs").glob("*.log"))


async def test_tensors_come_and_go_past_the_gateway(mesh: RunningMesh) -> None:
    async with sealed_client(mesh) as (client, wiretap):
        async with client.reserved("digits") as worker:
            sealed = await worker.infer(digits())
            reservation = worker.reservation_id.encode()
        async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
            stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
            in_the_open = await stub.ModelInfer(digits(), metadata=key_of(mesh), timeout=20)
    assert sealed.raw_output_contents == in_the_open.raw_output_contents, "the same model answered"
    assert reservation in wiretap.passed, "what passes is read"
    for secret in (b"MARKER", PIXELS.tobytes()[:24], sealed.raw_output_contents[0][:16]):
        assert secret not in wiretap.passed
        assert secret not in logged(mesh)


async def test_text_is_generated_past_the_gateway(mesh: RunningMesh) -> None:
    asked = worker_pb2.GenerateRequest(model="sums", max_tokens=16)
    asked.chat.messages.add(role="user", content=QUESTION)
    async with sealed_client(mesh) as (client, wiretap), client.reserved("sums") as worker:
        pieces = [piece async for piece in worker.generate(asked)]
    text = "".join(piece.text for piece in pieces)
    assert len(pieces) > 1, "piece by piece"
    assert pieces[-1].finish_reason != worker_pb2.FINISH_REASON_UNSPECIFIED
    assert text
    assert QUESTION.encode() not in wiretap.passed
    assert QUESTION.encode() not in logged(mesh)


async def test_only_what_was_reserved_is_answered_and_only_while_it_is(mesh: RunningMesh) -> None:
    async with sealed_client(mesh) as (client, _):
        async with client.reserved("digits") as worker:
            request = digits()
            request.model_name = "sums"
            with pytest.raises(InvalidArgument, match="reserved is 'digits'"):
                await worker.infer(request)
            await worker.infer(digits())
            released = gateway_pb2.DeleteReservationRequest(reservation_id=worker.reservation_id)
            async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
                stub = gateway_pb2_grpc.ReservationServiceStub(channel)
                await stub.DeleteReservation(released, metadata=key_of(mesh), timeout=20)
            with pytest.raises(PenstockError) as caught:
                await worker.infer(digits())
    assert (caught.value.code, caught.value.reason) == (Code.UNAUTHENTICATED, "SEALED_REFUSED")


async def test_an_application_reserves_over_http(mesh: RunningMesh) -> None:
    authority = (mesh.data / "ca" / "ca.pem").read_bytes()
    token = secrets.token_bytes(32)
    body = {"model": "digits", "ttl_ms": "5000", "token_sha256": base64.b64encode(hashlib.sha256(token).digest()).decode()}
    headers = {"authorization": f"Bearer {mesh.api_key}"}
    async with httpx.AsyncClient(base_url=mesh.http_url, headers=headers, timeout=20) as http:
        answer = await http.post("/v1/reservations", json=body)
        assert answer.status_code == 200, answer.text
        kept = json_format.ParseDict(answer.json(), gateway_pb2.CreateReservationResponse())
        now_wall_s = kept.expires_at_ms / 1000
        record = kept.presence.SerializeToString()
        place = verified_place(record, authority, worker_id=kept.worker_id, now_wall_s=now_wall_s)
        assert place.address == kept.address
        gone = await http.delete(f"/v1/reservations/{kept.reservation_id}")
        assert gone.status_code == 200, gone.text
        wrong = await http.post("/v1/reservations", json={**body, "token_sha256": ""})
        assert wrong.status_code == 400
        assert "token_sha256 has 0 bytes" in wrong.text
        async with httpx.AsyncClient(base_url=mesh.http_url) as stranger:
            assert (await stranger.post("/v1/reservations", json=body)).status_code == 401


async def test_the_command_asks_one_worker_alone(mesh: RunningMesh) -> None:
    """What it prints is what it prints in the open, where the same listener reads everything."""
    values = ("--input", f"image={json.dumps(PIXELS.tolist())}")
    async with wiretap_to(int(mesh.grpc_address.rpartition(":")[2])) as wiretap:
        sealed = await ran(mesh, "infer", "digits", *values, "--seal", "--address", wiretap.endpoint)
        heard = bytes(wiretap.passed)
        in_the_open = await done(mesh, "infer", "digits", *values, "--address", wiretap.endpoint)
        assert PIXELS.tobytes()[:24] in wiretap.passed, "what passes is read"
    assert sealed.returncode == 0, sealed.stderr
    assert sealed.stdout == in_the_open
    assert "nobody on the way could read it" in sealed.stderr
    assert b"digits" in heard
    assert b"MARKER" not in heard
    assert b"MARKER" not in logged(mesh)


async def test_the_command_seals_a_picture(mesh: RunningMesh) -> None:
    picture = str(ROOT / "examples" / "digits" / "7.png")
    shown = await done(mesh, "infer", "digits", "--image", picture, "--top", "1", "--seal")
    assert re.search(r"^ *7 +\d", shown, re.MULTILINE), shown


async def test_the_command_says_in_one_line_why_it_sealed_nothing(mesh: RunningMesh, tmp_path: Path) -> None:
    values = ("--input", f"image={json.dumps(PIXELS.tolist())}")
    stranger, garbage, none = tmp_path / "ca.pem", tmp_path / "garbage.pem", tmp_path / "none.pem"
    stranger.write_bytes(Authority.open(tmp_path / "others").certificate_pem)
    garbage.write_bytes(b"no certificate")
    for words, says in (
        (("infer", "digits", *values, "--seal", "--authority", str(stranger)), "another mesh"),
        (("infer", "digits", *values, "--seal", "--authority", str(garbage)), "no PEM certificate"),
        (("infer", "digits", *values, "--seal", "--authority", str(none)), "cannot be read from"),
        (("infer", "digits", *values, "--authority", str(stranger)), "with --seal"),
        (("infer", "nothing", *values, "--seal"), "nothing"),
    ):
        line = await refused(mesh, *words)
        assert says in line, words
        assert "\n" not in line, line


def test_the_example_does_what_it_says(tmp_path: Path) -> None:
    with running_mesh(tmp_path / ".penstock", "--workers", "1"):
        example = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "sealed_client.py"), str(ROOT / "examples" / "digits" / "7.png")],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=environment(),
            check=False,
        )
    assert example.returncode == 0, example.stderr
    assert "it is a 7" in example.stdout
