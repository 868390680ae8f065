"""A real encoder, served alone and through the whole mesh: its embeddings are those of the original implementation."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as rpc
from numpy.typing import NDArray

from tests.support.mesh import ROOT, RunningMesh, environment
from tests.support.minilm import INPUTS, OUTPUT, WIDTH, exported, missing

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"exporting the encoder needs {', '.join(missing())}"),
    pytest.mark.timeout(400),
]
TOLERANCE = 1e-4
START_S = 60.0


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model folder, and what it has to give."""

    folder: Path
    inputs: dict[str, NDArray[np.int64]]
    embeddings: NDArray[np.float32]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("encoder")
    exported(folder / "minilm", folder / "expected.npz")
    expected = np.load(folder / "expected.npz")
    return Encoder(folder / "minilm", {name: expected[name] for name in INPUTS}, expected[OUTPUT])


@pytest.fixture(scope="module")
def alone(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a worker that serves it alone."""
    folder = tmp_path_factory.mktemp("alone")
    ready, log = folder / "ready.json", folder / "worker.log"
    command = [sys.executable, "-m", "cli", "worker", "--standalone", "--model-folder", str(encoder.folder)]
    command += ["--kserve-port", "0", "--ready-file", str(ready)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=ROOT, env=environment())
    try:
        end_s = time.monotonic() + START_S
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end_s, log.read_text()
            time.sleep(0.05)
        yield f"127.0.0.1:{json.loads(ready.read_text())['kserve_port']}"
    finally:
        process.terminate()
        process.wait(20)


def request(inputs: dict[str, NDArray[np.int64]]) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="minilm")
    for name, array in inputs.items():
        message.inputs.add(name=name, datatype="INT64", shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message


def embeddings(response: pb.ModelInferResponse) -> NDArray[np.float32]:
    assert [output.name for output in response.outputs] == [OUTPUT]
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(-1, WIDTH)


def assert_close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def cut(inputs: dict[str, NDArray[np.int64]], row: int) -> dict[str, NDArray[np.int64]]:
    """One text without its padding."""
    length = int(inputs["attention_mask"][row].sum())
    return {name: array[row : row + 1, :length] for name, array in inputs.items()}


async def test_alone_all_texts_in_one_request(encoder: Encoder, alone: str) -> None:
    async with grpc.aio.insecure_channel(alone) as channel:
        answer = await rpc.GRPCInferenceServiceStub(channel).ModelInfer(request(encoder.inputs), timeout=60)
    assert_close(embeddings(answer), encoder.embeddings)


async def test_alone_texts_of_all_lengths_at_once(encoder: Encoder, alone: str) -> None:
    """Each length is a shape of its own: they share the engine, never an execution."""
    async with grpc.aio.insecure_channel(alone) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        rows = [number % len(encoder.embeddings) for number in range(24)]
        answers = await asyncio.gather(*(stub.ModelInfer(request(cut(encoder.inputs, row)), timeout=60) for row in rows))
    for row, answer in zip(rows, answers, strict=True):
        assert_close(embeddings(answer)[0], encoder.embeddings[row])


async def test_through_the_whole_mesh(encoder: Encoder, mesh: RunningMesh) -> None:
    pushed = mesh.penstock("models", "push", str(encoder.folder), timeout_s=180)
    assert pushed.returncode == 0, pushed.stderr
    metadata = (("authorization", f"Bearer {mesh.api_key}"),)
    async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        answer = await stub.ModelInfer(request(encoder.inputs), timeout=60, metadata=metadata)
        assert_close(embeddings(answer), encoder.embeddings)
        alone = await stub.ModelInfer(request(cut(encoder.inputs, 0)), timeout=60, metadata=metadata)
        assert_close(embeddings(alone)[0], encoder.embeddings[0])
    assert mesh.penstock("models", "unload", "minilm").returncode == 0
