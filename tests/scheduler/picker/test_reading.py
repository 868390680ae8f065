"""Which model a request is for, from as little of it as will do."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference import grpc_service_pb2 as kserve

from runtime.ids import ModelName, ModelVersion
from scheduler.picker.reading import (
    Unreadable,
    asked_by_grpc,
    asked_by_headers,
    asked_by_json,
    how_to_read,
)
from scheduler.picker.types import Asked, Reading

INFER = "/inference.GRPCInferenceService/ModelInfer"


def framed(message: kserve.ModelInferRequest) -> bytes:
    payload = message.SerializeToString()
    return b"\0" + len(payload).to_bytes(4, "big") + payload


def request(model: str = "digits", version: str = "3") -> kserve.ModelInferRequest:
    message = kserve.ModelInferRequest(model_name=model, model_version=version, raw_input_contents=[b"\x0a\x03bad" * 20])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    return message


@pytest.mark.parametrize(
    ("headers", "reading"),
    [
        ({":path": INFER}, Reading.GRPC),
        ({":path": "/v2/models/digits/infer"}, Reading.HEADERS),
        ({":path": "/v2/models/digits/versions/2/infer"}, Reading.HEADERS),
        ({":path": "/v1/chat/completions"}, Reading.JSON),
        ({":path": "/v1/chat/completions", "x-gateway-model-name": "chat"}, Reading.HEADERS),
        ({}, Reading.JSON),
    ],
)
def test_where_the_name_will_be(headers: dict[str, str], reading: Reading) -> None:
    assert how_to_read(headers) is reading


@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        ({":path": "/v2/models/di%20gits/infer"}, ("di gits", "", "")),
        ({":path": "/v2/models/digits/versions/2/infer", "x-penstock-session": "s"}, ("digits", "2", "s")),
        ({":path": INFER, "x-gateway-model-name": "other", "x-penstock-model-version": "4"}, ("other", "4", "")),
    ],
)
def test_by_headers(headers: dict[str, str], asked: tuple[str, str, str]) -> None:
    found = asked_by_headers(headers)
    assert (found.model, found.version, found.session_key) == asked


def test_the_first_fields_of_a_message_are_enough() -> None:
    body = framed(request())
    first = next(size for size in range(len(body)) if asked_by_grpc(body[:size], "s", ended=False))
    assert asked_by_grpc(body[:first], "s", ended=False) == Asked(ModelName("digits"), ModelVersion("3"), "s")
    assert first < 30, "tensor bytes were waited for"


@given(st.text(min_size=1, max_size=60), st.text(max_size=20), st.integers(0, 400))
def test_a_cut_anywhere_is_more_to_come_or_the_same_answer(model: str, version: str, cut: int) -> None:
    body = framed(request(model, version))
    whole = asked_by_grpc(body, "", ended=True)
    assert whole == Asked(ModelName(model), ModelVersion(version))
    assert asked_by_grpc(body[:cut], "", ended=False) in (None, whole)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        found = asked_by_grpc(body, "", ended=True)
    except Unreadable:
        return
    assert found is not None
    assert found.model


def test_a_compressed_message_is_refused_with_the_way_out() -> None:
    with pytest.raises(Unreadable, match="uncompressed"):
        asked_by_grpc(b"\1" + framed(request())[1:], "", ended=True)


def test_by_json() -> None:
    body = json.dumps({"messages": [], "model": "chat@canary"}).encode()
    assert asked_by_json(body, "s") == Asked(ModelName("chat"), ModelVersion("canary"), "s")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": 3}', b'{"model": ""}', b"[" * 100_000, b"\xff"])
def test_json_that_names_no_model_is_refused(body: bytes) -> None:
    with pytest.raises(Unreadable):
        asked_by_json(body, "")
