"""Which generations can be repeated, how they end, and ids that come and go."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference import grpc_service_pb2 as kserve
from penstock.worker.v1 import worker_pb2

from gateway.cache.codec import Part, is_repeatable, part_of, with_id, without_id

ASKED: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"temperature": 0}, True),
    ({"temperature": 0, "top_p": 0.5}, True),
    ({"temperature": 0.7}, False),
    ({"temperature": 0.7, "seed": 0}, True),
    ({"seed": 5}, True),
    ({"top_p": 0.9}, False),
    ({"top_k": 40}, False),
    ({"top_k": 1}, True),
    ({"temperature": 0.7, "top_k": 1}, True),
    ({"frequency_penalty": 1.0}, True),
]


@pytest.mark.parametrize(("sampling", "repeatable"), ASKED)
def test_what_is_drawn_at_random_is_not_repeated(sampling: dict[str, Any], repeatable: bool) -> None:
    request = worker_pb2.GenerateRequest(model="m", prompt="hi", sampling=worker_pb2.Sampling(**sampling))
    assert is_repeatable(request.SerializeToString()) is repeatable


def test_what_goes_on_after_others_tokens_and_what_is_no_request() -> None:
    assert not is_repeatable(worker_pb2.GenerateRequest(prompt="hi", resume_token_ids=[1]).SerializeToString())
    assert not is_repeatable(b"\xff")


@pytest.mark.parametrize(
    ("finish", "part"),
    [
        (worker_pb2.FINISH_REASON_UNSPECIFIED, Part.MORE_FOLLOWS),
        (worker_pb2.FINISH_REASON_STOP, Part.WHOLE),
        (worker_pb2.FINISH_REASON_LENGTH, Part.WHOLE),
        (worker_pb2.FINISH_REASON_TOOL_CALLS, Part.WHOLE),
        (worker_pb2.FINISH_REASON_CONTENT_FILTER, Part.UNFIT),
    ],
)
def test_how_a_generation_ends(finish: worker_pb2.FinishReason.ValueType, part: Part) -> None:
    assert part_of(worker_pb2.GenerateResponse(text="a", finish_reason=finish).SerializeToString()) is part


def test_what_is_no_part_of_an_answer() -> None:
    assert part_of(b"\xff") is Part.UNFIT


@given(st.text(max_size=300), st.text(max_size=300), st.lists(st.binary(max_size=200), max_size=3))
def test_an_answer_bears_the_id_of_whoever_gets_it(first: str, second: str, raw: list[bytes]) -> None:
    answer = kserve.ModelInferResponse(model_name="m", model_version="3", id=first, raw_output_contents=raw)
    answer.parameters["p"].bool_param = True
    answer.outputs.add(name="y", datatype="FP32", shape=[1])
    kept = without_id(answer.SerializeToString())
    assert kept is not None
    given_again = kserve.ModelInferResponse.FromString(with_id(kept, second.encode()))
    answer.id = second
    assert given_again == answer
    assert kserve.ModelInferResponse.FromString(kept).id == ""


@given(st.binary(max_size=60))
def test_what_is_no_answer_is_not_kept_or_kept_as_it_is(answer: bytes) -> None:
    kept = without_id(answer)
    assert kept is None or len(kept) <= len(answer)


@pytest.mark.parametrize("answer", [b"\x08\x01", b"\x0a\x05m", b"\x0a", b"\xff\x01"], ids=["number", "cut", "bare", "tag"])
def test_what_workers_do_not_write(answer: bytes) -> None:
    assert without_id(answer) is None
