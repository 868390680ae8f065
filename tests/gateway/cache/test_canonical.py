"""Which requests are one and the same: what may differ between equal ones, and that nothing else may."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from inference import grpc_service_pb2 as pb

from gateway.cache.canonical import MAX_INPUT_BYTES, canonical

Request = pb.ModelInferRequest
NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True)


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """As clients write them: all raw, or all typed."""
    request = Request(model_name="m", id=draw(st.text(max_size=5)))
    raw = draw(st.booleans())
    for name in draw(NAMES):
        tensor = request.inputs.add(name=name, datatype="FP32", shape=draw(st.lists(st.integers(-1, 2**62), max_size=3)))
        if raw:
            request.raw_input_contents.append(draw(st.binary(max_size=40)))
        else:
            tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(0, 1, width=32), max_size=4)))
    for name, value in draw(st.dictionaries(st.text(min_size=1, max_size=6), st.integers(0, 9), max_size=3)).items():
        request.parameters[f"p{name}"].int64_param = value
    for name in draw(st.lists(st.text(max_size=4), max_size=2)):
        request.outputs.add(name=name).parameters["classification"].int64_param = 3
    return request


def form(request: pb.ModelInferRequest) -> bytes | None:
    found = canonical(request.SerializeToString())
    return None if found is None else found.sha256


@given(requests(), st.randoms(use_true_random=False))
def test_the_order_of_inputs_and_parameters_says_nothing(request: pb.ModelInferRequest, random: object) -> None:
    other = Request(model_name="m")
    order = list(range(len(request.inputs)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for place in order:
        other.inputs.add().CopyFrom(request.inputs[place])
        if request.raw_input_contents:
            other.raw_input_contents.append(request.raw_input_contents[place])
    for name in sorted(request.parameters, reverse=True):
        other.parameters[name].CopyFrom(request.parameters[name])
    other.outputs.extend(request.outputs)
    assert form(request) == form(other) != None  # noqa: E711


@given(requests(), st.text(max_size=5), st.integers(0, 9), st.text(max_size=3))
def test_how_a_request_is_served_says_nothing(request: pb.ModelInferRequest, name: str, level: int, version: str) -> None:
    """Its id, its priority and timeout, and by which name its version was meant, which the key has by its digest."""
    other = copy.deepcopy(request)
    other.id, other.model_version = name, version
    other.parameters["priority"].uint64_param = level
    other.parameters["timeout"].int64_param = level
    assert form(request) == form(other)
    found = canonical(other.SerializeToString())
    assert found is not None
    assert found.request_id == name.encode()


def _value(request: pb.ModelInferRequest) -> None:
    if request.raw_input_contents:
        request.raw_input_contents[0] += b"\0"
    else:
        request.inputs[0].contents.fp32_contents.append(0.5)


def _swap(request: pb.ModelInferRequest) -> None:
    """The same contents under each other's names."""
    request.inputs[0].name += "2"


CHANGES: dict[str, Callable[[pb.ModelInferRequest], None]] = {
    "a value": _value,
    "a name": _swap,
    "a shape": lambda request: request.inputs[0].shape.append(1),
    "a datatype": lambda request: setattr(request.inputs[0], "datatype", "INT32"),
    "a parameter": lambda request: setattr(request.parameters["more"], "bool_param", True),
    "an input's parameter": lambda request: setattr(request.inputs[0].parameters["binary"], "bool_param", True),
    "an output": lambda request: setattr(request.outputs.add(), "name", "more"),
}


@given(requests(), st.sampled_from(sorted(CHANGES)))
def test_whatever_else_differs_makes_another_request(request: pb.ModelInferRequest, what: str) -> None:
    other = copy.deepcopy(request)
    CHANGES[what](other)
    assert form(other) not in (None, form(request))


@given(requests(), st.data())
def test_any_other_byte_of_raw_content_makes_another_request(request: pb.ModelInferRequest, data: st.DataObject) -> None:
    filled = [place for place, raw in enumerate(request.raw_input_contents) if raw]
    if not filled:
        return
    place = data.draw(st.sampled_from(filled))
    other, raw = copy.deepcopy(request), bytearray(request.raw_input_contents[place])
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    other.raw_input_contents[place] = bytes(raw)
    assert form(other) not in (None, form(request))


def test_contents_do_not_run_into_each_other() -> None:
    def of(first: bytes, second: bytes) -> bytes | None:
        request = Request(model_name="m", raw_input_contents=[first, second])
        for name in ("a", "b"):
            request.inputs.add(name=name, datatype="BYTES", shape=[1])
        return form(request)

    assert len({of(b"xy", b"z"), of(b"x", b"yz"), of(b"", b"xyz"), of(b"xyz", b"")}) == 4


def test_a_shape_that_is_not_packed_is_read() -> None:
    tensor = b"\x0a\x01x" + b"\x12\x04FP32" + b"\x18\x02" + b"\x18" + b"\xff" * 9 + b"\x01"
    payload = b"\x0a\x01m" + b"\x2a" + bytes([len(tensor)]) + tensor
    assert list(Request.FromString(payload).inputs[0].shape) == [2, -1]
    assert canonical(payload) is not None


def _with(change: Callable[[pb.ModelInferRequest], object]) -> bytes:
    request = Request(model_name="m", raw_input_contents=[b"\0\0\0\0"])
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    change(request)
    return request.SerializeToString()


UNFIT: dict[str, bytes] = {
    "of a sequence": _with(lambda request: setattr(request.parameters["sequence_id"], "int64_param", 7)),
    "of a named sequence": _with(lambda request: setattr(request.parameters["sequence_id"], "string_param", "s")),
    "a sequence's start": _with(lambda request: setattr(request.parameters["sequence_start"], "bool_param", True)),
    "an input in shared memory": _with(
        lambda request: setattr(request.inputs[0].parameters["shared_memory_region"], "string_param", "r")
    ),
    "an output in shared memory": _with(
        lambda request: setattr(request.outputs.add(name="y").parameters["shared_memory_region"], "string_param", "r")
    ),
    "more raw contents than inputs": _with(lambda request: request.raw_input_contents.append(b"")),
    "a field that is none of the request's": _with(lambda _: None) + b"\x42\x00",
    "a number where none is": _with(lambda _: None) + b"\x08\x01",
    "cut short": _with(lambda _: None)[:-1],
    "no message": b"\xff\xff\xff",
    "too large": _with(lambda request: request.raw_input_contents.__setitem__(0, bytes(MAX_INPUT_BYTES))),
}


@pytest.mark.parametrize("payload", UNFIT.values(), ids=UNFIT)
def test_what_is_not_for_a_cache(payload: bytes) -> None:
    assert canonical(payload) is None


def test_an_empty_request_has_a_form() -> None:
    assert canonical(b"") is not None


def _meaning(payload: bytes) -> object:
    """What a worker is asked, as its parser has it; None for what that refuses."""
    try:
        request = Request.FromString(payload)
    except DecodeError:
        return None
    served = ("priority", "timeout")
    parameters = {name: value.SerializeToString() for name, value in request.parameters.items() if name not in served}
    raw = request.raw_input_contents or [b""] * len(request.inputs)
    inputs = sorted(
        (each.name, each.SerializeToString(deterministic=True), own) for each, own in zip(request.inputs, raw, strict=False)
    )
    outputs = [each.SerializeToString(deterministic=True) for each in request.outputs]
    return parameters, inputs, outputs


@settings(max_examples=400)
@given(requests(), st.integers(0, 10_000), st.binary(max_size=3), st.integers(0, 3))
def test_equal_forms_mean_equal_requests(request: pb.ModelInferRequest, at: int, put: bytes, cut: int) -> None:
    """However one was made of the other: what a parser would take for something else has another form, or none."""
    payload = request.SerializeToString()
    at %= len(payload) + 1
    other = payload[:at] + put + payload[at + cut :]
    one, two = canonical(payload), canonical(other)
    if one is not None and two is not None and one.sha256 == two.sha256 and (meaning := _meaning(other)) is not None:
        assert meaning == _meaning(payload)


@given(st.binary(max_size=120))
def test_any_bytes_are_taken_or_left(payload: bytes) -> None:
    canonical(payload)
