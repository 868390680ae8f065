"""Which model a request is for: what its caller resolved comes before what the payload says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from inference import grpc_service_pb2 as pb
from penstock.worker.v1 import worker_pb2

from runtime.errors import InvalidArgument
from tests.worker.onnx_models import identity, spec
from worker.copies import open_model
from worker.inference import TableInference
from worker.models import ModelTable, UnknownModel
from worker.types import CallContext


def request(model: str, version: str = "") -> bytes:
    message = pb.ModelInferRequest(model_name=model, model_version=version, id="7")
    message.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    message.raw_input_contents.append(np.zeros(2, np.float32).tobytes())
    return message.SerializeToString()


async def test_another_model_may_answer_a_payload_that_names_the_one_it_stands_in_for(tmp_path: Path) -> None:
    table = ModelTable()
    for version in ("1", "2"):
        table.add(await open_model(spec("n", version=version), identity(tmp_path / version, "FP32")))
    inference = TableInference(table)
    try:
        for model, version, payload, answers in (
            ("n", "1", request("m", "9"), "1"),
            ("n", "1", request("n", "2"), "1"),
            ("n", "", request("m", "1"), "2"),
            ("", "", request("n", "1"), "1"),
        ):
            answer = pb.ModelInferResponse.FromString(await inference.infer(model, version, payload, CallContext()))
            assert (answer.model_name, answer.model_version, answer.id) == ("n", answers, "7")
        with pytest.raises(UnknownModel):
            await inference.infer("", "", request("m"), CallContext())
        prompt = worker_pb2.GenerateRequest(model="m", prompt="hello").SerializeToString()
        with pytest.raises(InvalidArgument, match="model 'n' takes tensors"):
            await anext(inference.generate("n", "1", prompt, CallContext()))
    finally:
        for loaded in table:
            loaded.close()
