"""A text model's request parameters, by the names that Triton's text backends have for them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from inference import grpc_service_pb2

from runtime.errors import InvalidArgument
from tests.worker.markov import language_spec
from worker.engine import Finish, Logprob, Message, Piece, Sampling, TextRequest, TokenLogprob
from worker.kserve.codec import RequestCodec, TensorRequest
from worker.kserve.text import FINAL, text_request, text_response

SPEC = language_spec()
CODEC = RequestCodec(SPEC, utf8_bytes=True)


def decoded(**parameters: float | str) -> TensorRequest:
    request = grpc_service_pb2.ModelInferRequest(model_name="alphabet", id="1")
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"hi")
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return CODEC.decode(request)


def test_everything_that_can_be_asked() -> None:
    asked = decoded(
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        seed=2,
        stop="x",
        frequency_penalty=1,
        presence_penalty=-0.5,
        repetition_penalty=1.2,
        logprobs=4,
        chat_template=False,
    )
    sampling = Sampling(0.5, 0.9, 3, 2, 1.0, -0.5, 1.2)
    assert text_request(SPEC, asked) == TextRequest("hi", sampling, 5, ("x",), top_logprobs=4)


def test_nothing_asked() -> None:
    assert text_request(SPEC, decoded()) == TextRequest((Message("user", "hi"),))


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"ignore_eos": True}, "'ignore_eos' means nothing to model 'alphabet'"),
        ({"logprobs": -1}, "'logprobs' is -1"),
        ({"logprobs": "all"}, "'logprobs' is str; expected int"),
        ({"presence_penalty": True}, "'presence_penalty' is bool"),
        ({"resume_token_ids": "1,two"}, "'resume_token_ids' is '1,two'; it takes token numbers with commas between"),
    ],
)
def test_what_cannot_be_asked(parameters: dict[str, float | str], sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        text_request(SPEC, decoded(**parameters))


@pytest.mark.parametrize("texts", [[], [b"a", b"b"]], ids=["none", "two"])
def test_a_request_has_one_text(texts: list[bytes]) -> None:
    spec = replace(SPEC, inputs=tuple(replace(tensor, shape=(-1,)) for tensor in SPEC.inputs))
    request = grpc_service_pb2.ModelInferRequest(model_name="alphabet")
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(texts)
    with pytest.raises(InvalidArgument, match=f"holds {len(texts)} texts"):
        text_request(spec, RequestCodec(spec, utf8_bytes=True).decode(request))


def test_log_probabilities_are_told_as_openai_tells_them() -> None:
    place = TokenLogprob(Logprob(7, b"\xc3\xa9", -0.5), (Logprob(7, b"\xc3\xa9", -0.5),))
    response = text_response(CODEC, decoded(), Piece("é", (7,), logprobs=(place,)))
    told = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    assert json.loads(response.parameters["logprobs"].string_param) == [{**told, "top_logprobs": [told]}]
    last = text_response(CODEC, decoded(), Piece("", (), Finish.STOP, 1, 2))
    assert "logprobs" not in last.parameters
    assert last.parameters[FINAL].bool_param


def test_tokens_are_told_and_a_generation_goes_on_after_those_that_are_given_back() -> None:
    told = text_response(CODEC, decoded(), Piece("hi", (7, 12))).parameters["token_ids"].string_param
    assert told == "7,12"
    assert text_request(SPEC, decoded(resume_token_ids=told)).resume_token_ids == (7, 12)
    assert "token_ids" not in text_response(CODEC, decoded(), Piece("an upstream's", ())).parameters
