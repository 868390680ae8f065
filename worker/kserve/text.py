"""Text models behind the KServe contract: a `text_input` becomes a generation, its pieces become `text_output` responses.

A codec. The names of the request parameters are those of Triton's text backends: max_tokens, temperature, top_p, top_k, seed,
stop, frequency_penalty, presence_penalty, repetition_penalty, logprobs (how many of the likeliest tokens are told at each
place, 0 = the chosen one alone); and `chat_template` (bool), which tells whether a chat model's own template is put around the
text (it is, unless false). Log probabilities come as a response parameter `logprobs`: JSON, as OpenAI's interface has them.
Where the engine knows them, a response parameter `token_ids` has the tokens that became its text: numbers, commas between them.
All of them so far, given as request parameter `resume_token_ids`, have the generation go on after them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from inference import grpc_service_pb2

from runtime.errors import InvalidArgument
from worker.engine import Logprob, Message, Piece, Sampling, TextRequest, TokenLogprob
from worker.kserve.codec import RequestCodec, TensorRequest
from worker.tensors import object_array
from worker.types import ModelSpec, Task

FINAL = "triton_final_response"
_KINDS: Mapping[str, tuple[type, ...]] = {
    "max_tokens": (int,),
    "temperature": (float, int),
    "top_p": (float, int),
    "top_k": (int,),
    "seed": (int,),
    "stop": (str,),
    "frequency_penalty": (float, int),
    "presence_penalty": (float, int),
    "repetition_penalty": (float, int),
    "logprobs": (int,),
    "chat_template": (bool,),
    "resume_token_ids": (str,),
}
_COUNTS = ("max_tokens", "top_k", "seed", "logprobs")


def text_request(spec: ModelSpec, request: TensorRequest) -> TextRequest:
    """The generation that a decoded request asks for. Raises InvalidArgument."""
    asked = dict(request.parameters.custom or {})
    for name, value in asked.items():
        kinds = _KINDS.get(name)
        if kinds is None:
            raise InvalidArgument(
                f"parameter {name!r} means nothing to model {spec.model!r}; it knows {', '.join(sorted(_KINDS))}"
            )
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise InvalidArgument(
                f"parameter {name!r} is {type(value).__name__}; expected {' or '.join(k.__name__ for k in kinds)}"
            )
        if name in _COUNTS and not 0 <= int(value) < 2**63:
            raise InvalidArgument(f"parameter {name!r} is {value}; it cannot be negative or exceed 63 bits")
    source = next((tensor.name for tensor in spec.inputs if tensor.datatype == "BYTES"), "")
    texts = request.inputs[source].reshape(-1)
    if texts.size != 1:
        raise InvalidArgument(f"input {source!r} holds {texts.size} texts; a request to model {spec.model!r} has one")
    text = bytes(texts[0]).decode()
    stop = str(asked["stop"]) if "stop" in asked else ""
    templated = spec.task is Task.CHAT and asked.get("chat_template", True)
    return TextRequest(
        prompt=(Message("user", text),) if templated else text,
        sampling=Sampling(
            temperature=_fraction(asked, "temperature"),
            top_p=_fraction(asked, "top_p"),
            top_k=int(asked["top_k"]) if "top_k" in asked else None,
            seed=int(asked["seed"]) if "seed" in asked else None,
            frequency_penalty=_fraction(asked, "frequency_penalty"),
            presence_penalty=_fraction(asked, "presence_penalty"),
            repetition_penalty=_fraction(asked, "repetition_penalty"),
        ),
        max_tokens=int(asked.get("max_tokens", 0)),
        stop=(stop,) if stop else (),
        top_logprobs=int(asked["logprobs"]) if "logprobs" in asked else None,
        resume_token_ids=_resumed(str(asked.get("resume_token_ids", ""))),
    )


def _resumed(written: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, written.split(","))) if written else ()
    except ValueError as error:
        raise InvalidArgument(
            f"parameter 'resume_token_ids' is {written[:100]!r}; it takes token numbers with commas between"
        ) from error


def _fraction(asked: Mapping[str, bool | int | float | str], name: str) -> float | None:
    return float(asked[name]) if name in asked else None


def text_response(codec: RequestCodec, request: TensorRequest, piece: Piece) -> grpc_service_pb2.ModelInferResponse:
    """One piece as a response. The last one is marked final; it has no outputs where the client asked for such an end."""
    final = piece.finish is not None
    if final and not piece.text and request.parameters.empty_final:
        response = codec.response(request.request_id, (), ())
    else:
        array = object_array([piece.text.encode()])
        response = codec.response(request.request_id, request.outputs[:1], [array] * (request.outputs[0].index + 1))
    response.parameters[FINAL].bool_param = final
    if piece.token_ids:
        response.parameters["token_ids"].string_param = ",".join(map(str, piece.token_ids))
    if piece.logprobs:
        response.parameters["logprobs"].string_param = json.dumps([_told(each) for each in piece.logprobs])
    if piece.finish is not None:
        response.parameters["finish_reason"].string_param = piece.finish.value
        response.parameters["prompt_tokens"].int64_param = piece.prompt_tokens
        response.parameters["completion_tokens"].int64_param = piece.completion_tokens
    return response


def _told(place: TokenLogprob) -> dict[str, object]:
    return {**_named(place.chosen), "top_logprobs": [_named(each) for each in place.top]}


def _named(logprob: Logprob) -> dict[str, object]:
    return {
        "token": logprob.token.decode(errors="replace"),
        "logprob": logprob.logprob,
        "bytes": list(logprob.token),
    }
