"""The scan of a request's head, held against the protobuf parser."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from inference import grpc_service_pb2

from gateway.wire import MAX_FIELDS, RequestMalformed, head_of

Request = grpc_service_pb2.ModelInferRequest
_TEXT = st.text(max_size=200)
_PARAMETER = st.one_of(
    st.booleans().map(lambda value: grpc_service_pb2.InferParameter(bool_param=value)),
    st.integers(-(2**63), 2**63 - 1).map(lambda value: grpc_service_pb2.InferParameter(int64_param=value)),
    _TEXT.map(lambda value: grpc_service_pb2.InferParameter(string_param=value)),
    st.floats(allow_nan=False).map(lambda value: grpc_service_pb2.InferParameter(double_param=value)),
    st.integers(0, 2**64 - 1).map(lambda value: grpc_service_pb2.InferParameter(uint64_param=value)),
)


@st.composite
def requests(draw: st.DrawFn) -> grpc_service_pb2.ModelInferRequest:
    request = Request(model_name=draw(_TEXT), model_version=draw(_TEXT), id=draw(_TEXT))
    for name, parameter in draw(st.dictionaries(_TEXT, _PARAMETER, max_size=4)).items():
        request.parameters[name].CopyFrom(parameter)
    for name in draw(st.lists(_TEXT, max_size=3)):
        request.inputs.add(name=name, datatype="FP32", shape=[1, -1])
    request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=300), max_size=3)))
    return request


def agrees(payload: bytes) -> None:
    """What the parser takes, the scan takes and reads alike; what the scan refuses, the parser refuses."""
    try:
        parsed = Request.FromString(payload)
    except DecodeError:
        try:
            head_of(payload)
        except RequestMalformed:
            return
        return
    head = head_of(payload)
    assert (head.model, head.version, head.request_id) == (parsed.model_name, parsed.model_version, parsed.id)
    assert head.parameters.keys() == parsed.parameters.keys()
    for name, parameter in parsed.parameters.items():
        chosen = parameter.WhichOneof("parameter_choice")
        value = getattr(parameter, chosen) if chosen else ""
        assert repr(head.parameters[name]) == repr(value)


@given(requests())
def test_every_request_is_read_as_the_parser_reads_it(request: grpc_service_pb2.ModelInferRequest) -> None:
    agrees(request.SerializeToString())


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read_as_the_parser_reads_it(payload: bytes) -> None:
    agrees(payload)


@settings(max_examples=500)
@given(requests(), requests(), st.data())
def test_damaged_requests_are_refused_or_read_as_the_parser_reads_them(
    first: grpc_service_pb2.ModelInferRequest, second: grpc_service_pb2.ModelInferRequest, data: st.DataObject
) -> None:
    payload = bytearray(first.SerializeToString() + second.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        if payload:
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    agrees(bytes(payload[: data.draw(st.integers(0, len(payload)))]))


@pytest.mark.parametrize(
    "payload",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\x0a\x02\xff\xff",
        b"\x00\x01",
        b"\x0f",
        b"\x0b",
        b"\x0b\x14",
        b"\x0c",
        b"\x3a" + b"\xff" * 10 + b"\x01",
        b"\x22\x02\x0a\x05",
        b"\x0a\x00" * (MAX_FIELDS + 1),
        b"\x0b" * 1000,
    ],
)
def test_what_is_no_request_is_refused(payload: bytes) -> None:
    with pytest.raises(RequestMalformed):
        head_of(payload)


def test_the_last_of_two_names_counts_and_unknown_fields_are_stepped_over() -> None:
    payload = b"\x0a\x01a" + b"\xf8\x07\x01" + b"\x83\x08\x08\x01\x84\x08" + b"\x0a\x01b"
    assert head_of(payload).model == Request.FromString(payload).model_name == "b"


@pytest.mark.parametrize(("kind", "value", "priority"), [("int64_param", 7, 7), ("uint64_param", 7, 7), ("int64_param", -1, 0)])
def test_priority_comes_signed_or_unsigned(kind: str, value: int, priority: int) -> None:
    request = Request(model_name="m")
    setattr(request.parameters["priority"], kind, value)
    assert head_of(request.SerializeToString()).priority == priority


@pytest.mark.parametrize(
    ("kind", "value", "key"), [("int64_param", 9, "9"), ("string_param", "s", "s"), ("int64_param", 0, "")]
)
def test_a_sequence_is_a_session(kind: str, value: int | str, key: str) -> None:
    request = Request(model_name="m")
    setattr(request.parameters["sequence_id"], kind, value)
    assert head_of(request.SerializeToString()).session_key == key
