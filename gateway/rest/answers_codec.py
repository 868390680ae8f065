"""Inference answers: the protocol's messages to HTTP bodies. Binary tensors are copied once, into the message that leaves.

Source: Open Inference Protocol (HTTP/REST), "Inference Response JSON Object"; Triton's protocol/extension_binary_data.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from google.protobuf.message import DecodeError
from inference import grpc_service_pb2 as kserve

from gateway.rest.envelope import field_of, fields
from gateway.rest.errors import AnswerUnusable
from gateway.rest.fields import written
from gateway.rest.tensors import rendered
from gateway.rest.types import BINARY_TYPE, HEADER_LENGTH, Body, InferAsked, Part

_RAW_OUTPUTS = 6


async def inferred(answer: bytes, asked: InferAsked) -> Body:
    """A ModelInferResponse as the body that was asked for. Gives others their turn where much of it becomes JSON.

    Raises OutputUnfit, AnswerUnusable.
    """
    message, raws = _parsed(answer)
    told: dict[str, object] = {"model_name": message.model_name, "model_version": message.model_version}
    if message.id:
        told["id"] = message.id
    if message.parameters:
        told["parameters"] = _values(message.parameters)
    json_parts: list[bytes] = [written(told).encode()[:-1], b',"outputs":[']
    binary: list[Part] = []
    for place, (output, raw) in enumerate(zip(message.outputs, raws, strict=True)):
        described: dict[str, object] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        parameters = _values(output.parameters)
        if wants_bytes := asked.binary.get(output.name, asked.all_binary):
            parameters["binary_data_size"] = len(raw)
            binary.append(raw)
        if parameters:
            described["parameters"] = parameters
        json_parts.append((b"," if place else b"") + written(described).encode()[:-1])
        if not wants_bytes:
            json_parts.append(b',"data":')
            for piece in rendered(raw, output.datatype, output.name):
                json_parts.append(piece)
                if len(piece) > 1:
                    await asyncio.sleep(0)
        json_parts.append(b"}")
    json_parts.append(b"]}")
    if not any(asked.binary.get(output.name, asked.all_binary) for output in message.outputs):
        return Body(json_parts)
    length = str(sum(map(len, json_parts)))
    return Body([*json_parts, *binary], BINARY_TYPE, ((HEADER_LENGTH, length),))


def _parsed(answer: bytes) -> tuple[kserve.ModelInferResponse, list[memoryview]]:
    """The message without its tensors, and these where they lie."""
    rest: list[Part] = []
    raws: list[memoryview] = []
    try:
        for number, content in fields(memoryview(answer)):
            if number == _RAW_OUTPUTS:
                raws.append(content)
            else:
                rest += field_of(number, content)
        message = kserve.ModelInferResponse.FromString(b"".join(rest))
    except (IndexError, DecodeError) as error:
        raise AnswerUnusable(f"the {len(answer)} bytes that a worker sent are no ModelInferResponse") from error
    if len(raws) != len(message.outputs):
        raise AnswerUnusable(f"a worker answered {len(message.outputs)} outputs with the bytes of {len(raws)}")
    return message, raws


def _values(parameters: Mapping[str, kserve.InferParameter]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            found[name] = getattr(parameter, choice)
    return found
