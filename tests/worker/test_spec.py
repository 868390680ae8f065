"""A manifest as the worker understands it, and what it will not understand."""

from __future__ import annotations

from typing import Any

import pytest
from penstock.registry.v1 import models_pb2

from runtime.ids import Digest
from worker.engine import ModelRefused
from worker.spec import spec_of
from worker.types import (
    BatchingSpec,
    CompiledFor,
    ModelSpec,
    QueuePolicy,
    SequenceControl,
    SequenceControlKind,
    SequenceSpec,
    SequenceState,
    SequenceStrategy,
    Task,
    TensorSpec,
    TimeoutAction,
    WarmUpData,
    WarmUpInput,
    WarmUpSpec,
)


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


def sequences(**fields: Any) -> models_pb2.SequenceBatching:
    return models_pb2.SequenceBatching(**fields)


def control(**changed: Any) -> models_pb2.SequenceControl:
    return models_pb2.SequenceControl(**{"input": "START", "kind": 1, "datatype": "FP32", **changed})


def state(**changed: Any) -> models_pb2.SequenceState:
    return models_pb2.SequenceState(**{"input": "in", "output": "out", "datatype": "FP32", "shape": [4], **changed})


def test_all_of_a_manifest_arrives() -> None:
    spec = spec_of(
        manifest(
            batching=models_pb2.Batching(
                priority_levels=2,
                default_priority_level=2,
                default_queue_policy=models_pb2.QueuePolicy(
                    timeout_action=models_pb2.TIMEOUT_ACTION_DELAY, default_timeout_us=1500
                ),
                priority_queue_policies={1: models_pb2.QueuePolicy(max_queue_size=3)},
                preserve_ordering=True,
            ),
            sequence_batching=sequences(
                strategy=models_pb2.SEQUENCE_STRATEGY_OLDEST, max_idle_us=500, controls=[control()], states=[state()]
            ),
            warm_ups=[
                models_pb2.WarmUp(name="w", rows=4, inputs={"image": models_pb2.WarmUpInput(shape=[1, 8, 8], random=True)})
            ],
            instances=2,
            memory_bytes=7,
            compiled_for=models_pb2.CompiledFor(runtime="tensorrt_rtx", version="1.7.1", compute_capabilities=["8.0"]),
        ),
        Digest("d"),
        b"signer",
    )
    assert spec.batching == BatchingSpec(
        priority_levels=2,
        default_priority_level=2,
        default_queue_policy=QueuePolicy(TimeoutAction.DELAY, 0.0015, allow_timeout_override=False),
        priority_queue_policies={1: QueuePolicy(allow_timeout_override=False, max_queue_size=3)},
        preserve_ordering=True,
    )
    assert spec.sequences == SequenceSpec(
        SequenceStrategy.OLDEST,
        0.0005,
        controls=(SequenceControl("START", SequenceControlKind.START, "FP32"),),
        states=(SequenceState("in", "out", "FP32", (4,)),),
    )
    assert spec.warm_ups == (WarmUpSpec("w", 4, 1, (WarmUpInput("image", WarmUpData.RANDOM, (1, 8, 8)),)),)
    assert (spec.instances, spec.memory_bytes, spec.signer) == (2, 7, b"signer")
    assert spec.compiled_for == CompiledFor("tensorrt_rtx", "1.7.1", ("8.0",))


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
        ({"version": "9" * 5000}, "positive decimal version"),
        ({"version": "\u0663"}, "positive decimal version"),
        ({"instances": 300}, "asks for 300 instances; up to 256"),
        ({"batching": models_pb2.Batching(priority_levels=65)}, "has 65 priority levels"),
        ({"batching": models_pb2.Batching(priority_levels=2)}, "default_priority_level 0 of 2 levels"),
        ({"batching": models_pb2.Batching(default_priority_level=1)}, "default_priority_level 1 of 0 levels"),
        (
            {
                "batching": models_pb2.Batching(
                    priority_levels=2, default_priority_level=1, priority_queue_policies={3: models_pb2.QueuePolicy()}
                )
            },
            "a queue policy for priority 3; its levels are 1 to 2",
        ),
        ({"sequence_batching": sequences(controls=[control(kind=0)])}, "without a name or without a kind"),
        ({"sequence_batching": sequences(controls=[control(datatype="FP64")])}, "datatype 'FP64'"),
        ({"sequence_batching": sequences(states=[state(output="")])}, "a sequence state without an input or without an output"),
        ({"sequence_batching": sequences(states=[state(shape=[-1])])}, "a state has one size"),
        ({"warm_ups": [models_pb2.WarmUp(name="w", rows=65)]}, "warm-up 'w' has 65 rows; an execution takes 64"),
        (
            {"warm_ups": [models_pb2.WarmUp(inputs={"q": models_pb2.WarmUpInput()})]},
            "names input 'q'; the inputs are ['image']",
        ),
        ({"warm_ups": [models_pb2.WarmUp(inputs={"image": models_pb2.WarmUpInput(shape=[-1])})]}, "give it one size"),
    ],
)
def test_refusals(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelRefused) as refused:
        spec_of(manifest(**changed), Digest("d"))
    assert sentence in refused.value.message
