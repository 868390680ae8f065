"""A worker that serves alone, with a model of every engine that can run here, asked over gRPC; and code that crashes in it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as pb

from tests.support.mesh import ROOT, environment
from tests.support.public_models import python_model, write_all

START_S = 100.0
FRAGILE = """
import os

class Model:
    def __init__(self, folder, parameters):
        pass

    def execute(self, inputs):
        if inputs["x"].min() < 0:
            os.abort()
        return {"y": 2 * inputs["x"] + 1}
"""


@dataclass(frozen=True, slots=True)
class Worker:
    address: str
    left_out: tuple[str, ...]
    """Engines whose package is missing here, with the reason."""


def command(ready: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "cli", "worker", "--standalone", "--kserve-port=0", f"--ready-file={ready}", *words]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("models")
    left_out = write_all(folder)
    fragile = python_model(folder / "fragile", FRAGILE)
    (fragile / "model.toml").write_text(
        (folder / "python" / "model.toml").read_text().replace("python-affine", "fragile-affine")
    )
    ready, log = folder / "ready.json", folder / "log"
    words = [f"--model-folder={each}" for each in folder.iterdir() if each.is_dir()]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command(ready, "--allow-unsigned-code", *words), stdout=stream, stderr=stream, cwd=ROOT, env=environment()
        )
    try:
        until_s = time.monotonic() + START_S
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until_s, log.read_text()
            time.sleep(0.05)
        yield Worker(f"127.0.0.1:{json.loads(ready.read_text())['kserve_port']}", tuple(left_out))
    finally:
        process.terminate()
        process.wait(30)


def request(model: str, value: float, rows: int = 1) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=(rows, 2))
    message.raw_input_contents.append(np.full((rows, 2), value, np.float32).tobytes())
    return message


def asked(worker: Worker, model: str, value: float, rows: int = 1) -> list[float]:
    with grpc.insecure_channel(worker.address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        response = infer(request(model, value, rows), timeout=30)
    return list(np.frombuffer(response.raw_output_contents[0], np.float32))


@pytest.mark.parametrize("engine", ["onnx", "torch", "litert", "python"])
def test_every_engine_answers(worker: Worker, engine: str) -> None:
    if reasons := [reason for reason in worker.left_out if reason.startswith(f"{engine}:")]:
        pytest.skip(reasons[0])
    assert asked(worker, f"{engine}-affine", 3, rows=5) == [7] * 10


def test_code_that_aborts_fails_its_own_request_alone(worker: Worker) -> None:
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as failed:
            asked(worker, "fragile-affine", -1)
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert "was killed by SIGABRT while it ran this request" in str(failed.value.details())
        assert asked(worker, "fragile-affine", 3) == [7, 7]
        assert asked(worker, "onnx-affine", 3) == [7, 7]


def test_code_is_not_run_without_being_allowed(tmp_path: Path) -> None:
    write_all(tmp_path)
    ended = subprocess.run(
        command(tmp_path / "ready", f"--model-folder={tmp_path / 'python'}"),
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        env=environment(),
        check=False,
    )
    assert ended.returncode != 0
    assert "brings code that nobody signed" in ended.stdout + ended.stderr
