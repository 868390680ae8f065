"""Generation and tensor messages, to and from the nouns of the OpenAI door. Only the servicer sees them besides."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError
from inference import grpc_service_pb2 as kserve
from numpy.typing import NDArray
from penstock.worker.v1 import worker_pb2

from gateway.openai.errors import AnswerUnusable
from gateway.openai.types import Finish, Piece, Signature, TensorShape, TextAsked, Usage

Vectors = NDArray[np.float32]

_FINISHES: dict[int, Finish] = {
    worker_pb2.FINISH_REASON_STOP: Finish.STOP,
    worker_pb2.FINISH_REASON_LENGTH: Finish.LENGTH,
}


def generate_request(asked: TextAsked) -> bytes:
    """A serialised penstock.worker.v1.GenerateRequest."""
    sampling = worker_pb2.Sampling(
        temperature=asked.sampling.temperature,
        top_p=asked.sampling.top_p,
        top_k=asked.sampling.top_k,
        seed=asked.sampling.seed,
    )
    message = worker_pb2.GenerateRequest(model=asked.model, sampling=sampling, max_tokens=asked.max_tokens, stop=asked.stop)
    if isinstance(asked.prompt, str):
        message.prompt = asked.prompt
    else:
        message.chat.messages.extend(worker_pb2.ChatMessage(role=turn.role, content=turn.content) for turn in asked.prompt)
    return message.SerializeToString()


def piece_of(payload: bytes) -> Piece:
    """Raises AnswerUnusable."""
    try:
        message = worker_pb2.GenerateResponse.FromString(payload)
    except DecodeError as error:
        raise AnswerUnusable(f"the {len(payload)} bytes that a worker sent are no GenerateResponse") from error
    if not message.finish_reason:
        return Piece(message.text)
    finish = _FINISHES.get(message.finish_reason, Finish.STOP)
    return Piece(message.text, finish, Usage(message.usage.prompt_tokens, message.usage.completion_tokens))


def signature_of(metadata: kserve.ModelMetadataResponse) -> Signature:
    return Signature(
        tuple(TensorShape(each.name, each.datatype, tuple(each.shape)) for each in metadata.inputs),
        tuple(TensorShape(each.name, each.datatype, tuple(each.shape)) for each in metadata.outputs),
    )


def infer_request(model: str, version: str, tensor: TensorShape, raw: bytes, output: str) -> bytes:
    """A serialised ModelInferRequest with one input, `tensor.shape` being the shape of this very tensor."""
    message = kserve.ModelInferRequest(model_name=model, model_version=version, raw_input_contents=[raw])
    message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    message.outputs.add(name=output)
    return message.SerializeToString()


def raw_texts(texts: Sequence[str]) -> bytes:
    """BYTES elements as they travel: each a little-endian uint32 length and its bytes."""
    encoded = [text.encode() for text in texts]
    return b"".join(part for each in encoded for part in (struct.pack("<I", len(each)), each))


def raw_tokens(token_ids: Sequence[int]) -> bytes:
    """INT64 elements as they travel."""
    return np.asarray(token_ids, "<i8").tobytes()


def vectors_of(payload: bytes, output: str, rows: int) -> Vectors:
    """The vectors that a ModelInferResponse holds: float32 [rows, d]. Raises AnswerUnusable."""
    try:
        message = kserve.ModelInferResponse.FromString(payload)
    except DecodeError as error:
        raise AnswerUnusable(f"the {len(payload)} bytes that a worker sent are no ModelInferResponse") from error
    for index, tensor in enumerate(message.outputs):
        if tensor.name == output:
            raw = message.raw_output_contents[index] if index < len(message.raw_output_contents) else b""
            flat = np.frombuffer(raw, "<f4") if raw else np.asarray(tensor.contents.fp32_contents, np.float32)
            return _rows(flat, tensor.datatype, rows)
    raise AnswerUnusable(f"the model's answer has no output {output!r}")


def _rows(flat: Vectors, datatype: str, rows: int) -> Vectors:
    if datatype != "FP32" or not flat.size or flat.size % rows:
        raise AnswerUnusable(
            f"the model answered {flat.size} values of {datatype} to {rows} inputs; FP32 [{rows}, d] was expected"
        )
    if not np.isfinite(flat).all():
        raise AnswerUnusable("the model answered with values that are no finite numbers")
    return flat.reshape(rows, -1)
