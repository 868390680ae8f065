"""Messages that are nearly right, made of choices: KServe requests, Execute frames, generations, manifests, presences.

Each begins as what a client would send and is then spoilt in some places, because pure noise never gets past the first check.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from inference import grpc_service_pb2 as pb
from penstock.registry.v1 import models_pb2
from penstock.worker.v1 import presence_pb2, worker_pb2

from tests.fuzz.choices import Choices
from worker.datatypes import DATATYPES

DATATYPE_NAMES = tuple(DATATYPES)
_CONTENTS = tuple(field.name for field in pb.InferTensorContents.DESCRIPTOR.fields)
_PARAMETER_NAMES = (
    *("priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "triton_enable_empty_final_response"),
    *("triton_magic", "shared_memory_region", "classification", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop"),
    *("chat_template", "mine", ""),
)


def model_of(datatype: str) -> str:
    """The name under which a worker of these tests holds y = x of that datatype."""
    return f"echo-{datatype.lower()}"


MODELS = (*(model_of(datatype) for datatype in DATATYPE_NAMES), "alphabet", "unbatched", "nobody", "")


def spoilt(choices: Choices, payload: bytes) -> bytes:
    """The bytes as they are, mostly; else cut short, with one bit turned, or followed by others."""
    kind = choices.below(16)
    if kind == 13:
        return payload[: choices.below(len(payload) + 1)]
    if kind == 14 and payload:
        at = choices.below(len(payload))
        return payload[:at] + bytes([payload[at] ^ (1 << choices.below(8))]) + payload[at + 1 :]
    if kind == 15:
        return payload + choices.blob(16)
    return payload


def infer_request(choices: Choices) -> pb.ModelInferRequest:
    """Asks one of MODELS for something; as a rule with the right name and datatype, less often with all of the rest right."""
    datatype = choices.one_of(DATATYPE_NAMES)
    message = pb.ModelInferRequest(model_name=model_of(datatype), id=choices.text(6))
    if choices.flag(6):
        message.model_name = choices.one_of(MODELS)
    if choices.flag(8):
        message.model_version = choices.one_of(("1", "2", "-1", "01", "x", choices.text()))
    for _ in range(choices.one_of((1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 2))):
        _input(choices, message, datatype)
    for _ in range(choices.one_of((0, 0, 0, 0, 0, 1, 1, 2))):
        output = message.outputs.add(name="y" if not choices.flag(6) else choices.one_of(("text_output", "x", choices.text())))
        if choices.flag():
            _parameters(choices, output.parameters)
    if choices.flag(3):
        _parameters(choices, message.parameters)
    return message


def _input(choices: Choices, message: pb.ModelInferRequest, datatype: str) -> None:
    shape = [choices.one_of((1, 1, 1, 2, 3, 8)), 2]
    if choices.flag(8):
        shape = [choices.whole(signed=True) for _ in range(choices.below(5))]
    text = message.model_name == "alphabet"
    name = "text_input" if text else "x"
    tensor = message.inputs.add(
        name=name if not choices.flag(12) else choices.text(), datatype=datatype, shape=[1] if text else shape
    )
    if choices.flag(16):
        tensor.datatype = choices.one_of((*DATATYPE_NAMES, "", "fp32", choices.text()))
    if choices.flag(16):
        _parameters(choices, tensor.parameters)
    how = choices.below(12)
    if how != 1:
        message.raw_input_contents.append(_raw(choices, tensor.datatype, tensor.shape))
    if how in (1, 2):
        _typed(choices, tensor.contents, tensor.datatype)


def _raw(choices: Choices, datatype: str, shape: Any) -> bytes:
    """Data of the right size for most of the time."""
    known = DATATYPES.get(datatype)
    count = 1
    for size in shape:
        count = min(64, count * max(0, min(size, 64)))
    if choices.flag(8):
        return choices.blob()
    if known is None or not known.size_bytes:
        elements = [choices.blob(8) for _ in range(count)]
        more = choices.blob(2) if choices.flag(8) else b""
        return b"".join(struct.pack("<I", len(each)) + each for each in elements) + more
    size = count * known.size_bytes
    return choices.take(size).ljust(size, b"\0") if not choices.flag(12) else choices.blob(size + 2)


def _typed(choices: Choices, contents: pb.InferTensorContents, datatype: str) -> None:
    known = DATATYPES.get(datatype)
    field = known.contents if known is not None and known.contents and not choices.flag(6) else choices.one_of(_CONTENTS)
    values: list[Any] = []
    for _ in range(choices.one_of((2, 2, 4, 16, 0, 1))):
        if field == "bool_contents":
            values.append(choices.flag())
        elif field == "bytes_contents":
            values.append(choices.blob(8))
        elif field.startswith("fp"):
            values.append(float(choices.whole(signed=True)) if field == "fp64_contents" else float(choices.below(100)))
        elif field.startswith("uint"):
            values.append(choices.whole(bits=64 if "64" in field else 32))
        else:
            values.append(choices.whole(signed=True, bits=64 if "64" in field else 32))
    getattr(contents, field).extend(values)


def _parameters(choices: Choices, parameters: Any) -> None:
    for _ in range(choices.below(4)):
        parameter = parameters[choices.one_of(_PARAMETER_NAMES) or choices.text()]
        kind = choices.below(7)
        if kind == 0:
            parameter.bool_param = choices.flag()
        elif kind in (1, 2):
            parameter.int64_param = choices.whole(signed=True)
        elif kind == 3:
            parameter.string_param = choices.text()
        elif kind == 4:
            parameter.double_param = struct.unpack("<d", choices.take(8).ljust(8, b"\0"))[0]
        elif kind == 5:
            parameter.uint64_param = choices.whole()


def generate_request(choices: Choices) -> worker_pb2.GenerateRequest:
    message = worker_pb2.GenerateRequest(
        model=choices.one_of(("alphabet", "alphabet", "", "echo-fp32", "nobody")), max_tokens=choices.whole(bits=32)
    )
    if choices.flag():
        message.prompt = choices.text(32)
    else:
        for _ in range(choices.below(4)):
            message.chat.messages.add(role=choices.one_of(("user", "system", choices.text())), content=choices.text())
    message.stop.extend(choices.text(4) for _ in range(choices.below(3)))
    message.resume_token_ids.extend(choices.whole(signed=True, bits=32) & 0x7FFF_FFFF for _ in range(choices.below(3)))
    if choices.flag():
        message.sampling.temperature = struct.unpack("<f", choices.take(4).ljust(4, b"\0"))[0]
    return message


def execute_request(choices: Choices) -> worker_pb2.ExecuteRequest:
    """Some frames for few calls, in an order that need not make sense."""
    message = worker_pb2.ExecuteRequest()
    for _ in range(1 + choices.below(6)):
        frame = message.frames.add(call_id=choices.below(4), payload_end=not choices.flag(4))
        kind = choices.below(10)
        if kind < 5:
            _open(choices, frame)
        elif kind == 5:
            frame.data = choices.blob()
        elif kind == 6:
            frame.cancel.SetInParent()
        elif kind == 7:
            frame.grant = choices.whole(bits=32)
        elif kind == 8:
            frame.call_id = choices.whole()
            frame.grant = 1
        # 9: a frame of no kind.
    return message


def _open(choices: Choices, frame: worker_pb2.RequestFrame) -> None:
    opened = frame.open
    opened.method = choices.one_of(
        (worker_pb2.METHOD_INFER, worker_pb2.METHOD_INFER, worker_pb2.METHOD_STREAM_INFER, worker_pb2.METHOD_GENERATE)
    )
    if choices.flag(16):
        opened.method = worker_pb2.Method.ValueType(choices.whole(signed=True, bits=32))
    makers: list[Callable[[Choices], Any]] = [infer_request, infer_request, generate_request]
    maker = generate_request if opened.method == worker_pb2.METHOD_GENERATE else choices.one_of(makers)
    payload = spoilt(choices, maker(choices).SerializeToString())
    opened.model = choices.one_of(("", "", "", "alphabet", "nobody"))
    opened.credit = choices.one_of((0, 1, 2, 1000, choices.whole(bits=32)))
    opened.priority = choices.whole(bits=32)
    opened.timeout_us = choices.one_of((0, 0, 0, 1, choices.whole()))
    opened.tenant, opened.request_id, opened.traceparent = choices.text(), choices.text(), choices.text(60)
    if frame.payload_end:
        opened.payload = payload
        opened.payload_bytes = choices.one_of((0, len(payload), choices.whole()))
    else:
        opened.payload = payload[: choices.below(len(payload) + 1)]
        opened.payload_bytes = choices.one_of((len(payload), len(payload), len(payload), choices.whole()))


def manifest(choices: Choices) -> models_pb2.Manifest:
    """One that describes a model, except where the choices say otherwise."""
    made = models_pb2.Manifest(
        model=choices.one_of(("m", "m", "m", "", choices.text())),
        version=choices.one_of(("1", "1", "1", "0", "-1", "٣", "9" * 5000, choices.text())),
        engine=choices.one_of(("onnx", "onnx", "llm", "", choices.text())),
        task=choices.one_of(("tensor", "tensor", "chat", "completion", "embedding", choices.text())),
        max_batch_size=choices.whole(bits=32),
        instances=choices.whole(bits=32),
        decoupled=choices.flag(),
    )
    for tensors in (made.inputs, made.outputs):
        for _ in range(choices.one_of((1, 1, 2, 0))):
            tensors.add(
                name=choices.one_of(("x", "y", choices.text())),
                datatype=choices.one_of((*DATATYPE_NAMES, choices.text())),
                shape=[choices.whole(signed=True) for _ in range(choices.below(4))],
                labels=[choices.text() for _ in range(choices.below(3))],
            )
    for _ in range(choices.one_of((1, 1, 0, 3))):
        made.files.add(
            path=choices.one_of(("model.onnx", "a/b", "a", "../a", "/a", "a//b", choices.text())),
            sha256=choices.one_of(("0" * 64, "f" * 64, "F" * 64, choices.text())),
            size_bytes=choices.whole(),
        )
    if choices.flag():
        _batching(choices, made.batching)
    if choices.flag(3):
        _sequences(choices, made.sequence_batching)
    if choices.flag(3):
        _warm_up(choices, made)
    return made


def _batching(choices: Choices, batching: models_pb2.Batching) -> None:
    batching.max_queue_delay_us = choices.whole()
    batching.preferred_batch_sizes.extend(choices.whole(bits=32) for _ in range(choices.below(3)))
    batching.max_queue_size = choices.whole(bits=32)
    batching.priority_levels = choices.whole(bits=32)
    batching.default_priority_level = choices.whole(bits=32)
    for _ in range(choices.below(3)):
        policy = batching.priority_queue_policies[choices.whole(bits=32)]
        policy.default_timeout_us = choices.whole()
        policy.timeout_action = models_pb2.TimeoutAction.ValueType(choices.below(5))


def _sequences(choices: Choices, sequences: models_pb2.SequenceBatching) -> None:
    sequences.strategy = models_pb2.SequenceStrategy.ValueType(choices.below(4))
    sequences.max_idle_us = choices.whole()
    sequences.max_sequences = choices.whole(bits=32)
    for _ in range(choices.below(3)):
        sequences.controls.add(
            input=choices.one_of(("start", "x", "")),
            kind=models_pb2.SequenceControlKind.ValueType(choices.below(6)),
            datatype=choices.one_of((*DATATYPE_NAMES, "")),
        )
    for _ in range(choices.below(3)):
        state = sequences.states.add(input=choices.one_of(("s", "")), output="t", datatype=choices.one_of(DATATYPE_NAMES))
        state.shape.extend(choices.whole(signed=True) for _ in range(choices.below(3)))


def _warm_up(choices: Choices, made: models_pb2.Manifest) -> None:
    warm_up = made.warm_ups.add(name=choices.text(), rows=choices.whole(bits=32), count=choices.whole(bits=32))
    for _ in range(choices.below(3)):
        warmed = warm_up.inputs[choices.one_of(("x", "y", choices.text()))]
        warmed.shape.extend(choices.whole(signed=True) for _ in range(choices.below(3)))
        kind = choices.below(4)
        if kind == 1:
            warmed.random = True
        elif kind == 2:
            warmed.file = choices.text()


def presence(choices: Choices, worker_id: str) -> presence_pb2.Presence:
    message = presence_pb2.Presence(
        worker_id=worker_id if not choices.flag(8) else choices.text(),
        region=choices.one_of(("here", "here", "here", "", choices.text())),
        address=choices.text(20),
        tiers=[choices.text(4) for _ in range(choices.below(3))],
        sequence=choices.whole(),
        wall_time_ms=choices.one_of((0, 1000, 60_000, 61_000, choices.whole(signed=True))),
        max_in_flight=choices.whole(bits=32),
        x25519_public_key=choices.blob(32),
    )
    for _ in range(choices.below(3)):
        message.models.add(
            model=choices.text(),
            version=choices.one_of(("1", choices.text())),
            digest=choices.text(),
            state=worker_pb2.ModelState.ValueType(choices.below(10)),
            max_batch_size=choices.whole(bits=32),
        )
    return message
