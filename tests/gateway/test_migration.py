"""What is remembered of a generation, and what is asked of the worker that goes on with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference import grpc_service_pb2
from penstock.worker.v1 import worker_pb2

from gateway.journeys import Journey, may_migrate
from gateway.links.text_codec import TEXT_CODECS
from gateway.links.types import CallContext, LinkFull, LinkLost, Method, WorkerBusy
from gateway.migration import KEPT_BYTES, MAX_TOKENS, Generation
from placement.rules import DEFAULT_ROUTE
from placement.types import Request
from runtime.errors import DeadlineExceeded, Internal, InvalidArgument, PenstockError, Unavailable, UpstreamUnavailable
from runtime.ids import ModelName, ModelVersion, WorkerId
from worker.engine import EngineFailed

ASKED = worker_pb2.GenerateRequest(model="m", prompt="p", max_tokens=9, stop=["x"])
TOKEN_IDS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4)


def answer(text: str, token_ids: list[int], finish: int = 0) -> bytes:
    return worker_pb2.GenerateResponse(text=text, token_ids=token_ids, finish_reason=finish).SerializeToString()  # type: ignore[arg-type]


def generation(method: Method = Method.GENERATE, payload: bytes = ASKED.SerializeToString()) -> Generation:
    return Generation(payload, TEXT_CODECS[method])


@given(st.lists(st.tuples(st.text(max_size=300), TOKEN_IDS), max_size=200))
def test_the_request_that_goes_on_is_the_one_that_came_with_every_token_given_in_order(
    answers: list[tuple[str, list[int]]],
) -> None:
    given_so_far = generation()
    for text, token_ids in answers:
        given_so_far.feed(answer(text, token_ids))
    resumed = given_so_far.resumed()
    assert resumed is not None
    expected = worker_pb2.GenerateRequest()
    expected.CopyFrom(ASKED)
    expected.resume_token_ids.extend(token for _, token_ids in answers for token in token_ids)
    assert worker_pb2.GenerateRequest.FromString(resumed) == expected


def test_one_that_is_lost_again_goes_on_after_all_its_workers_gave() -> None:
    twice = generation()
    twice.feed(answer("a", [1, 2]))
    assert twice.resumed() is not None
    twice.feed(answer("b", [3]))
    resumed = twice.resumed()
    assert resumed is not None
    assert worker_pb2.GenerateRequest.FromString(resumed).resume_token_ids == [1, 2, 3]


def test_what_is_kept_of_a_long_one_is_its_tokens() -> None:
    long = generation()
    for token in range(20_000):
        long.feed(answer("word ", [token]))
        assert long._kept_bytes <= KEPT_BYTES
    assert long.tokens >= 20_000 - KEPT_BYTES // 64
    resumed = long.resumed()
    assert resumed is not None
    assert list(worker_pb2.GenerateRequest.FromString(resumed).resume_token_ids) == list(range(20_000))


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([answer("text", [])], id="an upstream tells no tokens"),
        pytest.param([answer("a", [1]), answer("b", [])], id="some of them untold"),
        pytest.param([answer("x" * KEPT_BYTES, []), answer("a", [1])], id="untold long ago"),
        pytest.param([b"\xff\xff"], id="no answer of a text model"),
        pytest.param([answer("x", list(range(MAX_TOKENS + 1)))], id="longer than any context"),
    ],
)
def test_what_cannot_be_gone_on_with(answers: list[bytes]) -> None:
    lost = generation()
    for each in answers:
        lost.feed(each)
    assert lost.resumed() is None
    assert not lost.has_ended
    assert lost.resumed() is None


def test_one_that_is_at_its_end_asks_for_nothing() -> None:
    ended = generation()
    ended.feed(answer("a", [1]))
    ended.feed(answer("", [], worker_pb2.FINISH_REASON_STOP))
    assert ended.resumed() is None
    assert ended.has_ended


def test_over_kserve_tokens_travel_as_parameters() -> None:
    request = grpc_service_pb2.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"text"])
    request.parameters["max_tokens"].int64_param = 5
    given_so_far = generation(Method.STREAM_INFER, request.SerializeToString())
    for token_ids in ("1,2", "3"):
        said = grpc_service_pb2.ModelStreamInferResponse()
        said.infer_response.parameters["token_ids"].string_param = token_ids
        said.infer_response.parameters["triton_final_response"].bool_param = False
        given_so_far.feed(said.SerializeToString())
    resumed = given_so_far.resumed()
    assert resumed is not None
    request.parameters["resume_token_ids"].string_param = "1,2,3"
    assert grpc_service_pb2.ModelInferRequest.FromString(resumed) == request
    said.infer_response.parameters["triton_final_response"].bool_param = True
    given_so_far.feed(said.SerializeToString())
    assert given_so_far.resumed() is None
    assert given_so_far.has_ended


@pytest.mark.parametrize(
    ("error", "may"),
    [
        (LinkLost("gone", started=True), True),
        (Unavailable("draining"), True),
        (EngineFailed("out of memory"), True),
        (Internal("a bug"), True),
        (UpstreamUnavailable("broke off"), False),
        (InvalidArgument("no"), False),
        (DeadlineExceeded("late"), False),
        (WorkerBusy("full"), False),
        (LinkFull("full"), False),
    ],
)
def test_which_failures_another_worker_may_mend_in_the_middle(error: PenstockError, may: bool) -> None:
    assert may_migrate(error) is may


def test_a_leg_begins_with_attempts_of_its_own_and_at_the_same_version() -> None:
    journey = Journey(Request(ModelName("m")), DEFAULT_ROUTE, CallContext())
    journey.fail(WorkerId("a"), LinkLost("gone"))
    journey.fail(WorkerId("b"), WorkerBusy("full"))
    journey.migrate(WorkerId("c"), ModelVersion("3"), LinkLost("gone", started=True))
    assert (set(journey.request.exclude), journey.request.version, journey.spent) == ({WorkerId("c")}, ModelVersion("3"), False)
    assert (journey.migrations, journey.migrating, journey.busy_on) == (1, True, set())


def test_the_first_loss_of_a_worker_is_free_whatever_else_failed_before() -> None:
    journey = Journey(Request(ModelName("m")), DEFAULT_ROUTE, CallContext())
    assert [journey.is_free(each) for each in (Unavailable("x"), LinkLost("x"), LinkLost("x"))] == [False, True, False]
