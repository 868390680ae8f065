"""What a generation's answers say of the tokens made, and a request to go on after them: as workers write and read both.

The only place on the gateway that sees what `gateway.migration` remembers. Decides nothing. Requests are not parsed: fields put
behind a message belong to it, repeated ones and new entries of a map alike (protobuf encoding guide, "Last One Wins").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from inference import grpc_service_pb2
from penstock.worker.v1 import worker_pb2

from gateway.links.types import Method
from runtime.errors import DataLoss

_MADE, _RESUMED, _FINAL = "token_ids", "resume_token_ids", "triton_final_response"
"""Parameters of ModelStreamInfer with a text model: worker.kserve.text."""


@dataclass(frozen=True, slots=True)
class Told:
    """What some answers of one generation said together."""

    token_ids: Sequence[int]
    has_ended: bool
    """The last of them said that the text is at its end."""


@dataclass(frozen=True, slots=True)
class TextCodec:
    """How one method's messages are read and written."""

    told: Callable[[Sequence[bytes]], Told]
    """Of answers in the order in which they came, at least one. Raises DataLoss."""
    resuming: Callable[[bytes, Sequence[int]], bytes]
    """The request, to be gone on with after these tokens."""


def _generate_told(answers: Sequence[bytes]) -> Told:
    try:
        merged = worker_pb2.GenerateResponse.FromString(b"".join(answers))
    except DecodeError as error:
        raise DataLoss(f"{len(answers)} answers of a worker that are no GenerateResponse") from error
    return Told(merged.token_ids, bool(merged.finish_reason))


def _generate_resuming(payload: bytes, token_ids: Sequence[int]) -> bytes:
    return payload + worker_pb2.GenerateRequest(resume_token_ids=token_ids).SerializeToString()


def _infer_told(answers: Sequence[bytes]) -> Told:
    token_ids: list[int] = []
    ended = False
    for answer in answers:
        try:
            said = grpc_service_pb2.ModelStreamInferResponse.FromString(answer).infer_response.parameters
            ended = said[_FINAL].bool_param if _FINAL in said else False
            if _MADE in said:
                token_ids.extend(map(int, said[_MADE].string_param.split(",")))
        except (DecodeError, ValueError) as error:
            raise DataLoss("a worker's answer is no ModelStreamInferResponse of a text model") from error
    return Told(token_ids, ended)


def _infer_resuming(payload: bytes, token_ids: Sequence[int]) -> bytes:
    wanted = grpc_service_pb2.ModelInferRequest()
    wanted.parameters[_RESUMED].string_param = ",".join(map(str, token_ids))
    return payload + wanted.SerializeToString()


TEXT_CODECS = {
    Method.GENERATE: TextCodec(_generate_told, _generate_resuming),
    Method.STREAM_INFER: TextCodec(_infer_told, _infer_resuming),
}
