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
from gateway.openai.pieces import NO_USAGE, Finish, Logprob, Piece, TokenLogprob, ToolCallPart, Usage
from gateway.openai.types import Signature, TensorShape, TextAsked, Turn

Vectors = NDArray[np.float32]

_FINISHES: dict[int, Finish] = {
    worker_pb2.FINISH_REASON_STOP: Finish.STOP,
    worker_pb2.FINISH_REASON_LENGTH: Finish.LENGTH,
    worker_pb2.FINISH_REASON_TOOL_CALLS: Finish.TOOL_CALLS,
    worker_pb2.FINISH_REASON_CONTENT_FILTER: Finish.CONTENT_FILTER,
}
_response = worker_pb2.GenerateResponse.FromString


def generate_request(asked: TextAsked, choice: int = 0) -> bytes:
    """A serialised penstock.worker.v1.GenerateRequest for one of the choices; equal ones are equal byte by byte.

    Where a seed is given, answers to one prompt get one each, so that they differ and can be had again.
    """
    place, of_prompt = divmod(choice, asked.n)
    sampling, use = asked.sampling, asked.tool_use
    message = worker_pb2.GenerateRequest(
        model=asked.model,
        sampling=worker_pb2.Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=None if sampling.seed is None else (sampling.seed + of_prompt) % 2**64,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
        ),
        max_tokens=asked.max_tokens,
        stop=asked.stop,
        top_logprobs=asked.top_logprobs,
        tools_json=use.tools_json,
        tool_choice_json=use.choice_json,
        response_format_json=use.response_format_json,
        logit_bias=dict(asked.logit_bias),
        parallel_tool_calls=use.parallel,
        whole=not asked.stream,
    )
    prompt = asked.prompts[place]
    if isinstance(prompt, str):
        message.prompt = prompt
    else:
        message.chat.messages.extend(map(_turn, prompt))
    return message.SerializeToString(deterministic=True)


def _turn(turn: Turn) -> worker_pb2.ChatMessage:
    return worker_pb2.ChatMessage(
        role=turn.role,
        content=turn.content,
        name=turn.name,
        tool_calls_json=turn.tool_calls_json,
        tool_call_id=turn.tool_call_id,
    )


def piece_of(payload: bytes, choice: int = 0, *, plain: bool = True) -> Piece:
    """`plain`: nothing but text was asked for. Raises AnswerUnusable."""
    try:
        message = _response(payload)
    except DecodeError as error:
        raise AnswerUnusable(f"the {len(payload)} bytes that a worker sent are no GenerateResponse") from error
    reason = message.finish_reason
    piece = Piece(message.text, None, NO_USAGE, choice)
    if not plain:
        piece.logprobs = tuple(TokenLogprob(_logprob(each.chosen), tuple(map(_logprob, each.top))) for each in message.logprobs)
        piece.tool_calls = tuple(ToolCallPart(each.index, each.id, each.name, each.arguments) for each in message.tool_calls)
    if reason:
        piece.finish = _FINISHES.get(reason, Finish.STOP)
        piece.usage = Usage(message.usage.prompt_tokens, message.usage.completion_tokens)
    return piece


def _logprob(logprob: worker_pb2.Logprob) -> Logprob:
    return Logprob(logprob.token, logprob.logprob)


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
