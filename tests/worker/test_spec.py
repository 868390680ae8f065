"""A manifest as the worker understands it, and what it will not understand."""

from __future__ import annotations

from typing import Any

import pytest
from penstock.registry.v1 import models_pb2

from runtime.ids import Digest
from worker.engine import ModelRefused
from worker.spec import spec_of
from worker.types import BatchingSpec, ModelSpec, Task, TensorSpec


def manifest(**changed: Any) -> models_pb2.Manifest:
    fields: dict[str, Any] = {
        "model": "digits",
        "version": "3",
        "engine": "onnx",
        "task": "tensor",
        "max_batch_size": 64,
        "inputs": [models_pb2.TensorSpec(name="image", datatype="FP32", shape=[1, 8, 8])],
        "outputs": [models_pb2.TensorSpec(name="logits", datatype="FP32", shape=[10], labels=["a", "b"])],
        "batching": models_pb2.Batching(max_queue_delay_us=500, preferred_batch_sizes=[4], max_queue_size=9),
        "parameters": {"intra_op_threads": "2"},
    }
    return models_pb2.Manifest(**{**fields, **changed})


def test_a_manifest_becomes_a_spec() -> None:
    assert spec_of(manifest(), Digest("d")) == ModelSpec(
        model="digits",  # type: ignore[arg-type]
        version="3",  # type: ignore[arg-type]
        digest=Digest("d"),
        engine="onnx",
        task=Task.TENSOR,
        max_batch_size=64,
        inputs=(TensorSpec("image", "FP32", (1, 8, 8)),),
        outputs=(TensorSpec("logits", "FP32", (10,), ("a", "b")),),
        batching=BatchingSpec(500, (4,), 9),
        parameters={"intra_op_threads": "2"},
    )


def test_text_models_are_decoupled_whatever_the_manifest_says() -> None:
    assert spec_of(manifest(engine="llm", task="chat"), Digest("d")).decoupled
    assert spec_of(manifest(decoupled=True), Digest("d")).decoupled


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": ""}, "needs a name and a positive decimal version"),
        ({"version": "latest"}, "needs a name and a positive decimal version"),
        ({"version": "0"}, "needs a name and a positive decimal version"),
        ({"task": "poetry"}, "has task 'poetry'; known: chat, completion, embedding, tensor"),
        ({"outputs": []}, "describes no outputs"),
        ({"inputs": [models_pb2.TensorSpec(name="x", datatype="FP8")]}, "gives tensor 'x' datatype 'FP8'; known: BF16, BOOL"),
        ({"inputs": [models_pb2.TensorSpec(name="x", datatype="FP32", shape=[-2])]}, "gives tensor 'x' shape [-2]"),
    ],
)
def test_refusals(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelRefused) as refused:
        spec_of(manifest(**changed), Digest("d"))
    assert sentence in refused.value.message
