"""Text models behind the KServe contract: a `text_input` becomes a generation, its pieces become `text_output` responses.

A codec. The names of the request parameters are those of Triton's text backends: max_tokens, temperature, top_p, top_k, seed,
stop; and `chat_template` (bool), which tells whether a chat model's own template is put around the text (it is, unless false).
"""

from __future__ import annotations

from collections.abc import Mapping

from inference import grpc_service_pb2

from runtime.errors import InvalidArgument
from worker.engine import Message, Piece, Sampling, TextRequest
from worker.kserve import RequestCodec, TensorRequest
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
    "chat_template": (bool,),
}


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
        if name in ("max_tokens", "top_k", "seed") and not 0 <= int(value) < 2**63:
            raise InvalidArgument(f"parameter {name!r} is {value}; it cannot be negative or exceed 63 bits")
    source = next((tensor.name for tensor in spec.inputs if tensor.datatype == "BYTES"), "")
    text = bytes(request.inputs[source].reshape(-1)[0]).decode()
    stop = str(asked["stop"]) if "stop" in asked else ""
    templated = spec.task is Task.CHAT and asked.get("chat_template", True)
    return TextRequest(
        prompt=(Message("user", text),) if templated else text,
        sampling=Sampling(
            temperature=float(asked["temperature"]) if "temperature" in asked else None,
            top_p=float(asked["top_p"]) if "top_p" in asked else None,
            top_k=int(asked["top_k"]) if "top_k" in asked else None,
            seed=int(asked["seed"]) if "seed" in asked else None,
        ),
        max_tokens=int(asked.get("max_tokens", 0)),
        stop=(stop,) if stop else (),
    )


def text_response(codec: RequestCodec, request: TensorRequest, piece: Piece) -> grpc_service_pb2.ModelInferResponse:
    """One piece as a response. The last one is marked final; it has no outputs where the client asked for such an end."""
    final = piece.finish is not None
    if final and not piece.text and request.parameters.empty_final:
        response = codec.response(request.request_id, (), ())
    else:
        array = object_array([piece.text.encode()])
        response = codec.response(request.request_id, request.outputs[:1], [array] * (request.outputs[0].index + 1))
    response.parameters[FINAL].bool_param = final
    if piece.finish is not None:
        response.parameters["finish_reason"].string_param = piece.finish.value
        response.parameters["prompt_tokens"].int64_param = piece.prompt_tokens
        response.parameters["completion_tokens"].int64_param = piece.completion_tokens
    return response
