"""Inference bodies to messages and answers to bodies: JSON, binary data, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from google.api.httpbody_pb2 import HttpBody
from hypothesis import given
from hypothesis import strategies as st
from inference import grpc_service_pb2 as kserve
from penstock.gateway.v1 import rest_pb2

from gateway.rest.answers_codec import inferred
from gateway.rest.codec import infer_asked, raw_asked
from gateway.rest.envelope import asked_of, message_of
from gateway.rest.errors import AnswerUnusable, BodyTooLarge, RequestRefused
from gateway.rest.fields import MAX_JSON_BYTES
from gateway.rest.types import Body, InferAsked, TensorShape
from gateway.wire import head_of

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def asked(content: dict[str, Any], binary: bytes = b"", *, length: int | None = None) -> InferAsked:
    text = json.dumps(content).encode()
    length = len(text) if binary and length is None else length
    return infer_asked("m", "", memoryview(text + binary), length)


def message(found: InferAsked) -> kserve.ModelInferRequest:
    return kserve.ModelInferRequest.FromString(found.payload)


def tensor(name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (2,), **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), **more}


def test_everything_of_a_request_reaches_the_message() -> None:
    found = asked(
        {
            "id": "r-7",
            "parameters": {"priority": 3, "timeout": 5, "flag": True, "share": 0.5, "word": "w", "big": 2**63},
            "inputs": [
                tensor("a", data=[1.5, 2.5], parameters={"note": "n"}),
                tensor("b", "BYTES", (1,), parameters={"binary_data_size": 5}),
            ],
            "outputs": [
                {"name": "p", "parameters": {"classification": 2, "binary_data": True}},
                {"name": "q", "parameters": {"binary_data": False}},
                {"name": "r"},
            ],
        },
        b"\x01\x00\x00\x00z",
    )
    request = message(found)
    assert (request.model_name, request.model_version, request.id) == ("m", "", "r-7")
    kinds = {name: parameter.WhichOneof("parameter_choice") for name, parameter in request.parameters.items()}
    assert kinds == {
        "priority": "int64_param",
        "timeout": "int64_param",
        "flag": "bool_param",
        "share": "double_param",
        "word": "string_param",
        "big": "uint64_param",
    }
    assert [(each.name, each.datatype, list(each.shape)) for each in request.inputs] == [
        ("a", "FP32", [2]),
        ("b", "BYTES", [1]),
    ]
    assert request.inputs[0].parameters["note"].string_param == "n"
    assert not request.inputs[1].parameters
    assert list(request.raw_input_contents) == [np.array([1.5, 2.5], "<f4").tobytes(), b"\x01\x00\x00\x00z"]
    assert request.outputs[0].parameters["classification"].int64_param == 2
    assert [list(each.parameters) for each in request.outputs] == [["classification"], [], []]
    assert (found.binary, found.all_binary) == ({"p": True, "q": False}, False)
    assert found.head.priority == 3


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=40)), min_size=1, max_size=5),
    st.dictionaries(NAMES, st.one_of(st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), NAMES)),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
)
def test_the_head_is_what_a_scan_of_the_payload_finds(
    inputs: list[tuple[str, bytes]], parameters: dict[str, Any], request_id: str
) -> None:
    parameters.pop("binary_data_output", None)
    described = [tensor(name, "UINT8", (len(raw),), parameters={"binary_data_size": len(raw)}) for name, raw in inputs]
    content = {"id": request_id, "inputs": described, "parameters": parameters}
    text = json.dumps(content).encode()
    found = infer_asked("m", "2", memoryview(text + b"".join(raw for _, raw in inputs)), len(text))
    assert found.head == head_of(found.payload)
    assert list(message(found).raw_input_contents) == [raw for _, raw in inputs]


REFUSED: list[tuple[Any, bytes, str]] = [
    ({}, b"", "'inputs' is missing or empty"),
    ({"inputs": {}}, b"", "'inputs' is an object; expected an array"),
    ({"inputs": [3]}, b"", r"'inputs\[0\]' is an integer; expected an object"),
    ({"inputs": [{}]}, b"", r"'inputs\[0\].name' is null; expected a name"),
    ({"inputs": [tensor(datatype="FP31", data=[])]}, b"", r"'inputs\[0\].datatype' is 'FP31'"),
    ({"inputs": [tensor(shape=(-1,), data=[])]}, b"", "dimensions are integers from 0"),
    ({"inputs": [{"name": "x", "datatype": "FP32", "data": []}]}, b"", r"'inputs\[0\].shape' is null"),
    ({"inputs": [tensor()]}, b"", "input 'x' has no data"),
    ({"inputs": [tensor(data=[1])]}, b"", "1 values in 'data'"),
    ({"inputs": [tensor(data=[1, 2])]}, b"abc", "3 bytes follow the binary data"),
    ({"inputs": [tensor(parameters={"binary_data_size": 9})]}, b"abc", "says binary_data_size 9; 3 bytes"),
    ({"inputs": [tensor(parameters={"binary_data_size": -1})]}, b"abc", "expected a number of bytes"),
    ({"inputs": [tensor(data=[1, 2], parameters={"binary_data_size": 3})]}, b"abc", "both 'data' and binary_data_size"),
    ({"inputs": [tensor(data=[1, 2])], "parameters": {"p": [1]}}, b"", "'parameters.p' is an array"),
    ({"inputs": [tensor(data=[1, 2])], "parameters": {"p": 2**64}}, b"", "more than 64 bits"),
    ({"inputs": [tensor(data=[1, 2])], "parameters": {"binary_data_output": 1}}, b"", "expected a boolean"),
    ({"inputs": [tensor(data=[1, 2])], "outputs": [{}]}, b"", r"'outputs\[0\].name' is null"),
    ({"inputs": [tensor(data=[1, 2])], "id": 7}, b"", "'id' is an integer; expected a string"),
    ({"inputs": [tensor("\ud800", data=[1, 2])]}, b"", "half a surrogate pair"),
    ({"inputs": [tensor(data=[1, 2])], "parameters": {"\ud800": 1}}, b"", "half a surrogate pair"),
]


@pytest.mark.parametrize(("content", "binary", "says"), REFUSED, ids=[says[:24] for *_, says in REFUSED])
def test_what_is_wrong_is_named(content: Any, binary: bytes, says: str) -> None:
    with pytest.raises(RequestRefused, match=says):
        asked(content, binary)


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff", b'{"a":' * 100_000, b"1" * 5_000, b"null"])
def test_bodies_that_are_no_json_object(body: bytes) -> None:
    with pytest.raises(RequestRefused):
        infer_asked("m", "", memoryview(body), None)


def test_a_header_length_beyond_the_body() -> None:
    with pytest.raises(RequestRefused, match="is 5, the body has 2 bytes"):
        infer_asked("m", "", memoryview(b"{}"), 5)


def test_only_the_json_is_bounded() -> None:
    with pytest.raises(BodyTooLarge, match="binary data"):
        infer_asked("m", "", memoryview(b" " * (MAX_JSON_BYTES + 1)), None)
    size = MAX_JSON_BYTES + 1
    found = asked({"inputs": [tensor("x", "UINT8", (size,), parameters={"binary_data_size": size})]}, bytes(size))
    assert len(message(found).raw_input_contents[0]) == size


@given(st.binary(max_size=300))
def test_no_bytes_do_worse_than_a_refusal(body: bytes) -> None:
    for length in (None, len(body) // 2):
        with pytest.raises(RequestRefused):
            infer_asked("m", "", memoryview(body), length)


BARE: list[tuple[str, tuple[int, ...], int, list[int] | None]] = [
    ("FP32", (4,), 16, [4]),
    ("FP32", (-1, 4), 32, [2, 4]),
    ("FP32", (-1, -1), 32, [1, 8]),
    ("FP32", (2, -1), 16, [2, 2]),
    ("UINT8", (-1, 2, 2), 4, [1, 2, 2]),
    ("FP32", (-1, 3), 16, None),
    ("FP32", (4,), 15, None),
    ("FP32", (-1,), 0, None),
    ("FP32", (0, -1), 4, None),
]


@pytest.mark.parametrize(("datatype", "shape", "size", "expected"), BARE)
def test_bare_bytes_get_the_shape_that_they_have(
    datatype: str, shape: tuple[int, ...], size: int, expected: list[int] | None
) -> None:
    body, described = memoryview(bytes(range(size))), TensorShape("x", datatype, shape)
    if expected is None:
        with pytest.raises(RequestRefused, match="do not make"):
            raw_asked("m", "", body, described)
        return
    request = message(raw_asked("m", "", body, described))
    assert (list(request.inputs[0].shape), request.raw_input_contents[0]) == (expected, bytes(body))


def test_bare_bytes_for_texts_are_one_element() -> None:
    request = message(raw_asked("m", "", memoryview(b"hello"), TensorShape("t", "BYTES", (-1, 1))))
    assert (list(request.inputs[0].shape), request.raw_input_contents[0]) == ([1, 1], b"\x05\x00\x00\x00hello")


def response(**outputs: tuple[str, list[int], bytes]) -> bytes:
    made = kserve.ModelInferResponse(model_name="m", model_version="3", id="r")
    made.parameters["done"].bool_param = True
    for name, (datatype, shape, raw) in outputs.items():
        made.outputs.add(name=name, datatype=datatype, shape=shape)
        made.raw_output_contents.append(raw)
    return made.SerializeToString()


ANSWER = response(p=("FP32", [2], np.array([0.5, -1], "<f4").tobytes()), q=("BYTES", [1], b"\x01\x00\x00\x00z"))
INPUT = {"inputs": [tensor(data=[1, 2])]}


async def test_an_answer_as_json() -> None:
    body = await inferred(ANSWER, asked(INPUT))
    assert (body.content_type, body.headers) == ("application/json", ())
    assert json.loads(b"".join(body.parts)) == {
        "model_name": "m",
        "model_version": "3",
        "id": "r",
        "parameters": {"done": True},
        "outputs": [
            {"name": "p", "datatype": "FP32", "shape": [2], "data": [0.5, -1.0]},
            {"name": "q", "datatype": "BYTES", "shape": [1], "data": ["z"]},
        ],
    }


async def test_an_answer_partly_as_bytes() -> None:
    outputs = [{"name": "p", "parameters": {"binary_data": True}}, {"name": "q"}]
    body = await inferred(ANSWER, asked({**INPUT, "outputs": outputs}))
    ((name, length),) = body.headers
    content = b"".join(body.parts)
    assert (body.content_type, name) == ("application/octet-stream", "inference-header-content-length")
    told = json.loads(content[: int(length)])
    assert [output.get("parameters") for output in told["outputs"]] == [{"binary_data_size": 8}, None]
    assert content[int(length) :] == np.array([0.5, -1], "<f4").tobytes()


@given(st.lists(st.binary(max_size=50), max_size=4), st.booleans())
async def test_the_bytes_of_all_outputs_follow_in_order(raws: list[bytes], all_binary: bool) -> None:
    outputs = {f"o{place}": ("UINT8", [len(raw)], raw) for place, raw in enumerate(raws)}
    body = await inferred(response(**outputs), asked({**INPUT, "parameters": {"binary_data_output": all_binary}}))
    carried = asked_of(b"\x1a" + _sized(message_of(body)))
    content = bytes(carried.body)
    length = int(dict(body.headers).get("inference-header-content-length", len(content)))
    assert content[length:] == (b"".join(raws) if all_binary else b"")
    told = json.loads(content[:length])["outputs"]
    assert [each.get("data") for each in told] == [None if all_binary else list(raw) for raw in raws]


@pytest.mark.parametrize("answer", [b"\xff", response(p=("FP32", [1], b""))[:-2] + b"\x00", b"\x2a\x02\x0a\x00"])
async def test_answers_that_are_none(answer: bytes) -> None:
    with pytest.raises(AnswerUnusable):
        await inferred(answer, asked(INPUT))


def test_the_envelope_is_protobufs() -> None:
    carried = HttpBody.FromString(message_of(Body((b"ab", memoryview(b"cd")), "text/plain")))
    assert (carried.content_type, carried.data) == ("text/plain", b"abcd")
    request = rest_pb2.RestRequest(model="é", version="2", region="r", repository="s")
    request.body.content_type, request.body.data = "x", b"\x00" * 300
    found = asked_of(request.SerializeToString())
    assert (found.model, found.version, found.region, found.repository) == ("é", "2", "r", "s")
    assert bytes(found.body) == b"\x00" * 300


def _sized(content: bytes) -> bytes:
    """A length-delimited field's content after its tag."""
    size, head = len(content), bytearray()
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + content
