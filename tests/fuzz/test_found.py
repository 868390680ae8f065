"""Inputs that fuzzing found, each of which once brought about what none may."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest
import structlog.testing
from inference import grpc_service_pb2 as pb
from penstock.registry.v1 import models_pb2
from penstock.worker.v1 import presence_pb2, worker_pb2
from xds import external_processor_pb2

from runtime.errors import InvalidArgument
from runtime.identity import Authority, Role
from runtime.ids import Digest
from runtime.model_folder import ModelFolderRefused, read_model_folder
from runtime.records import RecordRefused, RecordVerifier, sign_record
from tests.fuzz.process import Worker, close_worker, worker
from tests.fuzz.scheduler_targets import Passing
from tests.fuzz.test_servers import opened
from worker.engine import ModelRefused
from worker.spec import spec_of
from worker.types import CallContext


@pytest.fixture(scope="module")
def here() -> Iterator[Worker]:
    yield worker()
    close_worker()


@pytest.mark.parametrize("version", ["9" * 5000, "٣", "01"])
def test_a_version_that_is_no_number_of_ours(version: str) -> None:
    output = models_pb2.TensorSpec(name="y", datatype="FP32", shape=[1])
    manifest = models_pb2.Manifest(model="m", version=version, engine="onnx", task="tensor", outputs=[output])
    with pytest.raises(ModelRefused):
        spec_of(manifest, Digest("0" * 64))


def test_a_certificate_of_no_known_version(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    identity = authority.enrol(tmp_path / "worker", Role.WORKER)
    record = presence_pb2.SignedRecord.FromString(sign_record(identity, b""))
    version_3 = bytes.fromhex("a003020102")
    assert version_3 in record.certificate
    record.certificate = record.certificate.replace(version_3, bytes.fromhex("a003020112"))
    with pytest.raises(RecordRefused):
        RecordVerifier(authority.certificate_pem).open(record.SerializeToString(), now_wall_s=0)


@pytest.mark.parametrize(
    "line",
    ["[[outputs]]\nname = 'y'\ndatatype = 'FP32'\nshape = [-1.0]", f"max_batch_size = {'9' * 5000}", f"x = {'[' * 5000}"],
    ids=["a shape of floats", "a number of 5,000 digits", "lists in lists"],
)
def test_a_description_that_cannot_be_read(tmp_path: Path, line: str) -> None:
    (tmp_path / "model.toml").write_text(f"name = 'm'\nengine = 'onnx'\n{line}\n")
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(ModelFolderRefused):
        read_model_folder(tmp_path)


@pytest.mark.parametrize("prompt", ["\N{REPLACEMENT CHARACTER}\x16", "é"])
def test_a_prompt_that_the_tokenizer_cannot_take(here: Worker, prompt: str) -> None:
    """ONNX Runtime GenAI's tokenizer gives up on some texts with the vocabulary of these tests."""
    payload = worker_pb2.GenerateRequest(model="alphabet", prompt=prompt).SerializeToString()

    async def generate() -> None:
        async for _ in here.inference.generate("", "", payload, CallContext()):
            pass

    with pytest.raises(InvalidArgument):
        here.run(generate())


def test_top_k_beyond_every_vocabulary_means_all_of_it(here: Worker) -> None:
    request = pb.ModelInferRequest(model_name="alphabet")
    request.inputs.add(name="text_input", datatype="BYTES", shape=(1,)).contents.bytes_contents.append(b"a")
    request.parameters["top_k"].int64_param = 2**31

    async def stream() -> int:
        return len([each async for each in here.inference.stream_infer("", "", request.SerializeToString(), CallContext())])

    assert here.run(stream()) > 0


def test_a_stream_cancelled_in_the_midst_of_its_answers_is_no_bug_of_ours(here: Worker) -> None:
    """Nothing is logged as an error: grpc.aio reports a write to a client that left with an exception of its own."""
    request = pb.ModelInferRequest(model_name="alphabet")
    request.inputs.add(name="text_input", datatype="BYTES", shape=(1,)).contents.bytes_contents.append(b"0")

    async def leave_early() -> None:
        async with opened() as served:
            for turn in range(60):
                stream = served.stream()
                await stream.write(request.SerializeToString())
                for _ in range(turn % 3):
                    assert await stream.read() is not grpc.aio.EOF
                stream.cancel()
            async with asyncio.timeout(20):
                await served.check_unharmed()

    with structlog.testing.capture_logs() as logged:
        here.run(leave_early())
    assert [entry for entry in logged if entry["log_level"] == "error"] == []


def test_an_envoy_that_tells_of_its_request_twice_leaves_nothing_reserved() -> None:
    headers = external_processor_pb2.ProcessingRequest()
    headers.request_headers.headers.headers.add(key="x-gateway-model-name", raw_value=b"digits")
    passing = Passing()
    for _ in range(3):
        passing.passage.answer(headers)
        assert passing.in_flight == 1
    passing.passage.close()
    assert passing.in_flight == 0


def test_a_status_of_more_digits_than_python_reads() -> None:
    headers = external_processor_pb2.ProcessingRequest()
    headers.response_headers.headers.headers.add(key=":status", raw_value=b"9" * 5_000)
    Passing().passage.answer(headers)
